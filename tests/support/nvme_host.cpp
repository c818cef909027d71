// SPDX-License-Identifier: BSD-3-Clause
#include "nvme_host.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "pci_function.hpp"

namespace vvfu::test {

namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::size_t kSqEntry = 64, kCqEntry = 16, kBlock = 512;
constexpr std::uint16_t kAdminDepth = 32;
// Controller registers (section 3.1).
constexpr std::uint64_t kCap = 0x00, kCc = 0x14, kCsts = 0x1c, kAqa = 0x24, kAsq = 0x28, kAcq = 0x30,
                        kDoorbells = 0x1000;
constexpr std::uint32_t kCcEnable = 1u | 6u << 16 | 4u << 20;  // EN, IOSQES 64 bytes, IOCQES 16 bytes
constexpr std::uint32_t kCcShutdownNormal = 1u << 14;

std::uint64_t page_align(std::uint64_t value)
{
    return (value + kPage - 1) / kPage * kPage;
}

}  // namespace

NvmeCommand &NvmeCommand::prps(std::uint64_t prp1, std::uint64_t prp2)
{
    dwords[6] = static_cast<std::uint32_t>(prp1);
    dwords[7] = static_cast<std::uint32_t>(prp1 >> 32);
    dwords[8] = static_cast<std::uint32_t>(prp2);
    dwords[9] = static_cast<std::uint32_t>(prp2 >> 32);
    return *this;
}

NvmeHost::NvmeHost(VfioUserClient &client, GuestRam &ram, Interrupts interrupts)
    : client_(client), ram_(ram), interrupts_(interrupts), next_free_(page_align(ram.address()))
{
}

// ---- controller ----

void NvmeHost::write_register(std::uint64_t offset, std::uint32_t value)
{
    client_.write(0, offset, value);
}

bool NvmeHost::wait_status(std::uint32_t mask, std::uint32_t value)
{
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds{10};
    while ((client_.read<std::uint32_t>(0, kCsts) & mask) != value) {
        if (std::chrono::steady_clock::now() > give_up) {
            return false;
        }
    }
    return true;
}

void NvmeHost::start()
{
    enable_function(client_);
    if (interrupts_ == Interrupts::msix) {
        set_msix_enable(client_, true);
    } else if (interrupts_ == Interrupts::msi) {
        set_msi_enable(client_, true, 5);
    }
    if (interrupts_ != Interrupts::none) {
        assign_vectors(1);
    }
    stride_ = std::uint64_t{4} << ((client_.read<std::uint64_t>(0, kCap) >> 32) & 0xf);  // CAP.DSTRD
    queues_.assign(1, make_queue(kAdminDepth));
    write_register(kAqa, static_cast<std::uint32_t>(kAdminDepth - 1) | static_cast<std::uint32_t>(kAdminDepth - 1)
                                                                           << 16);
    client_.write<std::uint64_t>(0, kAsq, queues_[0].sq);
    client_.write<std::uint64_t>(0, kAcq, queues_[0].cq);
    write_register(kCc, kCcEnable);
    if (!wait_status(1, 1)) {
        throw TimedOut("controller does not become ready");
    }
}

void NvmeHost::disable()
{
    write_register(kCc, kCcEnable & ~1u);
    if (!wait_status(1, 0)) {
        throw TimedOut("controller does not become disabled");
    }
    queues_.clear();
}

bool NvmeHost::shut_down()
{
    write_register(kCc, kCcEnable | kCcShutdownNormal);
    return wait_status(3u << 2, 2u << 2);  // CSTS.SHST = shutdown complete
}

void NvmeHost::assign_vectors(std::uint32_t count)
{
    const auto index = interrupts_ == Interrupts::msi ? kMsiIndex : kMsixIndex;
    for (auto vector = static_cast<std::uint32_t>(vectors_.size()); vector < count; ++vector) {
        vectors_.emplace_back();
        const int fd = vectors_.back().fd();
        if (const auto error = client_.set_irqs(kDataEventfd | kActionTrigger, index, vector, 1, {&fd, 1})) {
            throw ProtocolError("SET_IRQS failed with errno " + std::to_string(error));
        }
    }
}

// ---- queues ----

NvmeHost::Queue NvmeHost::make_queue(std::uint16_t depth)
{
    Queue queue;
    queue.depth = depth;
    queue.sq = allocate(depth * kSqEntry);
    queue.cq = allocate(depth * kCqEntry);
    return queue;
}

