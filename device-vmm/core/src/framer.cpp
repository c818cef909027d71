// SPDX-License-Identifier: BSD-3-Clause
#include "framer.hpp"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

namespace vvfu::core {

std::span<const std::byte> Framer::take_header(std::span<const std::byte> data)
{
    const auto count = std::min(data.size(), sizeof header_ - header_bytes_);
    std::memcpy(header_ + header_bytes_, data.data(), count);
    header_bytes_ += count;
    if (header_bytes_ == sizeof header_) {
        std::memcpy(&current_.header, header_, sizeof header_);
        const auto size = current_.header.size;
        current_.out_of_step = size < vfio_user::kHeaderSize || size > vfio_user::kMaxMessageSize;
    }
    return data.subspan(count);
}

std::span<const std::byte> Framer::take_payload(std::span<const std::byte> data)
{
    const auto missing = current_.header.size - vfio_user::kHeaderSize - current_.payload.size();
    const auto count = std::min(data.size(), missing);
    // Grows with what arrived, not with what the header promises.
    current_.payload.insert(current_.payload.end(), data.begin(), data.begin() + static_cast<std::ptrdiff_t>(count));
    return data.subspan(count);
}

void Framer::complete(std::deque<Message> &out)
{
    in_step_ = !current_.out_of_step;
    out.push_back(std::exchange(current_, Message{}));
    header_bytes_ = 0;
}

void Framer::feed(std::span<const std::byte> data, std::span<Fd> fds, std::deque<Message> &out)
{
    // Which message gets the fds: an index into `out`, or the one still in progress.
    const auto first = out.size();
    auto owner = first;  // the message in progress when the chunk began, unless another one starts
    while (in_step_ && !data.empty()) {
        if (header_bytes_ == 0) {
            owner = out.size();
        }
        if (header_bytes_ < sizeof header_) {
            data = take_header(data);
        }
        if (header_bytes_ == sizeof header_ && !current_.out_of_step) {
            data = take_payload(data);
        }
        const bool whole =
            header_bytes_ == sizeof header_ &&
            (current_.out_of_step || vfio_user::kHeaderSize + current_.payload.size() == current_.header.size);
        if (whole) {
            complete(out);
        }
    }
    if (owner < out.size()) {
        attach(out[owner], fds);
    } else if (in_step_) {
        attach(current_, fds);
    }
    for (auto &fd : fds) {
        fd.reset();
    }
}

void Framer::attach(Message &message, std::span<Fd> fds)
{
    for (auto &fd : fds) {
        if (message.fds.size() == vfio_user::kMaxMsgFds) {
            //= VVFU-OP-2
            message.too_many_fds = true;  // the rest is closed
            return;
        }
        message.fds.push_back(std::move(fd));
    }
}

}  // namespace vvfu::core
