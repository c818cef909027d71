// SPDX-License-Identifier: BSD-3-Clause
#include "no_memory.hpp"

#include <cstdlib>
#include <new>

namespace {

thread_local bool no_memory = false;

}  // namespace

void vvfu::test::NoMemory::arm(bool armed) noexcept
{
    no_memory = armed;
}

// The nothrow form too: std::stable_sort() pairs it with the usual operator delete.
void *operator new(std::size_t size, const std::nothrow_t &) noexcept
{
    return no_memory ? nullptr : std::malloc(size != 0 ? size : 1);
}

void *operator new(std::size_t size)
{
    void *memory = operator new(size, std::nothrow);
    if (memory == nullptr) {
        throw std::bad_alloc{};
    }
    return memory;
}

void operator delete(void *memory) noexcept
{
    std::free(memory);
}

void operator delete(void *memory, std::size_t) noexcept
{
    std::free(memory);
}
