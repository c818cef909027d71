/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * virtio-vfio-user: the virtqueues. What a guest provides is copied once into
 * private memory; the core sees only the copy.
 */
#include "qemu/osdep.h"
#include "qemu/iov.h"
#include "qemu/units.h"
#include "virtio-vfio-user.h"
#include "trace.h"

/* A controlq chain that the core has not answered yet. */
typedef struct VvfuChain {
    uint64_t token;
    VirtQueueElement *element;
} VvfuChain;

/* Returns the length of the copy in s->message, or -1: the device is broken. */
static ssize_t vvfu_copy_message(VirtioVfioUser *s, VirtQueueElement *element)
{
    size_t length = iov_size(element->out_sg, element->out_num);

    if (length > VVFU_MAX_MESSAGE_SIZE) {
        g_autofree char *text =
            g_strdup_printf("the guest sent a message of %zu bytes", length);

        vvfu_core_log(s->core, vvfu_now(), VVFU_LOG_ERROR,
                      "a message was too long", text);
        vvfu_mark_broken(s);
        return -1;
    }
    return iov_to_buf(element->out_sg, element->out_num, 0, s->message, length);
}

static void vvfu_detach(VirtQueue *vq, VirtQueueElement *element)
{
    virtqueue_detach_element(vq, element, 0);
    g_free(element);
}

static void vvfu_control_chain(VirtioVfioUser *s, VirtQueue *vq,
                               VirtQueueElement *element)
{
    size_t capacity = iov_size(element->in_sg, element->in_num);
    ssize_t length = vvfu_copy_message(s, element);
    VvfuChain *chain;

    if (length < 0) {
        vvfu_detach(vq, element);
        return;
    }
    chain = g_new(VvfuChain, 1);
    chain->token = ++s->last_token;
    chain->element = element;
    g_hash_table_insert(s->control_chains, &chain->token, chain);
    trace_virtio_vfio_user_control_request(chain->token, length, capacity);
    vvfu_enter(s);
    vvfu_core_control_request(s->core, vvfu_now(), s->last_token, s->message,
                              length, capacity);
    vvfu_leave(s);
}

static void vvfu_reply_chain(VirtioVfioUser *s, VirtQueue *vq,
                             VirtQueueElement *element)
{
    ssize_t length = vvfu_copy_message(s, element);

    if (length < 0) {
        vvfu_detach(vq, element);
        return;
    }
    virtqueue_push(vq, element, 0);
    g_free(element);
    s->notify_queues |= BIT(VVFU_QUEUE_REPLY);
    trace_virtio_vfio_user_reply(length);
    vvfu_enter(s);
    vvfu_core_reply(s->core, vvfu_now(), VVFU_QUEUE_REPLY, s->message, length);
    vvfu_leave(s);
}

typedef void VvfuChainHandler(VirtioVfioUser *, VirtQueue *,
                              VirtQueueElement *);

/*
 *= VVFU-INIT-4
 *# The device MUST NOT take buffers from a queue unless FEATURES_OK and
 *# DRIVER_OK are set.
 */
static bool vvfu_may_take(VirtioVfioUser *s)
{
    const uint8_t both =
        VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;

    /* In a call: a guest's DMA made this kick; the next one counts. */
    return !s->in_core && !s->unrealized &&
           (VIRTIO_DEVICE(s)->status & both) == both;
}

/* Takes at most one queue full, so that a guest cannot keep QEMU here. */
static void vvfu_take_chains(VirtioVfioUser *s, VirtQueue *vq,
                             VvfuChainHandler *handle)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(s);
    VirtQueueElement *element;
    bool more = true;

    if (!vvfu_may_take(s)) {
        return;
    }
    object_ref(OBJECT(s->pci));
    for (int i = 0; i < VVFU_QUEUE_SIZE && !vdev->broken; i++) {
        element = virtqueue_pop(vq, sizeof(VirtQueueElement));
        if (!element) {
            more = false;
            break;
        }
        handle(s, vq, element);
        if (s->unrealized) {
            break; /* the queue is gone */
        }
    }
    if (!s->unrealized) {
        vvfu_check_broken(s);
    }
    if (more && !s->unrealized) {
        qemu_bh_schedule(s->resume);
    }
    object_unref(OBJECT(s->pci));
}

static void vvfu_control_kicked(VirtIODevice *vdev, VirtQueue *vq)
{
    vvfu_take_chains(VIRTIO_VFIO_USER(vdev), vq, vvfu_control_chain);
}

static void vvfu_reply_kicked(VirtIODevice *vdev, VirtQueue *vq)
{
    vvfu_take_chains(VIRTIO_VFIO_USER(vdev), vq, vvfu_reply_chain);
}

