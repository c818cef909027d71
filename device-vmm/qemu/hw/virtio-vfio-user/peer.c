/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * virtio-vfio-user: the UNIX socket on which peers connect. Everything is
 * non-blocking and bounded per callback.
 */
#include "qemu/osdep.h"
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include "qemu/ctype.h"
#include "qemu/cutils.h"
#include "qemu/main-loop.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "monitor/monitor.h"
#include "virtio-vfio-user.h"
#include "trace.h"

#define VVFU_RECEIVE_SIZE (64 * KiB)
#define VVFU_MAX_RECEIVES 8 /* per callback */
#define VVFU_MAX_ACCEPTS 4  /* per callback */
#define VVFU_MAX_SENDS 64   /* per flush */
#define VVFU_SCM_MAX_FD 253 /* the kernel's limit per message */
#define VVFU_ACCEPT_RETRY_NS NANOSECONDS_PER_SECOND

static const char *vvfu_socket_path(const VirtioVfioUser *s)
{
    return s->socket->type == SOCKET_ADDRESS_TYPE_UNIX
               ? s->socket->u.q_unix.path
               : NULL;
}

/* ---- sending ---- */

static void vvfu_message_free(VvfuMessage *message)
{
    for (size_t i = 0; i < message->nfds; i++) {
        close(message->fds[i]);
    }
    g_free(message->fds);
    g_free(message);
}

static void vvfu_drop_outbound(VvfuPeer *peer)
{
    VvfuMessage *message;

    while ((message = QSIMPLEQ_FIRST(&peer->outbound))) {
        QSIMPLEQ_REMOVE_HEAD(&peer->outbound, next);
        vvfu_message_free(message);
    }
    peer->backlog = 0;
}

/* The core lends its fds for the call only, and the message waits. */
static bool vvfu_message_add_fds(VvfuMessage *message, const int *fds,
                                 size_t nfds)
{
    message->fds = g_new(int, nfds);
    for (size_t i = 0; i < nfds; i++) {
        int copy = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);

        if (copy < 0) {
            return false;
        }
        message->fds[message->nfds++] = copy;
    }
    return true;
}

void vvfu_send(void *opaque, const void *data, size_t length, const int *fds,
               size_t nfds)
{
    VirtioVfioUser *s = opaque;
    VvfuPeer *peer = &s->peer;
    VvfuMessage *message;

    if (peer->fd < 0 || peer->error) {
        return;
    }
    message = g_malloc0(sizeof(*message) + length);
    message->length = length;
    memcpy(message->data, data, length);
    if (nfds && !vvfu_message_add_fds(message, fds, nfds)) {
        peer->error = errno;
        vvfu_message_free(message);
        return;
    }
    trace_virtio_vfio_user_send(length, nfds);
    QSIMPLEQ_INSERT_TAIL(&peer->outbound, message, next);
    peer->backlog += length;
}

size_t vvfu_send_backlog(void *opaque)
{
    return ((VirtioVfioUser *)opaque)->peer.backlog;
}