NvmeCompletion NvmeHost::create_io_queue(std::uint16_t qid, std::uint16_t depth)
{
    if (interrupts_ != Interrupts::none) {
        assign_vectors(qid + 1u);
    }
    const auto queue = make_queue(depth);
    const auto size_and_id = static_cast<std::uint32_t>(qid) | static_cast<std::uint32_t>(depth - 1) << 16;
    NvmeCommand create_cq(0x05, 0);  // section 5.3: physically contiguous, interrupts enabled
    const bool irq = interrupts_ != Interrupts::none;
    create_cq.prps(queue.cq, 0).dword(10, size_and_id).dword(11, irq ? 3u | std::uint32_t{qid} << 16 : 1u);
    if (const auto completion = execute(0, create_cq); completion.status != 0) {
        return completion;
    }
    NvmeCommand create_sq(0x01, 0);  // section 5.4
    create_sq.prps(queue.sq, 0).dword(10, size_and_id).dword(11, 1u | std::uint32_t{qid} << 16);
    const auto completion = execute(0, create_sq);
    if (completion.status == 0) {
        queues_.resize(std::max<std::size_t>(queues_.size(), qid + 1u));
        queues_[qid] = queue;
    }
    return completion;
}

std::uint64_t NvmeHost::doorbell(std::uint16_t qid, bool completion) const
{
    return kDoorbells + (2u * qid + (completion ? 1 : 0)) * stride_;
}

std::uint16_t NvmeHost::submit(std::uint16_t qid, NvmeCommand command)
{
    auto &queue = queues_.at(qid);
    const auto cid = next_cid_++;
    command.dwords[0] = (command.dwords[0] & 0xffff) | static_cast<std::uint32_t>(cid) << 16;
    const auto slot = ram_.at(queue.sq + queue.tail * kSqEntry, kSqEntry);
    std::memcpy(slot.data(), command.dwords.data(), kSqEntry);
    queue.tail = static_cast<std::uint16_t>((queue.tail + 1) % queue.depth);
    return cid;
}

void NvmeHost::ring(std::uint16_t qid)
{
    std::atomic_thread_fence(std::memory_order_release);  // the entries before the doorbell
    client_.post<std::uint32_t>(0, doorbell(qid, false), queues_.at(qid).tail);
}

std::optional<NvmeCompletion> NvmeHost::poll(std::uint16_t qid)
{
    auto &queue = queues_.at(qid);
    const auto slot = ram_.at(queue.cq + queue.head * kCqEntry, kCqEntry);
    auto &last = *reinterpret_cast<std::uint32_t *>(slot.data() + 12);
    // Pairs with the controller writing the phase last.
    const auto dword3 = std::atomic_ref(last).load(std::memory_order_acquire);
    if (((dword3 >> 16) & 1) != (queue.phase ? 1u : 0u)) {
        return std::nullopt;
    }
    NvmeCompletion completion;
    completion.result = field<std::uint32_t>(slot, 0);
    completion.sq_head = field<std::uint16_t>(slot, 8);
    completion.sq_id = field<std::uint16_t>(slot, 10);
    completion.cid = static_cast<std::uint16_t>(dword3);
    completion.status = static_cast<std::uint16_t>((dword3 >> 17) & 0x7ff);
    if (++queue.head == queue.depth) {
        queue.head = 0;
        queue.phase = !queue.phase;
    }
    return completion;
}

void NvmeHost::release(std::uint16_t qid)
{
    auto &queue = queues_.at(qid);
    if (queue.released_head != queue.head) {
        client_.post<std::uint32_t>(0, doorbell(qid, true), queue.head);
        queue.released_head = queue.head;
    }
}

NvmeCompletion NvmeHost::wait(std::uint16_t qid)
{
    std::optional<NvmeCompletion> completion;
    const bool irq = interrupts_ != Interrupts::none && qid < vectors_.size();
    const auto have_one = [&] {
        if (irq) {
            static_cast<void>(vectors_[qid].take());
        } else if (!completion) {
            // Without an interrupt, a register read is what wakes this loop up again.
            static_cast<void>(client_.read<std::uint32_t>(0, kCsts));
        }
        completion = poll(qid);
        return completion.has_value();
    };
    if (irq) {
        if (!client_.serve_until(have_one, vectors_[qid].fd())) {
            throw TimedOut("no completion");
        }
    } else {
        const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds{10};
        while (!have_one()) {
            if (std::chrono::steady_clock::now() > give_up) {
                throw TimedOut("no completion");
            }
        }
    }
    release(qid);
    return *completion;
}

