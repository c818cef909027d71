// SPDX-License-Identifier: BSD-3-Clause
#include "support.hpp"

#include <gtest/gtest.h>

#include <stdexcept>

namespace vvfu::test {
namespace {

template <typename Exception>
std::string text_of(const Exception &exception)
{
    try {
        throw exception;
    } catch (...) {
        return core::exception_text();
    }
}

TEST(Support, AnExceptionIsCalledWhatItIs)
{
    EXPECT_EQ("out of memory", text_of(std::bad_alloc{}));
    EXPECT_EQ("the table is full", text_of(std::length_error{"the table is full"}));
    EXPECT_EQ(255u, text_of(std::runtime_error{std::string(1000, 'x')}).size());
    EXPECT_EQ("unknown exception", text_of(7));
}

}  // namespace
}  // namespace vvfu::test
