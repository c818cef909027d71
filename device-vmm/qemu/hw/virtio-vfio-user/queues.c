/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * virtio-vfio-user: the virtqueues. What a guest provides is copied once into
 * private memory; the core sees only the copy.
 *
 * Rings and buffers are wherever the guest says, registers of any device
 * included, so nothing here is done while a call of the core is in progress, or
 * without the BQL: chains are taken before, and what the core did with them is
 * settled after. In between the core fills mapped memory of the host.
 */
#include "qemu/osdep.h"
#include "qemu/iov.h"
#include "qemu/units.h"
#include "hw/pci/pci_device.h"
#include "virtio-vfio-user.h"
#include "trace.h"

/* A chain that the core may fill, or has filled. */
typedef struct VvfuChain {
    QSIMPLEQ_ENTRY(VvfuChain) next;
    unsigned queue;
    uint64_t token; /* of a controlq chain */
    VirtQueueElement *element;
    size_t written;
} VvfuChain;

/* ---- taking ---- */

/*
 *= VVFU-INIT-4
 *# The device MUST NOT take buffers from a queue unless FEATURES_OK and
 *# DRIVER_OK are set.
 */
static bool vvfu_may_take(VirtioVfioUser *s)
{
    return s->driver_ok && !s->unrealized && !s->break_pending &&
           !VIRTIO_DEVICE(s)->broken;
}

static void vvfu_want_kicks(VirtioVfioUser *s, unsigned queue, bool on)
{
    if (s->want_kicks[queue] != on) {
        s->want_kicks[queue] = on;
        trace_virtio_vfio_user_kicks(queue, on);
        virtio_queue_set_notification(s->queues[queue], on);
    }
}

/*
 * The next chain, or NULL: the guest kicks when there is one, if it is asked
 * to. As long as there are chains kicks say nothing new.
 */
static VirtQueueElement *vvfu_pop(VirtioVfioUser *s, unsigned queue, bool ask)
{
    VirtQueue *vq = s->queues[queue];
    VirtQueueElement *element = virtqueue_pop(vq, sizeof(VirtQueueElement));

    if (!element && ask && vvfu_may_take(s)) {
        vvfu_want_kicks(s, queue, true);
        /* It may have come before the guest could see that. */
        element = virtqueue_pop(vq, sizeof(VirtQueueElement));
    }
    if (element) {
        vvfu_want_kicks(s, queue, false);
    }
    return element;
}

static void vvfu_detach(VirtioVfioUser *s, unsigned queue,
                        VirtQueueElement *element)
{
    virtqueue_detach_element(s->queues[queue], element, 0);
    g_free(element);
}

static VvfuChain *vvfu_chain_new(unsigned queue, VirtQueueElement *element)
{
    VvfuChain *chain = g_new0(VvfuChain, 1);

    chain->queue = queue;
    chain->element = element;
    return chain;
}

static void vvfu_chain_drop(VirtioVfioUser *s, VvfuChain *chain)
{
    vvfu_detach(s, chain->queue, chain->element);
    g_free(chain);
}

/* Forgets those of one queue. */
static void vvfu_drop_list(VirtioVfioUser *s, VvfuChainList *list,
                           unsigned queue)
{
    VvfuChainList kept = QSIMPLEQ_HEAD_INITIALIZER(kept);
    VvfuChain *chain;

    while ((chain = QSIMPLEQ_FIRST(list))) {
        QSIMPLEQ_REMOVE_HEAD(list, next);
        if (chain->queue == queue) {
            vvfu_chain_drop(s, chain);
        } else {
            QSIMPLEQ_INSERT_TAIL(&kept, chain, next);
        }
    }
    QSIMPLEQ_CONCAT(list, &kept);
}

/* Returns the length of the copy in s->message, or -1: the device is broken. */
static ssize_t vvfu_copy_message(VirtioVfioUser *s, VirtQueueElement *element)
{
    size_t length = iov_size(element->out_sg, element->out_num);

    if (length > VVFU_MAX_MESSAGE_SIZE) {
        virtio_error(VIRTIO_DEVICE(s), "%s: the guest sent %zu bytes at once",
                     vvfu_id(s), length);
        return -1;
    }
    return iov_to_buf(element->out_sg, element->out_num, 0, s->message, length);
}

