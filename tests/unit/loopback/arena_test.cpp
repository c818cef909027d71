// SPDX-License-Identifier: BSD-3-Clause
#include "arena.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstddef>
#include <initializer_list>
#include <vector>

#include "guest_ram.hpp"

namespace {

bool gap_instead_of_move = false;

}  // namespace

/// Instead of the C library's: as a kernel that has removed what was there and then finds no memory.
extern "C" void *mremap(void *old_address, std::size_t old_size, std::size_t new_size, int flags, ...) noexcept
{
    va_list arguments;
    va_start(arguments, flags);
    void *const new_address = va_arg(arguments, void *);
    va_end(arguments);
    if (gap_instead_of_move) {
        ::munmap(new_address, new_size);
        errno = ENOMEM;
        return MAP_FAILED;
    }
    const long made = ::syscall(SYS_mremap, old_address, old_size, new_size, flags, new_address);
    return made == -1 ? MAP_FAILED : reinterpret_cast<void *>(made);
}

namespace vvfu::loopback {
namespace {

constexpr std::uint64_t kSize = 0x40000, kPage = 0x1000;
constexpr int kReadWrite = PROT_READ | PROT_WRITE;

/// From now on the kernel has no mappings left for these system calls. In a child that ends soon.
void refuse(std::initializer_list<long> calls)
{
    std::vector<sock_filter> program{BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr))};
    for (const long call : calls) {
        program.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<std::uint32_t>(call), 0, 1));
        program.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOMEM));
    }
    program.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    const sock_fprog filter{static_cast<unsigned short>(program.size()), program.data()};
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0) {
        ::_exit(100);
    }
}

bool has_gap(const Arena &arena)
{
    return ::msync(arena.bytes().data(), arena.bytes().size(), MS_ASYNC) != 0;
}

class ArenaTest : public ::testing::Test {
protected:
    Arena arena = std::move(*Arena::create(kSize, kPage));
    test::GuestRam ram{0, 3 * kPage};
};

using ArenaDeathTest = ArenaTest;

//= VVFU-WINDOW-3
//= type=test
TEST_F(ArenaDeathTest, WhatCannotBeCutOffEndsTheProcess)
{
    ASSERT_EQ(arena.map(kPage, kPage, kReadWrite, ram.fd(), 0), 0);
    const auto cut_off = [this] {
        refuse({SYS_mmap, SYS_mprotect, SYS_mremap});
        arena.unmap(kPage, kPage);
        ::_exit(0);
    };
    EXPECT_EXIT(cut_off(), ::testing::ExitedWithCode(1), "cannot take the peer's memory out of reach");
}

TEST_F(ArenaDeathTest, WhatCannotBeMovedIntoItLeavesItAsItWas)
{
    arena.bytes()[kPage] = std::byte{1};
    const auto map = [this] {
        refuse({SYS_mremap});
        const int rc = arena.map(kPage, kPage, kReadWrite, ram.fd(), 0);
        ::_exit(rc == -ENOMEM && !has_gap(arena) && arena.bytes()[kPage] == std::byte{1} ? 0 : 1);
    };
    EXPECT_EXIT(map(), ::testing::ExitedWithCode(0), "");
}

TEST_F(ArenaDeathTest, AGapThatTheKernelLeavesIsFilled)
{
    const auto map = [this] {
        gap_instead_of_move = true;
        const int rc = arena.map(kPage, kPage, kReadWrite, ram.fd(), 0);
        ::_exit(rc == -ENOMEM && !has_gap(arena) && arena.bytes()[kPage] == std::byte{0} ? 0 : 1);
    };
    EXPECT_EXIT(map(), ::testing::ExitedWithCode(0), "");
}

TEST_F(ArenaTest, AFileThatRefusesLeavesItAsItWas)  // holds on new kernels whatever map() does
{
    const Fd file{::memfd_create("refuses", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
    ASSERT_EQ(::ftruncate(file.get(), kPage), 0);
    ASSERT_EQ(::fcntl(file.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_WRITE), 0);
    EXPECT_EQ(arena.map(0x10000, kPage, kReadWrite, file.get(), 0), -EPERM);
    EXPECT_FALSE(has_gap(arena));
}

TEST_F(ArenaTest, BeginsWhereItsAlignmentSays)
{
    const auto aligned = std::move(*Arena::create(kPage, 1u << 21));
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(aligned.bytes().data()) % (1u << 21), 0u);
}

TEST_F(ArenaTest, WhatCannotBeReservedIsAnErrorWithAReason)
{
    for (const auto size : {std::uint64_t{1} << 60, ~std::uint64_t{0} & ~(kPage - 1)}) {
        const auto none = Arena::create(size, 1u << 30);
        ASSERT_FALSE(none);
        EXPECT_EQ(none.error().message, "Cannot allocate memory");
    }
}

}  // namespace
}  // namespace vvfu::loopback