static void vvfu_request_kicked(VirtIODevice *vdev, VirtQueue *vq)
{
    VirtioVfioUser *s = VIRTIO_VFIO_USER(vdev);

    if (!vvfu_may_take(s)) {
        return;
    }
    vvfu_enter(s);
    vvfu_core_request_buffers(s->core, vvfu_now(), VVFU_QUEUE_REQUEST);
    vvfu_leave(s);
}

void vvfu_queues_run(VirtioVfioUser *s)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(s);

    if (!vdev->broken && vvfu_may_take(s)) {
        object_ref(OBJECT(s->pci));
        vvfu_control_kicked(vdev, s->queues[VVFU_QUEUE_CONTROL]);
        vvfu_reply_kicked(vdev, s->queues[VVFU_QUEUE_REPLY]);
        object_unref(OBJECT(s->pci));
    }
}

int vvfu_push_request(void *opaque, unsigned queue, const void *message,
                      size_t length)
{
    VirtioVfioUser *s = opaque;
    VirtQueue *vq = s->queues[VVFU_QUEUE_REQUEST];
    VirtQueueElement *element = NULL;
    size_t copied;
    int ret = 0;

    if (queue == VVFU_QUEUE_REQUEST && !s->unrealized && !s->reset_in_core) {
        element = virtqueue_pop(vq, sizeof(VirtQueueElement));
    }
    if (!element) {
        trace_virtio_vfio_user_request(length, -EAGAIN);
        return -EAGAIN;
    }
    if (iov_size(element->in_sg, element->in_num) < length) {
        length = 0;
        ret = -EMSGSIZE;
    }
    copied = iov_from_buf(element->in_sg, element->in_num, 0, message, length);
    virtqueue_push(vq, element, copied);
    g_free(element);
    s->notify_queues |= BIT(VVFU_QUEUE_REQUEST);
    trace_virtio_vfio_user_request(length, ret);
    return ret;
}

void vvfu_complete_control(void *opaque, uint64_t token, const void *reply,
                           size_t length)
{
    VirtioVfioUser *s = opaque;
    VirtQueue *vq = s->queues[VVFU_QUEUE_CONTROL];
    VvfuChain *chain;
    VirtQueueElement *element;
    size_t copied;

    trace_virtio_vfio_user_control_complete(token, length);
    if (s->unrealized) {
        return;
    }
    chain = g_hash_table_lookup(s->control_chains, &token);
    if (!chain) {
        return; /* the queue was reset meanwhile */
    }
    element = chain->element;
    g_hash_table_remove(s->control_chains, &token);
    copied = iov_from_buf(element->in_sg, element->in_num, 0, reply, length);
    virtqueue_push(vq, element, copied);
    g_free(element);
    s->notify_queues |= BIT(VVFU_QUEUE_CONTROL);
}

void vvfu_queues_drop_chains(VirtioVfioUser *s)
{
    GHashTableIter iter;
    gpointer value;

    g_hash_table_iter_init(&iter, s->control_chains);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        VvfuChain *chain = value;

        vvfu_detach(s->queues[VVFU_QUEUE_CONTROL], chain->element);
        g_hash_table_iter_remove(&iter);
    }
}

/* One interrupt per queue and call, however many buffers were used. */
void vvfu_queues_notify(VirtioVfioUser *s)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(s);

    /* The interrupt can be what unplugs the device. */
    for (unsigned i = 0; i < VVFU_QUEUES && !s->unrealized; i++) {
        if (s->notify_queues & BIT(i)) {
            virtio_notify(vdev, s->queues[i]);
        }
    }
    s->notify_queues = 0;
}

void vvfu_queues_init(VirtioVfioUser *s)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(s);

    /*
     *= VVFU-QUEUE-1
     *# The device MUST provide the queues controlq, requestq and replyq with
     *# the numbers 0, 1 and 2.
     */
    /* QEMU 10.0.13 offers 1024 entries whatever is asked for. */
    s->queues[VVFU_QUEUE_CONTROL] =
        virtio_add_queue(vdev, VVFU_QUEUE_SIZE, vvfu_control_kicked);
    s->queues[VVFU_QUEUE_REQUEST] =
        virtio_add_queue(vdev, VVFU_QUEUE_SIZE, vvfu_request_kicked);
    s->queues[VVFU_QUEUE_REPLY] =
        virtio_add_queue(vdev, VVFU_QUEUE_SIZE, vvfu_reply_kicked);
    s->control_chains =
        g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, g_free);
    s->message = g_malloc(VVFU_MAX_MESSAGE_SIZE);
}

void vvfu_queues_cleanup(VirtioVfioUser *s)
{
    vvfu_queues_drop_chains(s);
    g_hash_table_destroy(s->control_chains);
    g_free(s->message);
    for (unsigned i = 0; i < VVFU_QUEUES; i++) {
        virtio_delete_queue(s->queues[i]);
    }
}
