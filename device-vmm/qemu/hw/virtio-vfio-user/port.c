/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * virtio-vfio-user: what the device VMM core asks of QEMU as a whole.
 */
#include "qemu/osdep.h"
#include "qemu/error-report.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "hw/pci/pci_device.h"
#include "virtio-vfio-user.h"
#include "trace.h"

/*
 * Rounds of "carry out, tell the core" in one vvfu_settle(); the main loop does
 * the rest.
 */
#define VVFU_MAX_ROUNDS 16

const char *vvfu_id(const VirtioVfioUser *s)
{
    const char *id = DEVICE(s->pci)->id;

    return id ? id : TYPE_VIRTIO_VFIO_USER_PCI;
}

static void vvfu_device_broken(void *opaque, const char *reason)
{
    VirtioVfioUser *s = opaque;

    trace_virtio_vfio_user_broken(reason);
    s->break_pending = true;
}

static void vvfu_log(void *opaque, int level, const char *text)
{
    VirtioVfioUser *s = opaque;
    const char *id = vvfu_id(s);

    trace_virtio_vfio_user_log(level, text);
    switch (level) {
    case VVFU_LOG_ERROR:
        error_report("%s: %s", id, text);
        break;
    case VVFU_LOG_WARNING:
        warn_report("%s: %s", id, text);
        break;
    case VVFU_LOG_INFO:
        info_report("%s: %s", id, text);
        break;
    default: /* debug: the trace event says it */
        break;
    }
}

static void vvfu_state_changed(void *opaque)
{
    VirtioVfioUser *s = opaque;
    VvfuCoreState state;

    if (trace_event_get_state_backends(TRACE_VIRTIO_VFIO_USER_STATE) &&
        s->core) {
        vvfu_core_state(s->core, &state);
        trace_virtio_vfio_user_state(state.state, state.epoch);
    }
}

static const VvfuPortOps vvfu_port_ops = {
    .listen = vvfu_listen,
    .unlisten = vvfu_unlisten,
    .send = vvfu_send,
    .send_backlog = vvfu_send_backlog,
    .close_peer = vvfu_close_peer,
    .push_request = vvfu_push_request,
    .complete_control = vvfu_complete_control,
    .device_broken = vvfu_device_broken,
    .window_map = vvfu_window_map,
    .window_unmap = vvfu_window_unmap,
    .region_memory_map = vvfu_region_memory_map,
    .region_memory_unmap = vvfu_region_memory_unmap,
    .doorbell_set = vvfu_doorbell_set,
    .notification_set = vvfu_notification_set,
    .signal_eventfd = vvfu_signal_eventfd,
    .log = vvfu_log,
    .state_changed = vvfu_state_changed,
};

void vvfu_core_begin(VirtioVfioUser *s)
{
    qemu_mutex_lock(&s->lock);
}

void vvfu_core_end(VirtioVfioUser *s)
{
    qemu_mutex_unlock(&s->lock);
}

bool vvfu_enter(VirtioVfioUser *s)
{
    vvfu_core_begin(s);
    if (s->unrealized) {
        vvfu_core_end(s);
        return false;
    }
    /* s lives inside of the PCI function. */
    object_ref(OBJECT(s->pci));
    return true;
}

void vvfu_leave(VirtioVfioUser *s)
{
    vvfu_core_end(s);
    vvfu_settle(s);
    object_unref(OBJECT(s->pci));
}

static void vvfu_arm_deadline(VirtioVfioUser *s)
{
    uint64_t next = vvfu_core_next_deadline(s->core);

    /*
     * A timer that fires too early finds nothing to do and is set anew; that
     * is cheaper than to move it with every answer of the guest.
     */
    if (next < s->armed_deadline) {
        s->armed_deadline = next;
        timer_mod_ns(s->deadline, MIN(next, INT64_MAX));
    }
}

/* The core's answer to what became of the last flush. False: nothing more. */
static bool vvfu_after_flush(VirtioVfioUser *s, VvfuFlush result)
{
    switch (result) {
    case VVFU_FLUSH_DRAINED:
        vvfu_core_send_drained(s->core, vvfu_now());
        return true;
    case VVFU_FLUSH_FAILED:
        vvfu_core_peer_closed(s->core, vvfu_now(), s->peer.error);
        vvfu_close_peer(s);
        return true;
    default:
        return false;
    }
}