static void vvfu_control_chain(VirtioVfioUser *s, VirtQueueElement *element)
{
    size_t capacity = iov_size(element->in_sg, element->in_num);
    ssize_t length = vvfu_copy_message(s, element);
    VvfuChain *chain;

    if (length < 0 || !vvfu_may_take(s)) {
        vvfu_detach(s, VVFU_QUEUE_CONTROL, element);
        return;
    }
    chain = vvfu_chain_new(VVFU_QUEUE_CONTROL, element);
    vvfu_core_begin(s);
    chain->token = ++s->last_token;
    trace_virtio_vfio_user_control_request(chain->token, length, capacity);
    g_hash_table_insert(s->control_chains, &chain->token, chain);
    vvfu_core_control_request(s->core, vvfu_now(), s->last_token, s->message,
                              length, capacity);
    vvfu_core_end(s);
}

static void vvfu_reply_chain(VirtioVfioUser *s, VirtQueueElement *element)
{
    ssize_t length = vvfu_copy_message(s, element);

    if (length < 0 || !vvfu_may_take(s)) {
        vvfu_detach(s, VVFU_QUEUE_REPLY, element);
        return;
    }
    virtqueue_push(s->queues[VVFU_QUEUE_REPLY], element, 0);
    g_free(element);
    s->notify_queues |= BIT(VVFU_QUEUE_REPLY);
    trace_virtio_vfio_user_reply(length);
    if (!vvfu_may_take(s)) {
        return; /* the guest ended it with that write */
    }
    vvfu_core_begin(s);
    vvfu_core_reply(s->core, vvfu_now(), VVFU_QUEUE_REPLY, s->message, length);
    vvfu_core_end(s);
}

/*
 * A guest can make its own DMA reach this function's registers, this code
 * included. QEMU's guard refuses most of it; in_queues does the rest.
 */
static bool vvfu_queues_begin(VirtioVfioUser *s)
{
    DeviceState *pci = DEVICE(s->pci);

    if (s->in_queues || s->unrealized) {
        return false;
    }
    object_ref(OBJECT(s->pci));
    s->in_queues = true;
    s->saved_engaged_in_io = pci->mem_reentrancy_guard.engaged_in_io;
    pci->mem_reentrancy_guard.engaged_in_io = true;
    return true;
}

static void vvfu_queues_end(VirtioVfioUser *s)
{
    DeviceState *pci = DEVICE(s->pci);

    pci->mem_reentrancy_guard.engaged_in_io = s->saved_engaged_in_io;
    s->in_queues = false;
    if (s->unrealized) {
        vvfu_queues_cleanup(s); /* it was too early */
    }
    object_unref(OBJECT(s->pci));
}

typedef void VvfuChainHandler(VirtioVfioUser *, VirtQueueElement *);

/*
 *= VVFU-QUEUE-13
 *= VVFU-QUEUE-12
 *# The device MUST hold a bounded number of bytes of DMA_READ and DMA_WRITE
 *# requests: it leaves further requests in the controlq instead.
 */
static bool vvfu_wants_chains(VirtioVfioUser *s, unsigned queue)
{
    bool wants = true;

    if (queue == VVFU_QUEUE_CONTROL) {
        vvfu_core_begin(s);
        wants = vvfu_core_wants_control_requests(s->core);
        s->control_left = !wants; /* vvfu_settle_context() comes back to it */
        vvfu_core_end(s);
    }
    return wants;
}

bool vvfu_queues_resumable(VirtioVfioUser *s)
{
    bool resumable =
        s->control_left && vvfu_core_wants_control_requests(s->core);

    s->control_left &= !resumable;
    return resumable;
}

/* Takes at most one queue full, so that a guest cannot keep QEMU here. */
static void vvfu_take_chains(VirtioVfioUser *s, unsigned queue,
                             VvfuChainHandler *handle)
{
    VirtQueueElement *element;

    for (int i = 0; i < VVFU_QUEUE_SIZE; i++) {
        element = vvfu_may_take(s) && vvfu_wants_chains(s, queue)
                      ? vvfu_pop(s, queue, true)
                      : NULL;
        if (!element) {
            return;
        }
        handle(s, element);
    }
    if (!s->unrealized) {
        qemu_bh_schedule(s->resume);
    }
}

static void vvfu_serve_queues(VirtioVfioUser *s, uint32_t queues)
{
    object_ref(OBJECT(s->pci));
    if (vvfu_queues_begin(s)) {
        if (queues & BIT(VVFU_QUEUE_CONTROL)) {
            vvfu_take_chains(s, VVFU_QUEUE_CONTROL, vvfu_control_chain);
        }
        if (queues & BIT(VVFU_QUEUE_REPLY)) {
            vvfu_take_chains(s, VVFU_QUEUE_REPLY, vvfu_reply_chain);
        }
        vvfu_queues_end(s);
        vvfu_settle(s);
    } else if (!s->unrealized) {
        qemu_bh_schedule(s->resume); /* a kick by the guest's DMA */
    }
    object_unref(OBJECT(s->pci));
}

