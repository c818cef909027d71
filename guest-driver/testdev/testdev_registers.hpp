// SPDX-License-Identifier: BSD-3-Clause
//
// What a driver of the test device needs to know; README.md has the same as tables.
#pragma once

#include <cstdint>

namespace vvfu::testdev {

// 0x1234 is assigned to nobody and known from QEMU's own test devices; no Linux driver claims this pair.
inline constexpr std::uint16_t kVendorId = 0x1234, kDeviceId = 0x7664;

inline constexpr std::uint16_t kVectors = 8;
inline constexpr std::uint64_t kBar0Size = 0x1000, kBar1Size = 0x1000, kBar2Size = 0x10000;
inline constexpr std::uint32_t kMsixTable = 0, kMsixPba = 0x800;  // in BAR 1
inline constexpr std::uint64_t kTrappedPage = 0x8000, kPageSize = 0x1000;
inline constexpr std::uint64_t kMaxTransfer = 4 * 1024 * 1024;  // bytes

/// Registers of BAR 0: offsets.
enum Reg : std::uint32_t {
    kRegId = 0x00,        // 4 RO
    kRegVersion = 0x04,   // 4 RO
    kRegVectors = 0x08,   // 4 RO
    kRegScratch8 = 0x10,  // 1 RW
    kRegScratch16 = 0x12,
    kRegScratch32 = 0x14,
    kRegScratch64 = 0x18,
    kRegReads = 0x40,          // 8 RO
    kRegWrites = 0x48,         // 8 RO
    kRegTrappedReads = 0x50,   // 8 RO
    kRegTrappedWrites = 0x58,  // 8 RO
    kRegTransfers = 0x60,      // 8 RO
    kRegBytes = 0x68,          // 8 RO
    kRegResets = 0x70,         // 8 RO
    kRegRaise = 0x80,          // 4 WO
    kRegIntx = 0x84,           // 4 RW
    kRegSource = 0xc0,         // 8 RW
    kRegDestination = 0xc8,    // 8 RW
    kRegLength = 0xd0,         // 8 RW
    kRegCommand = 0xd8,        // 4 RW
    kRegStatus = 0xdc,         // 4 RO
    kRegVector = 0xe0,         // 4 RW
    kRegPattern = 0xe4,        // 4 RW
    kRegChecksum = 0xe8,       // 4 RO
};

inline constexpr std::uint32_t kId = 0x44545656;  // "VVTD"
inline constexpr std::uint32_t kVersion = 1;

/// kRegCommand
enum Command : std::uint32_t {
    kCopy = 1,        // peer's memory at SOURCE to peer's memory at DESTINATION
    kFill = 2,        // PATTERN to DESTINATION
    kChecksum = 3,    // CRC-32 of SOURCE
    kToDevice = 4,    // peer's memory at SOURCE to BAR 2 at DESTINATION
    kFromDevice = 5,  // BAR 2 at SOURCE to peer's memory at DESTINATION
};

/// kRegStatus
enum Status : std::uint32_t {
    kIdle = 0,
    kBusy = 1,
    kDone = 2,
    kFault = 0x10,
    kPermission = 0x11,
    kIo = 0x12,
    kTimeout = 0x13,
    kTooLarge = 0x14,
    kBadCommand = 0x15,  // unknown, or outside BAR 2
    kNoBusMaster = 0x16,
};

/// kRegVector
inline constexpr std::uint32_t kVectorNone = 0xffffffff, kVectorIntx = 0xfffffffe;

}  // namespace vvfu::testdev
