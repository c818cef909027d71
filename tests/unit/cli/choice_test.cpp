// SPDX-License-Identifier: BSD-3-Clause
#include "choice.hpp"

#include <gmock/gmock.h>

namespace vvfu::cli {
namespace {

struct ChoiceTest : testing::Test {
    CLI::App app{"test", "prog"};
    const Choices<int> choices{{"one", 1}, {"two", 2}};
    int value = 7;

    ChoiceTest() { add_choice(app, "--number", "A number", choices, value); }
};

TEST_F(ChoiceTest, StoresWhatTheWordMeans)
{
    app.parse("--number=two");
    EXPECT_EQ(value, 2);
}

TEST_F(ChoiceTest, LeavesTheDefaultWithoutTheOption)
{
    app.parse("");
    EXPECT_EQ(value, 7);
}

TEST_F(ChoiceTest, NamesTheChoicesWhenTheWordIsNone)
{
    try {
        app.parse("--number=2");
        FAIL();
    } catch (const CLI::ValidationError &error) {
        EXPECT_THAT(error.what(), testing::HasSubstr("--number: '2' is not one of one|two"));
    }
    EXPECT_EQ(value, 7);
}

TEST_F(ChoiceTest, HelpShowsTheWords)
{
    EXPECT_THAT(app.help(), testing::HasSubstr("--number one|two"));
}

}  // namespace
}  // namespace vvfu::cli
