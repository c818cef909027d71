// SPDX-License-Identifier: BSD-3-Clause
//
// A small NVMe host driver over a vfio-user client: admin queue, I/O queues, PRP lists, MSI-X, MSI or polling.
// Structures and section numbers: NVM Express Base Specification 1.4.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "event_fd.hpp"
#include "guest_ram.hpp"
#include "vfio_user_client.hpp"

namespace vvfu::test {

/// A submission queue entry (section 4.2), dword by dword.
struct NvmeCommand {
    std::array<std::uint32_t, 16> dwords{};

    NvmeCommand(std::uint8_t opcode, std::uint32_t nsid) { dwords[0] = opcode, dwords[1] = nsid; }
    NvmeCommand &dword(unsigned index, std::uint32_t value)
    {
        dwords.at(index) = value;
        return *this;
    }
    NvmeCommand &prps(std::uint64_t prp1, std::uint64_t prp2);
    [[nodiscard]] std::uint16_t cid() const { return static_cast<std::uint16_t>(dwords[0] >> 16); }
};

/// A completion queue entry (section 4.6).
struct NvmeCompletion {
    std::uint32_t result = 0;  ///< dword 0
    std::uint16_t sq_head = 0, sq_id = 0, cid = 0;
    std::uint16_t status = 0;  ///< status code and type (bits 0..10), without phase: 0 is success
};

class NvmeHost {
public:
    enum class Interrupts { msix, msi, none };

    /// The client is connected and has done VERSION; all of `ram` is mapped. Memory for queues and buffers is taken
    /// from `ram` from its start.
    NvmeHost(VfioUserClient &client, GuestRam &ram, Interrupts interrupts = Interrupts::msix);

    /// Brings the controller up with an admin queue (section 7.6.1). Throws when it does not become ready.
    void start();
    /// CC.EN = 0, waits for CSTS.RDY = 0. Queues are gone afterwards.
    void disable();
    /// Normal shutdown (section 7.6.2); false if it does not complete.
    bool shut_down();
    [[nodiscard]] bool ready() { return (client_.read<std::uint32_t>(0, 0x1c) & 1) != 0; }

    /// One I/O queue pair with its own vector (= qid). `depth` entries each. Returns the completion of the failing
    /// command or of the last one.
    NvmeCompletion create_io_queue(std::uint16_t qid, std::uint16_t depth);
    /// Sizes the vector table: call before create_io_queue with a larger vector than before.
    void assign_vectors(std::uint32_t count);

    /// Queues a command and returns its ID; ring() tells the controller.
    std::uint16_t submit(std::uint16_t qid, NvmeCommand command);
    void ring(std::uint16_t qid);
    /// The next completion of the queue, if there is one. Its slot is released with the next release().
    std::optional<NvmeCompletion> poll(std::uint16_t qid);
    /// Completion queue head doorbell, if polled entries are not released yet.
    void release(std::uint16_t qid);
    /// Waits for one completion of the queue, serving the socket meanwhile. Throws TimedOut.
    NvmeCompletion wait(std::uint16_t qid);
    NvmeCompletion execute(std::uint16_t qid, const NvmeCommand &command);

    /// Page-aligned guest memory; throws std::out_of_range when the RAM is used up.
    std::uint64_t allocate(std::size_t bytes);
    /// Sets PRP1 and PRP2 for [address, address + bytes), with a PRP list where needed (section 4.3): in the page
    /// `list`, or in a new one.
    void set_data(NvmeCommand &command, std::uint64_t address, std::size_t bytes, std::uint64_t list = 0);

    NvmeCommand read_command(std::uint32_t nsid, std::uint64_t lba, std::uint16_t blocks) const;
    NvmeCommand write_command(std::uint32_t nsid, std::uint64_t lba, std::uint16_t blocks) const;
    /// Synchronous I/O of `data`, a multiple of the block size of 512, through a bounce area in guest memory.
    NvmeCompletion write(std::uint16_t qid, std::uint32_t nsid, std::uint64_t lba, std::span<const std::byte> data);
    NvmeCompletion read(std::uint16_t qid, std::uint32_t nsid, std::uint64_t lba, std::span<std::byte> out);
    /// 4096 bytes of Identify data (section 5.15).
    Bytes identify(std::uint8_t cns, std::uint32_t nsid);
    [[nodiscard]] std::uint64_t namespace_blocks(std::uint32_t nsid);

    [[nodiscard]] const EventFd &vector(std::uint16_t index) const { return vectors_.at(index); }
    [[nodiscard]] GuestRam &ram() { return ram_; }
    [[nodiscard]] VfioUserClient &client() { return client_; }

private:
    struct Queue {
        std::uint16_t depth = 0;
        std::uint64_t sq = 0, cq = 0;
        std::uint16_t tail = 0, head = 0;
        std::uint16_t released_head = 0;
        bool phase = true;
    };

    void write_register(std::uint64_t offset, std::uint32_t value);
    [[nodiscard]] std::uint64_t doorbell(std::uint16_t qid, bool completion) const;
    Queue make_queue(std::uint16_t depth);
    bool wait_status(std::uint32_t mask, std::uint32_t value);
    std::uint64_t bounce(std::size_t bytes);

    VfioUserClient &client_;
    GuestRam &ram_;
    Interrupts interrupts_;
    std::uint64_t next_free_;
    std::uint64_t stride_ = 4;
    std::vector<Queue> queues_;
    std::vector<EventFd> vectors_;
    std::uint16_t next_cid_ = 0;
    std::uint64_t bounce_ = 0, bounce_list_ = 0;
    std::size_t bounce_size_ = 0;
};

}  // namespace vvfu::test
