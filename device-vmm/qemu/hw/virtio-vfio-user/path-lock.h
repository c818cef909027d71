/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * virtio-vfio-user: the right to a socket path, from realize to unrealize: an
 * flock() of the file PATH.lock beside it, as libwayland and others have it.
 * Whoever holds it may replace a socket that nobody answers on, while no other
 * starter looks.
 */
#ifndef HW_VIRTIO_VFIO_USER_PATH_LOCK_H
#define HW_VIRTIO_VFIO_USER_PATH_LOCK_H

typedef struct VvfuPathLock {
    char *file; /* NULL: not taken */
    int fd;
} VvfuPathLock;

/* 0 or -errno; -EADDRINUSE: another server has the path. Never waits. */
int vvfu_path_lock_take(VvfuPathLock *lock, const char *socket_path);
/* Removes the file, if the lock is taken. */
void vvfu_path_lock_drop(VvfuPathLock *lock);

#endif
