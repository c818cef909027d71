// SPDX-License-Identifier: BSD-3-Clause
//
// Preloaded into a program under test: storage that hangs. The calls named in VVFU_STALL ("preadv,fdatasync") write a
// byte to the fd VVFU_STALLED and then wait for one from the fd VVFU_RELEASE, before they go on. The first fdatasync
// fails when VVFU_FAIL_SYNC is an errno, and only that one: as after a write-back that failed.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int fd_of(const char *variable)
{
    const char *text = getenv(variable);
    return text ? atoi(text) : -1;
}

static void stall(const char *call)
{
    const char *list = getenv("VVFU_STALL");
    const char *found = list ? strstr(list, call) : NULL;
    const char end = found ? found[strlen(call)] : '\0';
    char byte = 0;
    if (!found || (end != '\0' && end != ',') || (found != list && found[-1] != ',')) {
        return;
    }
    if (write(fd_of("VVFU_STALLED"), &byte, 1) == 1) {
        while (read(fd_of("VVFU_RELEASE"), &byte, 1) < 0) {
        }
    }
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t preadv(int fd, const struct iovec *iov, int count, off_t offset)
{
    stall("preadv");
    return NEXT(preadv)(fd, iov, count, offset);
}

ssize_t pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
    stall("pwritev");
    return NEXT(pwritev)(fd, iov, count, offset);
}

int fdatasync(int fd)
{
    static atomic_flag failed = ATOMIC_FLAG_INIT;
    const char *error = getenv("VVFU_FAIL_SYNC");
    stall("fdatasync");
    if (error && !atomic_flag_test_and_set(&failed)) {
        errno = atoi(error);
        return -1;
    }
    return NEXT(fdatasync)(fd);
}

/* Of disk images only. */
int open(const char *path, int flags, ...)
{
    const char *dot = strrchr(path, '.');
    mode_t mode = 0;
    if (flags & O_CREAT) {
        va_list arguments;
        va_start(arguments, flags);
        mode = va_arg(arguments, mode_t);
        va_end(arguments);
    }
    if (dot && strcmp(dot, ".img") == 0) {
        stall("open");
    }
    return NEXT(open)(path, flags, mode);
}
