/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * virtio-vfio-user: a PCI device of another VM, implemented in this one.
 *
 * This is the port of the device VMM core (vvfu_core.h) to QEMU. Socket, core
 * and deadlines belong to the AioContext of the device, which is the main
 * loop's or an iothread's, and to its lock; what the guest has (virtqueues,
 * interrupts, registers, QEMU's memory map) belongs to the BQL. Whoever has the
 * BQL may take the lock, never the other way round: with the lock, nobody waits
 * for a main loop that is blocked.
 *
 * The core calls the port back from inside of the vvfu_core_* functions, with
 * the lock held; effects that are expensive (memory transactions), must be seen
 * last (socket sends), or need the BQL are collected meanwhile, and carried out
 * by vvfu_settle().
 */
#ifndef HW_VIRTIO_VFIO_USER_H
#define HW_VIRTIO_VFIO_USER_H

#include "hw/virtio/virtio.h"
#include "hw/virtio/virtio-pci.h"
#include "qemu/event_notifier.h"
#include "qemu/main-loop.h"
#include "qemu/notify.h"
#include "qemu/thread.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "qemu/uuid.h"
#include "qapi/qapi-types-sockets.h"
#include "qom/object.h"
#include "system/iothread.h"
#include "system/runstate.h"
#include "arena.h"
#include "compat.h"
#include "path-lock.h"
#include "registers.h"
#include "vvfu/core/vvfu_core.h"

#define TYPE_VIRTIO_VFIO_USER "virtio-vfio-user-device"
OBJECT_DECLARE_SIMPLE_TYPE(VirtioVfioUser, VIRTIO_VFIO_USER)

#define TYPE_VIRTIO_VFIO_USER_PCI "virtio-vfio-user-pci-base"
OBJECT_DECLARE_SIMPLE_TYPE(VirtioVfioUserPCI, VIRTIO_VFIO_USER_PCI)

/* A page of the device specification, whatever the host's is. */
#define VVFU_PAGE_SIZE 4096u

/* Device specification, sections 3 and 5; the core reports the same. */
enum {
    VVFU_QUEUE_CONTROL = 0,
    VVFU_QUEUE_REQUEST = 1,
    VVFU_QUEUE_REPLY = 2,
    VVFU_QUEUES = 3,
    VVFU_QUEUE_SIZE = 256,
    VVFU_MAX_MESSAGE_SIZE = 256 * KiB,
    VVFU_MAX_DOORBELLS = 4096,
    VVFU_MAX_NOTIFICATIONS = 1024,
};

typedef struct VvfuDoorbell {
    int fd;                   /* borrowed from the core; -1: no target */
    EventNotifier *ioeventfd; /* KVM signals the target, or NULL */
} VvfuDoorbell;

typedef struct VvfuNotification {
    VirtioVfioUser *owner;
    EventNotifier notifier; /* a duplicate of the core's fd */
    bool watched;
    bool irqfd;      /* KVM raises the vector, the main loop does not watch */
    int virq;        /* the KVM route, with irqfd */
    uint16_t vector; /* VIRTIO_NO_VECTOR: none */
    /* the lock's: */
    bool changed; /* since vvfu_notifications_settle() */
    int next_fd;  /* then: what to watch from then on, or -1; owned */
} VvfuNotification;

struct VvfuChain; /* queues.c */
typedef QSIMPLEQ_HEAD(VvfuChainList, VvfuChain) VvfuChainList;

typedef struct VvfuMessage {
    QSIMPLEQ_ENTRY(VvfuMessage) next;
    size_t length;
    size_t sent;
    size_t nfds;
    int *fds; /* owned; closed with the message */
    uint8_t data[];
} VvfuMessage;

typedef struct VvfuPeer {
    VvfuPathLock path_lock;       /* unless the listener was passed */
    int listener;                 /* -1: none */
    bool listener_passed;         /* "fd": it outlives unlisten() */
    bool watch_listener;          /* what the event loop is told */
    bool listening;               /* the core wants peers */
    struct stat listener_stat;    /* of the path bound, to remove no other */
    QEMUTimer *accept_retry;      /* accept() ran out of a host resource */
    int fd;                       /* connection; -1: none */
    bool watch_read, watch_write; /* what the event loop is told */
    int error; /* of the connection, not yet told to the core */
    QSIMPLEQ_HEAD(, VvfuMessage) outbound;
    size_t backlog; /* bytes in outbound that the socket has not taken */
    uint8_t *receive_buffer;
} VvfuPeer;

struct VirtioVfioUser {
    VirtIODevice parent_obj;

    /* properties */
    SocketAddress *socket;
    uint64_t window_size;
    uint64_t region_memory_size;
    uint32_t doorbell_count;
    uint32_t notification_count;
    QemuUUID uuid;
    bool trust_peer_memory;
    uint32_t unmap_timeout;  /* ms */
    uint32_t access_timeout; /* ms */
    uint16_t virtio_id;
    IOThread *iothread; /* NULL: the main loop */

    PCIDevice *pci; /* the function around the device, from realize on */
    const MemoryRegionOps *virtio_common_ops; /* of the common structure */
    MemoryRegionOps common_ops;               /* with our check */
    PCIConfigWriteFunc *parent_config_write;
    Error *migration_blocker;
    Notifier exit_notifier;

    /* the core: under the lock, but for queries of what never changes */
    QemuMutex lock;
    AioContext *context; /* where socket and deadlines are */
    VvfuCore *core;
    bool unrealized; /* the core is gone; written under BQL and lock */
    QEMUTimer *deadline;
    uint64_t armed_deadline;
    bool break_pending; /* the core says so, the guest does not know yet */
    bool core_knows_broken; /* the BQL's */
    QEMUBH *resume;         /* in the main loop: what needs the BQL */

    /* the time while the VM is stopped */
    VMChangeStateEntry *vm_state;
    bool paused;
    uint64_t unanswered_before; /* this pause */
    uint64_t paused_requests;   /* in earlier ones */

    /* queues; the BQL's */
    VirtQueue *queues[VVFU_QUEUES];
    bool driver_ok; /* chains may be taken */
    bool in_queues; /* they are at work, perhaps further up the stack */
    bool saved_engaged_in_io;
    bool want_kicks[VVFU_QUEUES]; /* what the guest is told */
    uint32_t notify_queues; /* bit per queue: used buffers to announce */
    uint8_t *message;       /* VVFU_MAX_MESSAGE_SIZE bytes, private copies */
    /* the lock's */
    GHashTable *control_chains; /* token (in the value) -> VvfuChain */
    uint64_t last_token;
    bool control_left; /* in the controlq: the core did not want more */
    VvfuChainList request_buffers; /* posted, empty */
    VvfuChainList used_chains;     /* filled, to give back */

    VvfuPeer peer;

    /* window */
    MemoryRegion bar_window;           /* BAR 2 */
    MemoryRegion window_memory;        /* in bar_window */
    MemoryRegion region_memory_region; /* in the transport's BAR 4 */
    VvfuArena window;
    VvfuArena region_memory; /* host is NULL if its size is 0 */
    bool in_transaction;

    /* doorbells and notifications */
    MemoryRegion bar_interrupts; /* BAR 0 */
    VvfuRegisters doorbell_page;
    VvfuRegisters notification_page;
    VvfuDoorbell *doorbells; /* until the function is finalized */
    int aio_file;            /* -1: no AIO */
    unsigned long aio_context;
    GSList *retired_ioeventfds;      /* KVM may know them until the commit */
    VvfuNotification *notifications; /* as doorbells */
    bool notifications_changed; /* the lock's */
    uint16_t notification_select;
};

struct VirtioVfioUserPCI {
    VirtIOPCIProxy parent_obj;
    VirtioVfioUser vdev;
};

static inline uint64_t vvfu_now(void)
{
    /* CLOCK_MONOTONIC, which goes on while the VM is stopped */
    return qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
}

/* ---- device.c ---- */

/* The properties' ranges; the socket and the BAR are checked elsewhere. */
bool vvfu_check_properties(VirtioVfioUser *s, Error **errp);

/* ---- state.c: read-only properties of the realized function ---- */

void vvfu_state_publish(VirtioVfioUser *s);
void vvfu_state_unpublish(VirtioVfioUser *s);

/* ---- pci.c ---- */

/* Whether the driver accepted what it must, and nothing else than offered. */
bool vvfu_features_fit(VirtioVfioUser *s);

/* ---- port.c: the core ---- */

bool vvfu_core_create(VirtioVfioUser *s, Error **errp);
/* Ends the session, and the core. */
void vvfu_core_stop(VirtioVfioUser *s);
/*
 * The lock, around every vvfu_core_* call but queries of what never changes. Do
 * not nest, and do not touch guest memory in between. vvfu_settle() is due
 * afterwards.
 */
void vvfu_core_begin(VirtioVfioUser *s);
void vvfu_core_end(VirtioVfioUser *s);
/*
 * Carries out what calls of the core left: once for all that an event brought.
 * The device may be gone afterwards, unless the caller holds a reference.
 */
void vvfu_settle(VirtioVfioUser *s);
/*
 * begin, and end and settle: around the calls for one event. False: the device
 * is unrealized, there is no core and nothing to leave.
 */
bool vvfu_enter(VirtioVfioUser *s);
void vvfu_leave(VirtioVfioUser *s);
/* What messages to the user call this device. */
const char *vvfu_id(const VirtioVfioUser *s);

/* ---- queues.c ---- */

void vvfu_queues_init(VirtioVfioUser *s);
void vvfu_queues_cleanup(VirtioVfioUser *s);
/* DRIVER_OK is set: chains may be taken, until vvfu_queues_stop(). */
void vvfu_queues_start(VirtioVfioUser *s);
void vvfu_queues_stop(VirtioVfioUser *s);
/* Takes what the guest has sent. */
void vvfu_queues_run(VirtioVfioUser *s);
/* With the lock: whether the core did something that the guest must see. */
bool vvfu_queues_unsettled(VirtioVfioUser *s);
/* True once the core wants what was left in the controlq; the lock is held. */
bool vvfu_queues_resumable(VirtioVfioUser *s);
/*
 * Gives back what was used, and takes buffers for requests. True: there is
 * more to settle.
 */
bool vvfu_queues_settle(VirtioVfioUser *s);
/* Forgets the chains of a queue that is being reset. */
void vvfu_queue_drop_chains(VirtioVfioUser *s, unsigned queue);
int vvfu_push_request(void *opaque, unsigned queue, const void *message,
                      size_t length);
void vvfu_complete_control(void *opaque, uint64_t token, const void *reply,
                           size_t length);

/* ---- peer.c: the socket ---- */

/* Checks the socket property and takes over a passed fd. */
bool vvfu_peer_init(VirtioVfioUser *s, Error **errp);
/* With the lock: the context hears of nothing any more. */
void vvfu_peer_stop(VirtioVfioUser *s);
/* When nothing of it runs in the context any more. */
void vvfu_peer_cleanup(VirtioVfioUser *s);
/* The process ends: removes what is ours beside and at the socket path. */
void vvfu_peer_exit(VirtioVfioUser *s);
/* What vvfu_peer_flush() found. */
typedef enum {
    VVFU_FLUSH_DONE,
    VVFU_FLUSH_DRAINED,
    VVFU_FLUSH_FAILED
} VvfuFlush;
VvfuFlush vvfu_peer_flush(VirtioVfioUser *s);
void vvfu_peer_rearm(VirtioVfioUser *s);
int vvfu_listen(void *opaque);
void vvfu_unlisten(void *opaque);
void vvfu_send(void *opaque, const void *message, size_t length, const int *fds,
               size_t nfds);
size_t vvfu_send_backlog(void *opaque);
void vvfu_close_peer(void *opaque);

/* ---- window.c: window and region memory ---- */

/* Makes bar_window. */
bool vvfu_window_init(VirtioVfioUser *s, Error **errp);
/* Makes region_memory_region, unless its size is 0. */
bool vvfu_region_memory_init(VirtioVfioUser *s, Error **errp);
/* Takes everything out of window and region memory that is still there. */
void vvfu_window_cleanup(VirtioVfioUser *s);
/* When no one can use their memory regions any more. */
void vvfu_window_finalize(VirtioVfioUser *s);
/* Bytes of BAR 2: the window, up to a power of two. */
uint64_t vvfu_window_bar_size(const VirtioVfioUser *s);
/* Where region memory is in a BAR that begins with `structures` other bytes. */
uint64_t vvfu_region_memory_offset(const VirtioVfioUser *s,
                                   uint64_t structures);
/* Called by the core; none of these needs the BQL. */
int vvfu_window_map(void *opaque, uint64_t window_offset, uint64_t size,
                    int protection, int fd, uint64_t fd_offset);
void vvfu_window_unmap(void *opaque, uint64_t window_offset, uint64_t size);
int vvfu_region_memory_map(void *opaque, uint64_t offset, uint64_t size, int fd,
                           uint64_t fd_offset);
void vvfu_region_memory_unmap(void *opaque, uint64_t offset, uint64_t size);
/* Memory changes until vvfu_transaction_end() cost one update together. */
void vvfu_transaction_begin(VirtioVfioUser *s);
void vvfu_transaction_end(VirtioVfioUser *s);

/* ---- doorbells.c: BAR 0, first pages ---- */

void vvfu_doorbells_init(VirtioVfioUser *s);
/* Disconnects them. */
void vvfu_doorbells_cleanup(VirtioVfioUser *s);
uint32_t vvfu_doorbells_size(const VirtioVfioUser *s);
void vvfu_doorbells_free_retired(VirtioVfioUser *s);
void vvfu_doorbell_set(void *opaque, unsigned index, int fd);

/* ---- signal.c ---- */

void vvfu_signal_init(VirtioVfioUser *s);
void vvfu_signal_cleanup(VirtioVfioUser *s);
void vvfu_signal_eventfd(void *opaque, int fd);

/* ---- notifications.c: BAR 0, last page ---- */

void vvfu_notifications_init(VirtioVfioUser *s);
/* Disconnects them. */
void vvfu_notifications_cleanup(VirtioVfioUser *s);
/* Device reset: no notification has a vector any more. */
void vvfu_notifications_reset(VirtioVfioUser *s);
void vvfu_notification_set(void *opaque, unsigned index, int fd);
/* Carries out what vvfu_notification_set() said. */
void vvfu_notifications_settle(VirtioVfioUser *s);
/* Lets KVM raise vectors by itself; needs MSI-X, so after device_plugged. */
void vvfu_notifications_use_irqfds(VirtioVfioUser *s);
void vvfu_notifications_unuse_irqfds(VirtioVfioUser *s);

#endif
