/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * C interface of the device VMM core, for ports written in C. It mirrors vvfu::core::Core and
 * vvfu::core::Port one to one; core.hpp and port.hpp document each call. Rules that hold for all of it:
 *
 *  - One thread at a time. vvfu_core_doorbell_written() and vvfu_core_doorbell_pending() are the
 *    exceptions: any thread may call them.
 *  - Port callbacks run inside vvfu_core_* calls and must not call vvfu_core_* back, except vvfu_core_log().
 *  - No C++ exception crosses this interface. If the core itself fails (out of memory, ...) it logs the
 *    cause, ends the session and reports the device broken.
 *  - now_ns is CLOCK_MONOTONIC in nanoseconds.
 *  - After each call the port looks at vvfu_core_wants_peer_data() and vvfu_core_next_deadline().
 */
#ifndef VVFU_CORE_H
#define VVFU_CORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define VVFU_CORE_ABI_VERSION 2u

typedef struct VvfuCore VvfuCore;

enum { VVFU_LOG_ERROR = 0, VVFU_LOG_WARNING = 1, VVFU_LOG_INFO = 2, VVFU_LOG_DEBUG = 3 };

typedef struct VvfuCoreConfig {
    uint32_t abi_version; /* VVFU_CORE_ABI_VERSION */
    uint8_t uuid[16];
    uint64_t window_size;        /* bytes, multiple of 4096, not 0 */
    uint64_t region_memory_size; /* bytes, multiple of 4096, may be 0 */
    uint32_t doorbells;          /* 1..4096 */
    uint32_t notifications;      /* 1..1024 */
    bool trust_peer_memory;
    uint32_t unmap_timeout_ms;  /* 1..4000: below QEMU's 5 s reply timeout */
    uint32_t access_timeout_ms; /* 1..4000 */
} VvfuCoreConfig;

typedef struct VvfuPortOps {
    int (*listen)(void *opaque);
    void (*unlisten)(void *opaque);
    void (*send)(void *opaque, const void *message, size_t length, const int *fds, size_t nfds);
    size_t (*send_backlog)(void *opaque);
    void (*close_peer)(void *opaque);
    int (*push_request)(void *opaque, unsigned queue, const void *message, size_t length);
    void (*complete_control)(void *opaque, uint64_t token, const void *reply, size_t length);
    void (*device_broken)(void *opaque, const char *reason);
    int (*window_map)(void *opaque, uint64_t window_offset, uint64_t size, int protection, int fd,
                      uint64_t fd_offset);
    void (*window_unmap)(void *opaque, uint64_t window_offset, uint64_t size);
    int (*region_memory_map)(void *opaque, uint64_t offset, uint64_t size, int fd, uint64_t fd_offset);
    void (*region_memory_unmap)(void *opaque, uint64_t offset, uint64_t size);
    void (*doorbell_set)(void *opaque, unsigned index, int fd);
    void (*notification_set)(void *opaque, unsigned index, int fd);
    void (*signal_eventfd)(void *opaque, int fd);
    void (*log)(void *opaque, int level, const char *text);
    void (*state_changed)(void *opaque);
} VvfuPortOps;

/* "no driver", "no device", "listening", "negotiating", "connected", "broken" */
typedef struct VvfuCoreState {
    const char *state; /* static string, one of the above */
    uint32_t epoch;
    uint32_t peer_pid; /* 0 without a session */
    uint32_t peer_uid;
    uint64_t mapped_bytes;       /* of the window */
    uint32_t mapped_ranges;      /* in the window */
    uint32_t message_ranges;     /* message-only */
    uint64_t requests;           /* messages received from the peer */
    uint64_t protocol_errors;    /* of those, answered with an error or fatal */
    uint64_t deadline_expiries;  /* guest or peer were not in time */
    uint64_t unknown_replies;    /* replies with an unknown, answered or expired ID */
    uint64_t silences;           /* times that the guest answered nothing any more */
    uint64_t dropped_accesses;   /* to regions, answered without the guest because of that or of a reset */
} VvfuCoreState;

/* NULL: *error says why (a configuration value is out of range, /proc is not there, ...). The text is one line, valid
 * until the same thread calls this function again or ends. */
VvfuCore *vvfu_core_new(const VvfuCoreConfig *config, const VvfuPortOps *ops, void *opaque, const char **error);
void vvfu_core_free(VvfuCore *core); /* ends the session; calls the port for that */

/* virtio side */
uint64_t vvfu_core_device_features(const VvfuCore *core);            /* device-specific bits 0..23 */
void vvfu_core_device_config(const VvfuCore *core, uint8_t out[64]); /* device configuration space */
size_t vvfu_core_device_config_size(void);
void vvfu_core_driver_ok(VvfuCore *core, uint64_t now_ns);
void vvfu_core_driver_reset(VvfuCore *core, uint64_t now_ns); /* tokens of open chains are dead afterwards */
/* reply_capacity: writable bytes of the chain. The core completes each token once, now or later. */
void vvfu_core_control_request(VvfuCore *core, uint64_t now_ns, uint64_t token, const void *message, size_t length,
                               size_t reply_capacity);
/* Look before each chain of the control queue, and after every call when one was left there. */
bool vvfu_core_wants_control_requests(const VvfuCore *core);
void vvfu_core_reply(VvfuCore *core, uint64_t now_ns, unsigned queue, const void *message, size_t length);
void vvfu_core_request_buffers(VvfuCore *core, uint64_t now_ns, unsigned queue); /* the guest posted buffers */

/* peer side */
/* 0: serve it, and feed its data. Negative errno: refuse (the port closes the connection). */
int vvfu_core_peer_connected(VvfuCore *core, uint64_t now_ns, uint32_t pid, uint32_t uid, uint32_t gid);
/* What one recvmsg() returned, in order. Takes ownership of every fd. */
void vvfu_core_peer_data(VvfuCore *core, uint64_t now_ns, const void *data, size_t length, const int *fds,
                         size_t nfds);
void vvfu_core_peer_closed(VvfuCore *core, uint64_t now_ns, int error); /* error: 0 end of file, else errno */
bool vvfu_core_wants_peer_data(const VvfuCore *core);
void vvfu_core_send_drained(VvfuCore *core, uint64_t now_ns); /* send_backlog() went back to 0 */

/* interrupts; see the thread rule above */
void vvfu_core_doorbell_written(VvfuCore *core, unsigned index);
bool vvfu_core_doorbell_pending(const VvfuCore *core, unsigned index);
void vvfu_core_notification_fired(VvfuCore *core, uint64_t now_ns, unsigned index);

/* A line of the port itself, limited per kind and written by the log callback. */
void vvfu_core_log(VvfuCore *core, uint64_t now_ns, int level, const char *kind, const char *text);

/* time: UINT64_MAX when there is nothing to wait for */
uint64_t vvfu_core_next_deadline(const VvfuCore *core);
void vvfu_core_tick(VvfuCore *core, uint64_t now_ns);

void vvfu_core_state(const VvfuCore *core, VvfuCoreState *out);

/* PCI capability bodies (cap types 6 and 7), so that no port knows their layout. Return bytes used. */
size_t vvfu_core_doorbell_cap(uint8_t out[24], uint8_t bar, uint32_t offset, uint32_t doorbells);
size_t vvfu_core_notification_cap(uint8_t out[24], uint8_t bar, uint32_t offset);

#ifdef __cplusplus
}
#endif

#endif /* VVFU_CORE_H */