static void vvfu_kicked(VirtIODevice *vdev, VirtQueue *vq)
{
    vvfu_serve_queues(VIRTIO_VFIO_USER(vdev), BIT(virtio_get_queue_index(vq)));
}

void vvfu_queues_run(VirtioVfioUser *s)
{
    vvfu_serve_queues(s, BIT(VVFU_QUEUE_CONTROL) | BIT(VVFU_QUEUE_REPLY));
}

/* ---- what the core does with chains: in a call of it ---- */

int vvfu_push_request(void *opaque, unsigned queue, const void *message,
                      size_t length)
{
    VirtioVfioUser *s = opaque;
    VvfuChain *chain = QSIMPLEQ_FIRST(&s->request_buffers);
    VirtQueueElement *element;
    int ret = 0;

    if (queue != VVFU_QUEUE_REQUEST || !chain) {
        trace_virtio_vfio_user_request(length, -EAGAIN);
        return -EAGAIN;
    }
    QSIMPLEQ_REMOVE_HEAD(&s->request_buffers, next);
    element = chain->element;
    if (iov_size(element->in_sg, element->in_num) < length) {
        length = 0;
        ret = -EMSGSIZE;
    }
    chain->written =
        iov_from_buf(element->in_sg, element->in_num, 0, message, length);
    QSIMPLEQ_INSERT_TAIL(&s->used_chains, chain, next);
    trace_virtio_vfio_user_request(length, ret);
    return ret;
}

void vvfu_complete_control(void *opaque, uint64_t token, const void *reply,
                           size_t length)
{
    VirtioVfioUser *s = opaque;
    VvfuChain *chain = g_hash_table_lookup(s->control_chains, &token);
    VirtQueueElement *element;

    trace_virtio_vfio_user_control_complete(token, length);
    if (!chain) {
        return; /* the queue was reset meanwhile */
    }
    g_hash_table_remove(s->control_chains, &token);
    element = chain->element;
    chain->written =
        iov_from_buf(element->in_sg, element->in_num, 0, reply, length);
    QSIMPLEQ_INSERT_TAIL(&s->used_chains, chain, next);
}

/* ---- settling ---- */

static VvfuChain *vvfu_next_used(VirtioVfioUser *s)
{
    VvfuChain *chain;

    vvfu_core_begin(s);
    chain = QSIMPLEQ_FIRST(&s->used_chains);
    if (chain) {
        QSIMPLEQ_REMOVE_HEAD(&s->used_chains, next);
    }
    vvfu_core_end(s);
    return chain;
}

static void vvfu_push_used(VirtioVfioUser *s)
{
    VvfuChain *chain;

    while (!s->unrealized && (chain = vvfu_next_used(s))) {
        virtqueue_push(s->queues[chain->queue], chain->element, chain->written);
        s->notify_queues |= BIT(chain->queue);
        g_free(chain->element);
        g_free(chain);
    }
}

/* One interrupt per queue, however many buffers were used. */
static void vvfu_queues_notify(VirtioVfioUser *s)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(s);

    /* The interrupt can be what unplugs the device. */
    for (unsigned i = 0; i < VVFU_QUEUES && !s->unrealized; i++) {
        if (s->notify_queues & BIT(i)) {
            s->notify_queues &= ~BIT(i);
            virtio_notify(vdev, s->queues[i]);
        }
    }
}

static bool vvfu_has_buffers(VirtioVfioUser *s)
{
    bool has;

    vvfu_core_begin(s);
    has = !QSIMPLEQ_EMPTY(&s->request_buffers);
    vvfu_core_end(s);
    return has;
}

/* All that the guest has posted. True if there are new ones. */
static bool vvfu_take_buffers(VirtioVfioUser *s)
{
    VvfuChainList taken = QSIMPLEQ_HEAD_INITIALIZER(taken);
    bool ask = !vvfu_has_buffers(s);
    VirtQueueElement *element;
    VvfuChain *chain;
    bool any;

    for (int i = 0; i < VIRTQUEUE_MAX_SIZE && vvfu_may_take(s); i++) {
        element = vvfu_pop(s, VVFU_QUEUE_REQUEST, ask);
        if (!element) {
            break;
        }
        chain = vvfu_chain_new(VVFU_QUEUE_REQUEST, element);
        QSIMPLEQ_INSERT_TAIL(&taken, chain, next);
        ask = false;
    }
    any = !QSIMPLEQ_EMPTY(&taken);
    if (any && vvfu_may_take(s)) {
        vvfu_core_begin(s);
        QSIMPLEQ_CONCAT(&s->request_buffers, &taken);
        vvfu_core_request_buffers(s->core, vvfu_now(), VVFU_QUEUE_REQUEST);
        vvfu_core_end(s);
    } else {
        /* The device broke, or the guest reset it by what it had posted. */
        vvfu_drop_list(s, &taken, VVFU_QUEUE_REQUEST);
    }
    return any;
}

