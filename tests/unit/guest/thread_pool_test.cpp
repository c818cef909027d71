// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/guest/thread_pool.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <latch>
#include <memory>
#include <stdexcept>
#include <thread>

#include "vvfu/guest/reactor.hpp"

namespace vvfu::guest {
namespace {

class ThreadPoolTest : public ::testing::Test {
protected:
    std::unique_ptr<Reactor> reactor = std::move(*Reactor::create());
};

TEST_F(ThreadPoolTest, StartsNoThreadWithoutWork)
{
    ThreadPool pool{*reactor};
    EXPECT_EQ(pool.threads(), 0u);
}

TEST_F(ThreadPoolTest, RunsWorkElsewhereAndDoneOnTheExecutor)
{
    ThreadPool pool{*reactor};
    std::thread::id work_thread, done_thread;
    pool.submit(
        this, [&] { work_thread = std::this_thread::get_id(); },
        [&] {
            done_thread = std::this_thread::get_id();
            reactor->stop();
        });
    reactor->run();
    EXPECT_NE(work_thread, std::this_thread::get_id());
    EXPECT_EQ(done_thread, std::this_thread::get_id());
    EXPECT_EQ(pool.threads(), 1u);
}

TEST_F(ThreadPoolTest, WorkThatBlocksDoesNotHoldUpOtherWork)
{
    ThreadPool pool{*reactor, 2};
    std::latch second_ran{1};
    int done = 0;
    const auto count = [&] {
        if (++done == 2) {
            reactor->stop();
        }
    };
    pool.submit(
        this, [&] { second_ran.wait(); }, count);
    pool.submit(
        this, [&] { second_ran.count_down(); }, count);
    reactor->run();
    EXPECT_EQ(pool.threads(), 2u);
}

TEST_F(ThreadPoolTest, ALaneThatHangsDoesNotHoldUpOthers)
{
    std::latch release{1};
    ThreadPool pool{*reactor, 2};
    int hanging = 0, others = 0;
    const char lanes[2]{};
    for (int i = 0; i < 5; ++i) {
        pool.submit(
            &lanes[0], [&] { release.wait(); }, [&] { ++hanging; });
    }
    for (int i = 0; i < 5; ++i) {
        pool.submit(
            &lanes[1], [] {},
            [&] {
                if (++others == 5) {
                    reactor->stop();
                }
            });
    }
    reactor->run();
    EXPECT_EQ(hanging, 0);
    EXPECT_LE(pool.threads(), 4u);
    release.count_down();
    pool.submit(
        &lanes[0], [] {}, [&] { reactor->stop(); });
    reactor->run();
    EXPECT_GE(hanging, 4) << "in their order, two at a time";
}

TEST_F(ThreadPoolTest, NeverStartsMoreThreadsThanAllowed)
{
    ThreadPool pool{*reactor, 3};
    std::atomic<int> running{0}, highest{0};
    int done = 0;
    for (int i = 0; i < 200; ++i) {
        pool.submit(
            this,
            [&] {
                const int now = ++running;
                for (int seen = highest; now > seen && !highest.compare_exchange_weak(seen, now);) {
                }
                std::this_thread::yield();
                --running;
            },
            [&] {
                if (++done == 200) {
                    reactor->stop();
                }
            });
    }
    reactor->run();
    EXPECT_LE(pool.threads(), 3u);
    EXPECT_LE(highest, 3);
    EXPECT_EQ(done, 200);
}

/// Returns when the pool takes no more work.
void wait_for_stop(ThreadPool &pool)
{
    for (bool taken = true; taken; std::this_thread::yield()) {
        const auto probe = std::make_shared<int>(0);
        pool.submit(
            &pool, [probe] {}, [] {});
        taken = probe.use_count() > 1;
    }
}

TEST_F(ThreadPoolTest, DestructionWaitsForRunningWorkAndDropsTheRest)
{
    std::latch started{1}, release{1};
    std::atomic<int> ran{0};
    auto token = std::make_shared<int>(0);
    auto pool = std::make_unique<ThreadPool>(*reactor, 1);
    pool->submit(
        this,
        [&] {
            started.count_down();
            release.wait();
            ++ran;
        },
        [] {});
    pool->submit(
        this, [&ran, token] { ran += 100; }, [token] {});
    started.wait();
    // The first work ends when the pool is stopping, not before: else the second might run, too.
    std::thread releaser{[&release, &pool = *pool] {
        wait_for_stop(pool);
        release.count_down();
    }};
    pool.reset();
    releaser.join();
    EXPECT_EQ(ran, 1);
    EXPECT_EQ(token.use_count(), 1) << "dropped work releases what it captured";
}

TEST_F(ThreadPoolTest, ExceptionOfWorkIsThrownOnTheExecutor)
{
    ThreadPool pool{*reactor};
    bool done = false;
    pool.submit(
        this, [] { throw std::runtime_error("disk full"); }, [&] { done = true; });
    EXPECT_THROW(reactor->run(), std::runtime_error);
    EXPECT_FALSE(done);
}

TEST_F(ThreadPoolTest, TakesNoWorkAfterItWasStopped)
{
    ThreadPool pool{*reactor};
    pool.stop();
    pool.submit(
        this, [] { ADD_FAILURE(); }, [] { ADD_FAILURE(); });
    EXPECT_EQ(pool.threads(), 0u);
    pool.stop();
}

}  // namespace
}  // namespace vvfu::guest
