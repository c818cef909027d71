/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * virtio-vfio-user: signals eventfds of the peer without ever waiting.
 *
 * write() to an eventfd waits while its counter is full, unless O_NONBLOCK is
 * set. The peer shares the flag and the counter, so no check beforehand is
 * safe, and a vCPU that waits here holds the BQL. The kernel's own signals
 * never wait: Linux AIO sends one when a request completes, here an empty
 * read that completes at once.
 */
#include "qemu/osdep.h"
#include <linux/aio_abi.h>
#include <poll.h>
#include <sys/syscall.h>
#include "virtio-vfio-user.h"

/* Completed requests are taken out at once; more than one is never there. */
#define VVFU_AIO_DEPTH 4

void vvfu_signal_init(VirtioVfioUser *s)
{
    aio_context_t context = 0;

    s->aio_file = qemu_open_old("/dev/null", O_RDONLY);
    if (s->aio_file < 0) {
        return;
    }
    if (syscall(SYS_io_setup, VVFU_AIO_DEPTH, &context) < 0) {
        close(s->aio_file); /* a sandbox forbids it, or too many users */
        s->aio_file = -1;
        return;
    }
    s->aio_context = context;
}

void vvfu_signal_cleanup(VirtioVfioUser *s)
{
    if (s->aio_file >= 0) {
        syscall(SYS_io_destroy, (aio_context_t)s->aio_context);
        close(s->aio_file);
        s->aio_file = -1;
    }
}

static bool vvfu_signal_by_aio(VirtioVfioUser *s, int fd)
{
    aio_context_t context = s->aio_context;
    struct io_event done[VVFU_AIO_DEPTH];
    struct timespec at_once = { 0 };
    struct iocb request = {
        .aio_lio_opcode = IOCB_CMD_PREAD,
        .aio_fildes = s->aio_file,
        .aio_flags = IOCB_FLAG_RESFD,
        .aio_resfd = fd,
    };
    struct iocb *requests[] = { &request };

    if (s->aio_file < 0 || syscall(SYS_io_submit, context, 1, requests) != 1) {
        return false;
    }
    syscall(SYS_io_getevents, context, 0, VVFU_AIO_DEPTH, done, &at_once);
    return true;
}

/*
 * Without AIO. A peer that fills the counter between the two calls, and has
 * made it blocking, can stop this VM.
 */
static void vvfu_signal_by_write(int fd)
{
    struct pollfd writable = { .fd = fd, .events = POLLOUT };
    const uint64_t one = 1;
    ssize_t ret;

    if (poll(&writable, 1, 0) != 1 || !(writable.revents & POLLOUT)) {
        return; /* full: it is signalled already */
    }
    do {
        ret = write(fd, &one, sizeof(one));
    } while (ret < 0 && errno == EINTR);
}

void vvfu_signal_eventfd(void *opaque, int fd)
{
    if (!vvfu_signal_by_aio(opaque, fd)) {
        vvfu_signal_by_write(fd);
    }
}