static bool vvfu_take_break(VirtioVfioUser *s)
{
    bool pending;

    vvfu_core_begin(s);
    pending = s->break_pending && !s->unrealized;
    if (pending) {
        s->break_pending = false;
        s->core_knows_broken = true;
    }
    vvfu_core_end(s);
    return pending;
}

bool vvfu_queues_unsettled(VirtioVfioUser *s)
{
    return !QSIMPLEQ_EMPTY(&s->used_chains) || s->break_pending;
}

bool vvfu_queues_settle(VirtioVfioUser *s)
{
    bool more;

    if (!vvfu_queues_begin(s)) {
        return false; /* whoever is at it goes on */
    }
    vvfu_push_used(s);
    if (vvfu_take_break(s)) {
        /* The core's log has the reason. */
        virtio_error(VIRTIO_DEVICE(s), "%s: the guest must reset the device",
                     vvfu_id(s));
    }
    vvfu_queues_notify(s);
    more = vvfu_take_buffers(s) || s->notify_queues;
    vvfu_core_begin(s);
    more |= vvfu_queues_unsettled(s);
    vvfu_core_end(s);
    vvfu_queues_end(s);
    return more;
}

/* ---- life ---- */

void vvfu_queue_drop_chains(VirtioVfioUser *s, unsigned queue)
{
    GHashTableIter iter;
    gpointer chain;

    /* Nothing was written into them: no memory but the host's is touched. */
    vvfu_core_begin(s);
    vvfu_drop_list(s, &s->used_chains, queue);
    if (queue == VVFU_QUEUE_REQUEST) {
        vvfu_drop_list(s, &s->request_buffers, queue);
    }
    if (queue == VVFU_QUEUE_CONTROL) {
        g_hash_table_iter_init(&iter, s->control_chains);
        while (g_hash_table_iter_next(&iter, NULL, &chain)) {
            g_hash_table_iter_steal(&iter); /* its key is in it */
            vvfu_chain_drop(s, chain);
        }
    }
    vvfu_core_end(s);
    s->want_kicks[queue] = true;
    s->notify_queues &= ~BIT(queue);
}

void vvfu_queues_start(VirtioVfioUser *s)
{
    s->driver_ok = true;
    for (unsigned i = 0; i < VVFU_QUEUES; i++) {
        /* What the rings say may be of the time before vvfu_queues_stop(). */
        s->want_kicks[i] = false;
        vvfu_want_kicks(s, i, true);
    }
}

void vvfu_queues_stop(VirtioVfioUser *s)
{
    s->driver_ok = false;
    for (unsigned i = 0; i < VVFU_QUEUES; i++) {
        vvfu_queue_drop_chains(s, i);
    }
}

void vvfu_queues_init(VirtioVfioUser *s)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(s);

    QSIMPLEQ_INIT(&s->request_buffers);
    QSIMPLEQ_INIT(&s->used_chains);
    s->control_chains = g_hash_table_new(g_int64_hash, g_int64_equal);
    s->message = g_malloc(VVFU_MAX_MESSAGE_SIZE);
    /*
     *= VVFU-QUEUE-1
     *# The device MUST provide the queues controlq, requestq and replyq with
     *# the numbers 0, 1 and 2.
     */
    /* QEMU 10.0.13 offers 1024 entries whatever is asked for. */
    for (unsigned i = 0; i < VVFU_QUEUES; i++) {
        s->queues[i] = virtio_add_queue(vdev, VVFU_QUEUE_SIZE, vvfu_kicked);
        s->want_kicks[i] = true;
    }
}

void vvfu_queues_cleanup(VirtioVfioUser *s)
{
    if (s->in_queues) {
        return; /* the guest's DMA unplugs the function: vvfu_queues_end() */
    }
    vvfu_queues_stop(s);
    g_hash_table_destroy(s->control_chains);
    g_free(s->message);
    for (unsigned i = 0; i < VVFU_QUEUES; i++) {
        virtio_delete_queue(s->queues[i]);
    }
}