/* One message, so that a header is never split; fds go with its first byte. */
static ssize_t vvfu_send_some(int fd, VvfuMessage *message)
{
    struct iovec iov = {
        .iov_base = message->data + message->sent,
        .iov_len = message->length - message->sent,
    };
    struct msghdr header = { .msg_iov = &iov, .msg_iovlen = 1 };
    g_autofree char *control = NULL;
    size_t fds_size = message->nfds * sizeof(int);
    ssize_t ret;

    if (message->nfds && !message->sent) {
        struct cmsghdr *cmsg;

        header.msg_controllen = CMSG_SPACE(fds_size);
        header.msg_control = control = g_malloc0(header.msg_controllen);
        cmsg = CMSG_FIRSTHDR(&header);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(fds_size);
        memcpy(CMSG_DATA(cmsg), message->fds, fds_size);
    }
    do {
        ret = sendmsg(fd, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (ret < 0 && errno == EINTR);
    return ret;
}

/* False: the socket takes no more now, or is broken (peer->error). */
static bool vvfu_send_first(VvfuPeer *peer)
{
    VvfuMessage *message = QSIMPLEQ_FIRST(&peer->outbound);
    ssize_t ret = vvfu_send_some(peer->fd, message);

    if (ret < 0) {
        if (errno != EAGAIN && errno != EWOULDBLOCK) {
            peer->error = errno;
        }
        return false;
    }
    message->sent += ret;
    peer->backlog -= ret;
    if (message->sent == message->length) {
        QSIMPLEQ_REMOVE_HEAD(&peer->outbound, next);
        vvfu_message_free(message);
    }
    return true;
}

VvfuFlush vvfu_peer_flush(VirtioVfioUser *s)
{
    VvfuPeer *peer = &s->peer;
    bool waited = peer->backlog > 0;

    for (int i = 0; i < VVFU_MAX_SENDS; i++) {
        if (QSIMPLEQ_EMPTY(&peer->outbound) || peer->error ||
            !vvfu_send_first(peer)) {
            break;
        }
    }
    if (peer->fd >= 0 && peer->error) {
        trace_virtio_vfio_user_connection_error(peer->error);
        return VVFU_FLUSH_FAILED;
    }
    return waited && !peer->backlog ? VVFU_FLUSH_DRAINED : VVFU_FLUSH_DONE;
}

/* ---- receiving ---- */

static size_t vvfu_received_fds(struct msghdr *header, int *fds)
{
    size_t nfds = 0;

    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(header); cmsg;
         cmsg = CMSG_NXTHDR(header, cmsg)) {
        if (cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS) {
            size_t size = cmsg->cmsg_len - CMSG_LEN(0);

            memcpy(fds + nfds, CMSG_DATA(cmsg), size);
            nfds += size / sizeof(int);
        }
    }
    return nfds;
}

static void vvfu_connection_ended(VirtioVfioUser *s, int error)
{
    trace_virtio_vfio_user_connection_error(error);
    vvfu_core_peer_closed(s->core, vvfu_now(), error);
    vvfu_close_peer(s);
}

/* False: nothing more to receive now. */
static bool vvfu_receive(VirtioVfioUser *s)
{
    union {
        char bytes[CMSG_SPACE(VVFU_SCM_MAX_FD * sizeof(int))];
        struct cmsghdr align;
    } control;
    int fds[VVFU_SCM_MAX_FD];
    struct iovec iov = {
        .iov_base = s->peer.receive_buffer,
        .iov_len = VVFU_RECEIVE_SIZE,
    };
    struct msghdr header = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = &control,
        .msg_controllen = sizeof(control),
    };
    ssize_t ret;
    size_t nfds;

    do {
        ret = recvmsg(s->peer.fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    } while (ret < 0 && errno == EINTR);
    if (ret < 0) {
        if (errno != EAGAIN && errno != EWOULDBLOCK) {
            vvfu_connection_ended(s, errno);
        }
        return false;
    }
    nfds = vvfu_received_fds(&header, fds);
    if (header.msg_flags & MSG_CTRUNC) {
        /* This process ran out of fds: what the message means is unknown. */
        for (size_t i = 0; i < nfds; i++) {
            close(fds[i]);
        }
        vvfu_connection_ended(s, EMFILE);
        return false;
    }
    if (ret == 0) {
        vvfu_connection_ended(s, 0);
        return false;
    }
    trace_virtio_vfio_user_receive(ret, nfds);
    vvfu_core_peer_data(s->core, vvfu_now(), s->peer.receive_buffer, ret, fds,
                        nfds);
    /*
     * The kernel stops behind fds. Less than asked for without any is most
     * likely all there is; the event loop asks again.
     */
    return (size_t)ret == VVFU_RECEIVE_SIZE || nfds;
}

static void vvfu_peer_readable(void *opaque)
{
    VirtioVfioUser *s = opaque;
    int fd;

    if (!vvfu_enter(s)) {
        return;
    }
    fd = s->peer.fd;
    for (int i = 0; i < VVFU_MAX_RECEIVES; i++) {
        /* The connection may have ended. */
        if (s->peer.fd != fd || fd < 0 || !vvfu_core_wants_peer_data(s->core) ||
            !vvfu_receive(s)) {
            break;
        }
    }
    vvfu_leave(s);
}

static void vvfu_peer_writable(void *opaque)
{
    VirtioVfioUser *s = opaque;

    if (vvfu_enter(s)) {
        vvfu_leave(s); /* flushes */
    }
}

static void vvfu_watch_listener(VirtioVfioUser *s, bool on);

void vvfu_peer_rearm(VirtioVfioUser *s)
{
    VvfuPeer *peer = &s->peer;
    bool read, write;

    if (peer->fd < 0) {
        if (peer->listening && !timer_pending(peer->accept_retry)) {
            vvfu_watch_listener(s, true);
        }
        return;
    }
    read = vvfu_core_wants_peer_data(s->core);
    write = peer->backlog > 0 || peer->error;
    if (read != peer->watch_read || write != peer->watch_write) {
        peer->watch_read = read;
        peer->watch_write = write;
        aio_set_fd_handler(s->context, peer->fd,
                           read ? vvfu_peer_readable : NULL,
                           write ? vvfu_peer_writable : NULL, NULL, NULL, s);
    }
}

void vvfu_close_peer(void *opaque)
{
    VirtioVfioUser *s = opaque;
    VvfuPeer *peer = &s->peer;

    if (peer->fd >= 0) {
        trace_virtio_vfio_user_close(peer->fd);
        /* What was said before the end should still be heard, and be true. */
        vvfu_transaction_end(s);
        vvfu_peer_flush(s);
        aio_set_fd_handler(s->context, peer->fd, NULL, NULL, NULL, NULL, NULL);
        close(peer->fd);
        peer->fd = -1;
    }
    vvfu_drop_outbound(peer);
    peer->watch_read = false;
    peer->watch_write = false;
    peer->error = 0;
}

/* ---- accepting ---- */

static void vvfu_acceptable(void *opaque);

static void vvfu_watch_listener(VirtioVfioUser *s, bool on)
{
    if (s->peer.watch_listener != on) {
        s->peer.watch_listener = on;
        aio_set_fd_handler(s->context, s->peer.listener,
                           on ? vvfu_acceptable : NULL, NULL, NULL, NULL, s);
    }
}

static void vvfu_retry_accept(void *opaque)
{
    VirtioVfioUser *s = opaque;

    if (vvfu_enter(s)) {
        vvfu_watch_listener(s, s->peer.listening);
        vvfu_leave(s);
    }
}

/* The peer is gone, but the core has not come to the end of its data yet. */
static bool vvfu_peer_hung_up(const VvfuPeer *peer)
{
    struct pollfd poll_fd = { .fd = peer->fd };

    return peer->fd >= 0 && poll(&poll_fd, 1, 0) == 1 &&
           (poll_fd.revents & POLLHUP);
}

static void vvfu_serve(VirtioVfioUser *s, int fd)
{
    struct ucred credentials = {};
    socklen_t length = sizeof(credentials);
    int ret;

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &length) < 0) {
        close(fd);
        return;
    }
    ret = vvfu_core_peer_connected(s->core, vvfu_now(), credentials.pid,
                                   credentials.uid, credentials.gid);
    trace_virtio_vfio_user_accept(fd, credentials.pid, ret);
    if (ret == 0 && s->peer.fd < 0) {
        s->peer.fd = fd;
    } else {
        close(fd);
    }
}