NvmeCompletion NvmeHost::execute(std::uint16_t qid, const NvmeCommand &command)
{
    const auto cid = submit(qid, command);
    ring(qid);
    const auto completion = wait(qid);
    if (completion.cid != cid) {
        throw ProtocolError("completion of another command");
    }
    return completion;
}

// ---- memory and data ----

std::uint64_t NvmeHost::allocate(std::size_t bytes)
{
    const auto address = next_free_;
    const auto memory = ram_.at(address, page_align(bytes));
    std::fill(memory.begin(), memory.end(), std::byte{0});
    next_free_ += page_align(bytes);
    return address;
}

void NvmeHost::set_data(NvmeCommand &command, std::uint64_t address, std::size_t bytes, std::uint64_t list)
{
    const auto second_page = address / kPage * kPage + kPage;
    if (address + bytes <= second_page) {
        command.prps(address, 0);
        return;
    }
    if (address + bytes <= second_page + kPage) {
        command.prps(address, second_page);
        return;
    }
    std::vector<std::uint64_t> entries;
    for (auto page = second_page; page < address + bytes; page += kPage) {
        entries.push_back(page);
    }
    if (entries.size() > kPage / 8) {
        throw std::invalid_argument("data needs more than one page of PRP list");
    }
    list = list != 0 ? list : allocate(kPage);
    std::memcpy(ram_.at(list, entries.size() * 8).data(), entries.data(), entries.size() * 8);
    command.prps(address, list);
}

NvmeCommand NvmeHost::read_command(std::uint32_t nsid, std::uint64_t lba, std::uint16_t blocks) const
{
    return NvmeCommand(0x02, nsid)
        .dword(10, static_cast<std::uint32_t>(lba))
        .dword(11, static_cast<std::uint32_t>(lba >> 32))
        .dword(12, blocks - 1u);
}

NvmeCommand NvmeHost::write_command(std::uint32_t nsid, std::uint64_t lba, std::uint16_t blocks) const
{
    auto command = read_command(nsid, lba, blocks);
    command.dwords[0] = 0x01;
    return command;
}

std::uint64_t NvmeHost::bounce(std::size_t bytes)
{
    if (bounce_list_ == 0) {
        bounce_list_ = allocate(kPage);
    }
    if (bytes > bounce_size_) {
        bounce_ = allocate(bytes);
        bounce_size_ = page_align(bytes);
    }
    return bounce_;
}

NvmeCompletion NvmeHost::write(std::uint16_t qid, std::uint32_t nsid, std::uint64_t lba,
                               std::span<const std::byte> data)
{
    const auto buffer = bounce(data.size());
    std::memcpy(ram_.at(buffer, data.size()).data(), data.data(), data.size());
    auto command = write_command(nsid, lba, static_cast<std::uint16_t>(data.size() / kBlock));
    set_data(command, buffer, data.size(), bounce_list_);
    return execute(qid, command);
}

NvmeCompletion NvmeHost::read(std::uint16_t qid, std::uint32_t nsid, std::uint64_t lba, std::span<std::byte> out)
{
    const auto buffer = bounce(out.size());
    auto command = read_command(nsid, lba, static_cast<std::uint16_t>(out.size() / kBlock));
    set_data(command, buffer, out.size(), bounce_list_);
    const auto completion = execute(qid, command);
    std::memcpy(out.data(), ram_.at(buffer, out.size()).data(), out.size());
    return completion;
}

Bytes NvmeHost::identify(std::uint8_t cns, std::uint32_t nsid)
{
    const auto buffer = allocate(kPage);
    const auto completion = execute(0, NvmeCommand(0x06, nsid).prps(buffer, 0).dword(10, cns));
    if (completion.status != 0) {
        throw ProtocolError("Identify failed with status " + std::to_string(completion.status));
    }
    const auto data = ram_.at(buffer, kPage);
    return {data.begin(), data.end()};
}

std::uint64_t NvmeHost::namespace_blocks(std::uint32_t nsid)
{
    return field<std::uint64_t>(identify(0, nsid), 0);  // NSZE
}

}  // namespace vvfu::test
