/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * virtio-vfio-user: the right to a socket path.
 */
#include "qemu/osdep.h"
#include <sys/file.h>
#include "path-lock.h"

#define VVFU_LOCK_TRIES 16

/*
 * -EAGAIN: the file was there and is gone. Without O_CREAT for a file that
 * exists: in a sticky folder Linux refuses that to all but its owner.
 */
static int vvfu_open_lock(const char *file)
{
    const int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    int fd = open(file, flags | O_CREAT | O_EXCL, 0644);

    if (fd >= 0 || errno != EEXIST) {
        return fd < 0 ? -errno : fd;
    }
    fd = open(file, flags);
    if (fd < 0) {
        return errno == ENOENT ? -EAGAIN : -errno;
    }
    return fd;
}

static bool vvfu_is_at(int fd, const char *file)
{
    struct stat opened, now;

    return fstat(fd, &opened) == 0 && lstat(file, &now) == 0 &&
           opened.st_dev == now.st_dev && opened.st_ino == now.st_ino;
}

static int vvfu_try_lock(const char *file)
{
    int fd = vvfu_open_lock(file);
    int ret = fd;

    if (fd < 0) {
        return fd;
    }
    if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        ret = errno == EWOULDBLOCK ? -EADDRINUSE : -errno;
    } else if (!vvfu_is_at(fd, file)) {
        ret = -EAGAIN; /* its former holder removed it in between */
    }
    if (ret < 0) {
        close(fd);
    }
    return ret;
}

int vvfu_path_lock_take(VvfuPathLock *lock, const char *socket_path)
{
    g_autofree char *file = g_strconcat(socket_path, ".lock", NULL);
    int ret = -EAGAIN;

    for (int i = 0; i < VVFU_LOCK_TRIES && ret == -EAGAIN; i++) {
        ret = vvfu_try_lock(file);
    }
    if (ret < 0) {
        return ret == -EAGAIN ? -EADDRINUSE : ret;
    }
    lock->fd = ret;
    lock->file = g_steal_pointer(&file);
    return 0;
}

void vvfu_path_lock_drop(VvfuPathLock *lock)
{
    if (lock->file) {
        unlink(lock->file);
        close(lock->fd);
        g_clear_pointer(&lock->file, g_free);
    }
}