static void vvfu_acceptable(void *opaque)
{
    VirtioVfioUser *s = opaque;

    if (!vvfu_enter(s)) {
        return;
    }
    for (int i = 0; i < VVFU_MAX_ACCEPTS && s->peer.listening; i++) {
        int fd;

        if (vvfu_peer_hung_up(&s->peer)) {
            /* Its successor waits in the backlog, see vvfu_peer_rearm(). */
            vvfu_watch_listener(s, false);
            break;
        }
        fd =
            accept4(s->peer.listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            vvfu_serve(s, fd);
            continue;
        }
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS ||
            errno == ENOMEM) {
            /* The connection stays acceptable: watching would spin. */
            g_autofree char *text =
                g_strdup_printf("cannot accept a peer: %s", strerror(errno));

            vvfu_core_log(s->core, vvfu_now(), VVFU_LOG_WARNING,
                          "no peer could be accepted", text);
            vvfu_watch_listener(s, false);
            timer_mod_ns(s->peer.accept_retry,
                         vvfu_now() + VVFU_ACCEPT_RETRY_NS);
        }
        break;
    }
    vvfu_leave(s);
}

/* ---- listening ---- */

static void vvfu_address(const char *path, struct sockaddr_un *address)
{
    memset(address, 0, sizeof(*address));
    address->sun_family = AF_UNIX;
    /* vvfu_take_path() saw to it that it fits, terminator included. */
    pstrcpy(address->sun_path, sizeof(address->sun_path), path);
}

