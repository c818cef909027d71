// SPDX-License-Identifier: BSD-3-Clause
#include "eventfd.hpp"

#include <fcntl.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <ctime>

#include "vvfu/base/fd.hpp"

namespace vvfu::loopback {
namespace {

/// write() to an eventfd waits while its counter is full, unless O_NONBLOCK is set. Counter and flag are shared with
/// the peer, so no look at them beforehand is safe. The kernel's own signals never wait: Linux AIO sends one when a
/// request completes, here an empty read that completes at once.
class KernelSignal {
public:
    KernelSignal() : file_(::open("/dev/null", O_RDONLY | O_CLOEXEC))
    {
        if (::syscall(SYS_io_setup, kDepth, &context_) != 0) {
            context_ = 0;  // a sandbox forbids it, or too many users
        }
    }
    ~KernelSignal()
    {
        if (context_ != 0) {
            ::syscall(SYS_io_destroy, context_);
        }
    }
    KernelSignal(const KernelSignal &) = delete;
    KernelSignal &operator=(const KernelSignal &) = delete;

    bool send(int fd) noexcept
    {
        if (context_ == 0 || !file_ || fd < 0) {
            return false;
        }
        iocb request{};
        request.aio_lio_opcode = IOCB_CMD_PREAD;
        request.aio_fildes = static_cast<__u32>(file_.get());
        request.aio_flags = IOCB_FLAG_RESFD;
        request.aio_resfd = static_cast<__u32>(fd);
        std::array<iocb *, 1> requests{&request};
        // Completed requests are taken out when there is no room for one more.
        for (int attempt = 0; attempt < 2; ++attempt) {
            if (::syscall(SYS_io_submit, context_, 1L, requests.data()) == 1) {
                return true;
            }
            if (errno != EAGAIN) {
                return false;
            }
            std::array<io_event, kDepth> done;
            timespec at_once{};
            ::syscall(SYS_io_getevents, context_, 0L, static_cast<long>(done.size()), done.data(), &at_once);
        }
        return false;
    }

private:
    static constexpr unsigned kDepth = 64;
    Fd file_;
    aio_context_t context_ = 0;
};

/// Without AIO. A peer that fills the counter between the two calls, and has made it blocking, can stop this thread.
void signal_by_write(int fd) noexcept
{
    pollfd poll{fd, POLLOUT, 0};
    if (::poll(&poll, 1, 0) == 1 && (poll.revents & POLLOUT) != 0) {
        static_cast<void>(::eventfd_write(fd, 1));
    }
}

KernelSignal &kernel_signal()
{
    static KernelSignal signal;  // requests of several threads may share it
    return signal;
}

}  // namespace

void prepare_signals()
{
    static_cast<void>(kernel_signal());
}

void signal_eventfd(int fd) noexcept
{
    if (!kernel_signal().send(fd)) {
        signal_by_write(fd);
    }
}

}  // namespace vvfu::loopback
