// SPDX-License-Identifier: BSD-3-Clause
//
// Random hosts: whatever they write, the controller neither crashes nor hangs, and after a reset it works.
#include <gtest/gtest.h>

#include <random>

#include "host.hpp"

namespace vvfu::nvme::test {
namespace {

class Random {
public:
    explicit Random(std::uint64_t seed) : engine_(seed) {}
    std::uint64_t below(std::uint64_t limit) { return engine_() % limit; }
    bool chance(unsigned percent) { return below(100) < percent; }
    std::uint64_t bits() { return engine_(); }
    /// Values at which checks tend to be wrong.
    std::uint64_t edge()
    {
        static constexpr std::uint64_t kEdges[] = {0,
                                                   1,
                                                   2,
                                                   0xff,
                                                   0x100,
                                                   0xffff,
                                                   0x1'0000,
                                                   0x7fff'ffff,
                                                   0xffff'fffe,
                                                   0xffff'ffff,
                                                   0x1'0000'0000,
                                                   ~std::uint64_t{0} - 511,
                                                   ~std::uint64_t{0}};
        return chance(50) ? kEdges[below(std::size(kEdges))] : bits() >> below(64);
    }
    std::uint64_t address()
    {
        const auto base = chance(60) ? Host::kWindow : Host::kMessage;
        const auto in_memory = base + below(Host::kMemory + 8192);
        switch (below(4)) {
            case 0: return in_memory;
            case 1: return edge();
            default: return in_memory & ~std::uint64_t{0xfff};
        }
    }

private:
    std::mt19937_64 engine_;
};

SubmissionEntry random_entry(Random &random, bool admin_queue)
{
    static constexpr std::uint8_t kAdmin[] = {0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 0x7c}, kIo[] = {0, 1, 2, 5, 8, 9};
    SubmissionEntry entry;
    const auto known = admin_queue ? kAdmin[random.below(std::size(kAdmin))] : kIo[random.below(std::size(kIo))];
    entry.opcode = random.chance(95) ? known : static_cast<std::uint8_t>(random.bits());
    entry.flags = random.chance(95) ? std::uint8_t{0} : static_cast<std::uint8_t>(random.bits());
    entry.nsid = static_cast<std::uint32_t>(random.chance(80) ? random.below(3) : random.edge());
    entry.prp1 = random.address();
    entry.prp2 = random.address();
    const auto dword = [&] { return static_cast<std::uint32_t>(random.chance(60) ? random.below(40) : random.edge()); };
    entry.cdw10 = random.chance(50) ? dword() : dword() << 16 | static_cast<std::uint32_t>(random.below(34));
    entry.cdw11 = random.chance(50) ? dword() : dword() << 16 | static_cast<std::uint32_t>(random.below(8));
    entry.cdw12 = dword();
    entry.cdw13 = random.chance(90) ? 0 : dword();
    return entry;
}

void fill_with_pointers(Host &host, Random &random)
{
    // PRP lists are found wherever a command points to.
    for (int i = 0; i < 64; ++i) {
        const auto page =
            (random.chance(50) ? Host::kWindow : Host::kMessage) + random.below(Host::kMemory / 4096) * 4096;
        for (unsigned slot = 0; slot < 512; ++slot) {
            const Le64 pointer = random.address();
            std::memcpy(host.at(page + 8 * slot), &pointer, sizeof(pointer));
        }
    }
}

void random_action(Host &host, Random &random)
{
    const auto qid = static_cast<std::uint16_t>(random.below(3));
    switch (random.below(12)) {
        case 0: host.write_bar(random.below(0x40) & ~std::uint64_t{3}, random.edge(), random.chance(50) ? 4 : 8); break;
        case 1: host.write_bar(random.below(0x2000 - 8), random.edge(), 1 + random.below(8)); break;
        case 2: host.read_bar(random.below(0x4000 - 8), 1 + random.below(8)); break;
        case 3: host.write_bar(reg::kDoorbells + 4 * random.below(80), random.edge()); break;
        case 4: host.executor.run(); break;
        case 5: host.workers.run(); break;
        case 6: host.messages.answer_one(); break;
        case 7:
            host.set_msix(random.chance(70));
            host.set_msi(random.chance(70), static_cast<unsigned>(random.below(8)));
            break;
        case 8: host.drain(qid); break;
        default:
            for (auto n = random.below(20); n > 0; --n) {
                host.submit(qid, random_entry(random, qid == 0));
            }
            host.ring_sq(qid);
            break;
    }
}

void restart(Host &host)
{
    host.write_bar(reg::kCc, 0);
    host.run_deferred();
    ASSERT_EQ(host.read_bar(reg::kCsts), 0u) << "a reset ends";
    host.forget_memory();
    host.enable();
}

void run_session(std::uint64_t seed, NvmeOptions options)
{
    Random random(seed);
    Host host(std::move(options));
    for (int round = 0; round < 6; ++round) {
        host.workers.deferred = random.chance(50);
        host.hold_messages = random.chance(50);
        host.queue_place = Place::window;
        fill_with_pointers(host, random);
        restart(host);
        host.add_queue(1, 32);
        host.add_queue(2, 7);
        for (int i = 0; i < 150; ++i) {
            random_action(host, random);
        }
    }
    host.workers.deferred = host.hold_messages = false;
    if (random.chance(50)) {
        int done = 0;
        host.device().reset([&] { ++done; });
        host.run_deferred();
        ASSERT_EQ(done, 1);
    }
    restart(host);
    EXPECT_EQ(host.execute(0, admin(AdminOpcode::get_features, 7)).status, Status::success);
}

TEST(NvmeFuzz, RandomHostsOnMemory)
{
    for (std::uint64_t seed = 1; seed <= 25; ++seed) {
        SCOPED_TRACE(seed);
        run_session(seed, Host::memory_options());
    }
}

TEST(NvmeFuzz, RandomHostsWithMsi)
{
    for (std::uint64_t seed = 201; seed <= 215; ++seed) {
        SCOPED_TRACE(seed);
        auto options = Host::memory_options();
        options.interrupts = guest::InterruptKind::msi;
        run_session(seed, options);
    }
}

TEST(NvmeFuzz, RandomHostsOnAFile)
{
    TemporaryFile file(1 << 20);
    for (std::uint64_t seed = 101; seed <= 125; ++seed) {
        SCOPED_TRACE(seed);
        auto options = Host::file_options(file);
        options.backings.push_back("mem:64K");
        run_session(seed, options);
    }
}

}  // namespace
}  // namespace vvfu::nvme::test