static void vvfu_settle_peer(VirtioVfioUser *s)
{
    bool more = true;

    for (int round = 0; more && round < VVFU_MAX_ROUNDS; round++) {
        /* Memory first: a reply can promise that it is gone. */
        vvfu_transaction_end(s);
        more = vvfu_after_flush(s, vvfu_peer_flush(s));
    }
    vvfu_transaction_end(s);
    vvfu_peer_rearm(s);
    vvfu_arm_deadline(s);
}

static void vvfu_check_broken(VirtioVfioUser *s)
{
    if (VIRTIO_DEVICE(s)->broken && !s->core_knows_broken) {
        s->core_knows_broken = true;
        vvfu_core_begin(s);
        vvfu_core_log(s->core, vvfu_now(), VVFU_LOG_ERROR, "a queue broke",
                      "the guest's virtqueues are malformed: the session ends "
                      "until the guest resets the device");
        vvfu_core_driver_reset(s->core, vvfu_now());
        vvfu_core_end(s);
    }
}

/* What needs the lock only; the main loop is told of what needs the BQL. */
static void vvfu_settle_context(VirtioVfioUser *s)
{
    vvfu_core_begin(s);
    if (!s->unrealized) {
        vvfu_settle_peer(s);
        if (!bql_locked() &&
            (vvfu_queues_unsettled(s) || s->notifications_changed)) {
            qemu_bh_schedule(s->resume);
        }
        if (vvfu_queues_resumable(s)) {
            qemu_bh_schedule(s->resume);
        }
    }
    vvfu_core_end(s);
}

/*
 * Interrupts go where the guest says, config space of the slot included: the
 * device may be unplugged behind each of these steps.
 */
void vvfu_settle(VirtioVfioUser *s)
{
    bool more = true;

    trace_virtio_vfio_user_settle();
    if (!bql_locked()) {
        vvfu_settle_context(s);
        return;
    }
    for (int round = 0; more && round < VVFU_MAX_ROUNDS; round++) {
        if (!s->unrealized) {
            vvfu_check_broken(s);
        }
        vvfu_settle_context(s);
        vvfu_notifications_settle(s);
        more = vvfu_queues_settle(s);
    }
    if (more && !s->unrealized) {
        qemu_bh_schedule(s->resume);
    }
}

static void vvfu_deadline_passed(void *opaque)
{
    VirtioVfioUser *s = opaque;

    if (!vvfu_enter(s)) {
        return;
    }
    s->armed_deadline = UINT64_MAX;
    vvfu_core_tick(s->core, vvfu_now());
    vvfu_leave(s);
}

bool vvfu_core_create(VirtioVfioUser *s, Error **errp)
{
    const char *error = NULL;
    VvfuCoreConfig config = {
        .abi_version = VVFU_CORE_ABI_VERSION,
        .window_size = s->window_size,
        .region_memory_size = s->region_memory_size,
        .doorbells = s->doorbell_count,
        .notifications = s->notification_count,
        .trust_peer_memory = s->trust_peer_memory,
        .unmap_timeout_ms = s->unmap_timeout,
        .access_timeout_ms = s->access_timeout,
    };

    memcpy(config.uuid, s->uuid.data, sizeof(config.uuid));
    s->core = vvfu_core_new(&config, &vvfu_port_ops, s, &error);
    if (!s->core) {
        error_setg(errp, "virtio-vfio-user: %s", error);
        return false;
    }
    s->armed_deadline = UINT64_MAX;
    s->deadline = aio_timer_new(s->context, QEMU_CLOCK_REALTIME, SCALE_NS,
                                vvfu_deadline_passed, s);
    return true;
}

static void vvfu_context_is_idle(void *opaque)
{
    qemu_event_set(opaque);
}

/*
 * Waits until callbacks of ours that the context has begun are over. In the
 * main loop's they have the BQL, so none is under way but further up the stack.
 * The iothread waits for nobody: see the rule in virtio-vfio-user.h.
 */
static void vvfu_context_drain(VirtioVfioUser *s)
{
    QemuEvent idle;

    if (s->iothread) {
        qemu_event_init(&idle, false);
        aio_bh_schedule_oneshot(s->context, vvfu_context_is_idle, &idle);
        qemu_event_wait(&idle);
        qemu_event_destroy(&idle);
    }
}

void vvfu_core_stop(VirtioVfioUser *s)
{
    vvfu_core_begin(s);
    vvfu_core_free(s->core);
    s->core = NULL;
    vvfu_peer_stop(s);
    timer_del(s->deadline);
    vvfu_transaction_end(s);
    s->unrealized = true;
    vvfu_core_end(s);
    vvfu_context_drain(s);
    timer_free(s->deadline);
    s->deadline = NULL;
}