/* 0: nothing is there, or nobody listens on it (*stale). Else -errno. */
static int vvfu_path_in_use(const char *path, bool *stale)
{
    struct sockaddr_un address;
    struct stat status;
    int fd, ret;

    *stale = false;
    if (lstat(path, &status) < 0) {
        return errno == ENOENT ? 0 : -errno;
    }
    if (!S_ISSOCK(status.st_mode)) {
        return -EEXIST;
    }
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return -errno;
    }
    vvfu_address(path, &address);
    ret = connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ? -errno
                                                                        : 0;
    close(fd);
    if (ret == -ECONNREFUSED || ret == -ENOENT) {
        *stale = true;
        return 0;
    }
    /* Connected, or a full backlog (EAGAIN): there is a server. */
    return ret == 0 || ret == -EAGAIN ? -EADDRINUSE : ret;
}

static int vvfu_bind(VirtioVfioUser *s, const char *path)
{
    struct sockaddr_un address;
    bool stale;
    int ret = vvfu_path_in_use(path, &stale);
    int fd;

    if (ret < 0) {
        return ret;
    }
    if (stale) {
        unlink(path);
    }
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return -errno;
    }
    vvfu_address(path, &address);
    if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        ret = -errno;
        close(fd);
        return ret;
    }
    if (lstat(path, &s->peer.listener_stat) < 0 || listen(fd, 4) < 0) {
        ret = -errno;
        unlink(path);
        close(fd);
        return ret;
    }
    s->peer.listener = fd;
    return 0;
}

int vvfu_listen(void *opaque)
{
    VirtioVfioUser *s = opaque;
    const char *path = vvfu_socket_path(s);
    int ret = 0;

    if (s->unrealized) {
        return -ENODEV;
    }
    if (path) {
        ret = vvfu_bind(s, path);
    }
    trace_virtio_vfio_user_listen(path ? path : s->socket->u.fd.str, ret);
    if (ret == 0) {
        s->peer.listening = true;
        vvfu_watch_listener(s, true);
    }
    return ret;
}

static void vvfu_remove_socket(VirtioVfioUser *s)
{
    const char *path = vvfu_socket_path(s);
    struct stat now;

    /* Someone may have put another socket there. */
    if (path && s->peer.listener >= 0 && lstat(path, &now) == 0 &&
        now.st_dev == s->peer.listener_stat.st_dev &&
        now.st_ino == s->peer.listener_stat.st_ino) {
        unlink(path);
    }
}

void vvfu_peer_exit(VirtioVfioUser *s)
{
    vvfu_remove_socket(s);
    vvfu_path_lock_drop(&s->peer.path_lock);
}

void vvfu_unlisten(void *opaque)
{
    VirtioVfioUser *s = opaque;
    VvfuPeer *peer = &s->peer;

    if (!peer->listening) {
        return;
    }
    trace_virtio_vfio_user_unlisten();
    peer->listening = false;
    timer_del(peer->accept_retry);
    vvfu_watch_listener(s, false);
    if (!peer->listener_passed) {
        vvfu_remove_socket(s);
        close(peer->listener);
        peer->listener = -1;
    }
}

/* ---- set-up ---- */

/* Checks the path, and keeps other servers from it to vvfu_peer_cleanup(). */
static bool vvfu_take_path(VirtioVfioUser *s, const char *path, Error **errp)
{
    struct sockaddr_un address;
    g_autofree char *folder = g_path_get_dirname(path);
    bool stale;
    int ret;

    if (!*path) {
        error_setg(errp, "virtio-vfio-user: the socket path is empty");
        return false;
    }
    if (strlen(path) >= sizeof(address.sun_path)) {
        error_setg(errp,
                   "virtio-vfio-user: the socket path has %zu characters, "
                   "at most %zu are possible: choose a shorter one",
                   strlen(path), sizeof(address.sun_path) - 1);
        return false;
    }
    if (access(folder, W_OK | X_OK) < 0) {
        error_setg_errno(errp, errno,
                         "virtio-vfio-user: cannot create a socket in '%s'",
                         folder);
        return false;
    }
    /* Before a look at the socket: that is a connection to whoever serves. */
    ret = vvfu_path_lock_take(&s->peer.path_lock, path);
    if (ret < 0 && ret != -EADDRINUSE) {
        error_setg_errno(errp, -ret, "virtio-vfio-user: cannot lock '%s.lock'",
                         path);
        return false;
    }
    if (ret == 0) {
        ret = vvfu_path_in_use(path, &stale);
    }
    if (ret == -EADDRINUSE) {
        error_setg(errp,
                   "virtio-vfio-user: a live server uses '%s' already: "
                   "stop it or choose another socket",
                   path);
    } else if (ret == -EEXIST) {
        error_setg(errp,
                   "virtio-vfio-user: '%s' exists and is not a socket: "
                   "remove it or choose another path",
                   path);
    } else if (ret < 0) {
        error_setg_errno(errp, -ret, "virtio-vfio-user: '%s'", path);
    }
    if (ret < 0) {
        vvfu_path_lock_drop(&s->peer.path_lock);
    }
    return ret == 0;
}

static int vvfu_socket_option(int fd, int option)
{
    int value = -1;
    socklen_t length = sizeof(value);

    return getsockopt(fd, SOL_SOCKET, option, &value, &length) < 0 ? -1 : value;
}

static bool vvfu_take_listener(VirtioVfioUser *s, Error **errp)
{
    const char *name = s->socket->u.fd.str;
    int fd = monitor_fd_param(monitor_cur(), name, errp);

    if (fd < 0) {
        return false;
    }
    if (vvfu_socket_option(fd, SO_DOMAIN) != AF_UNIX ||
        vvfu_socket_option(fd, SO_TYPE) != SOCK_STREAM ||
        vvfu_socket_option(fd, SO_ACCEPTCONN) != 1) {
        error_setg(errp,
                   "virtio-vfio-user: file descriptor '%s' is not a "
                   "listening UNIX stream socket",
                   name);
        /* A number may be anybody's; what had a name is ours from now on. */
        if (!qemu_isdigit(name[0])) {
            close(fd);
        }
        return false;
    }
    g_unix_set_fd_nonblocking(fd, true, NULL);
    qemu_set_cloexec(fd);
    s->peer.listener = fd;
    s->peer.listener_passed = true;
    return true;
}

static bool vvfu_check_socket(VirtioVfioUser *s, Error **errp)
{
    if (!s->socket) {
        error_setg(errp, "virtio-vfio-user: the 'socket' property is "
                         "missing: give a path, socket=PATH");
        return false;
    }
    switch (s->socket->type) {
    case SOCKET_ADDRESS_TYPE_UNIX:
        if (s->socket->u.q_unix.abstract) {
            error_setg(errp, "virtio-vfio-user: abstract sockets have no "
                             "permissions and are not supported");
            return false;
        }
        return vvfu_take_path(s, s->socket->u.q_unix.path, errp);
    case SOCKET_ADDRESS_TYPE_FD:
        return vvfu_take_listener(s, errp);
    default:
        error_setg(errp,
                   "virtio-vfio-user: socket type '%s' is not "
                   "supported, only 'unix' and 'fd'",
                   SocketAddressType_str(s->socket->type));
        return false;
    }
}

bool vvfu_peer_init(VirtioVfioUser *s, Error **errp)
{
    if (!vvfu_check_socket(s, errp)) {
        return false;
    }
    QSIMPLEQ_INIT(&s->peer.outbound);
    s->peer.receive_buffer = g_malloc(VVFU_RECEIVE_SIZE);
    s->peer.accept_retry =
        aio_timer_new(s->context, QEMU_CLOCK_REALTIME, SCALE_NS,
                      vvfu_retry_accept, s);
    return true;
}

void vvfu_peer_stop(VirtioVfioUser *s)
{
    vvfu_close_peer(s);
    vvfu_unlisten(s);
}

void vvfu_peer_cleanup(VirtioVfioUser *s)
{
    if (s->peer.listener >= 0) {
        close(s->peer.listener);
        s->peer.listener = -1;
    }
    vvfu_path_lock_drop(&s->peer.path_lock);
    timer_free(s->peer.accept_retry);
    g_free(s->peer.receive_buffer);
}
