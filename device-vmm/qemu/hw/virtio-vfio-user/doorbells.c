/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * virtio-vfio-user: doorbells, the first pages of BAR 0.
 */
#include "qemu/osdep.h"
#include "qemu/units.h"
#include "system/kvm.h"
#include "virtio-vfio-user.h"
#include "trace.h"

#define VVFU_DOORBELL_MULTIPLIER 4u

/*
 * KVM does not count ioeventfds among the 1000 devices that it takes per bus.
 * But each change copies the list of all, 24 bytes each, with one kmalloc():
 * up to 32 KiB Linux does not refuse that, and QEMU aborts when it does. So
 * these, of all functions together, leave 340 to others. (And the removal of
 * one costs up to half a millisecond under the BQL.) What exceeds them is
 * signalled by the register's write handler.
 */
#define VVFU_MAX_IOEVENTFDS 1024

static unsigned vvfu_ioeventfds;

uint32_t vvfu_doorbells_size(const VirtioVfioUser *s)
{
    return ROUND_UP(s->doorbell_count * VVFU_DOORBELL_MULTIPLIER,
                    VVFU_PAGE_SIZE);
}

static uint64_t vvfu_doorbell_read(VirtioVfioUser *s, hwaddr addr,
                                   unsigned size)
{
    unsigned index = addr / VVFU_DOORBELL_MULTIPLIER;
    bool pending;

    /*
     *= VVFU-DOORBELL-7
     *# The device MUST ignore writes to, and return 0 for reads of, doorbells
     *# whose number is `doorbells` or more.
     */
    if (size != 4 || addr % 4 || index >= s->doorbell_count) {
        trace_virtio_vfio_user_doorbell_ignored(addr, size);
        return 0;
    }
    /*
     *= VVFU-DOORBELL-3
     *# The device MUST return 1 for a 32-bit read of a doorbell that is
     *# pending, and 0 otherwise.
     */
    vvfu_core_begin(s);
    pending = vvfu_core_doorbell_pending(s->core, index);
    vvfu_core_end(s);
    return pending;
}

static void vvfu_doorbell_write(VirtioVfioUser *s, hwaddr addr, uint64_t value,
                                unsigned size)
{
    unsigned index = addr / VVFU_DOORBELL_MULTIPLIER;

    /* Other accesses than aligned 32-bit ones are not defined (6.3). */
    if (size != 4 || addr % 4 || index >= s->doorbell_count) {
        trace_virtio_vfio_user_doorbell_ignored(addr, size);
        return;
    }
    vvfu_core_begin(s);
    trace_virtio_vfio_user_doorbell_write(index, size, s->doorbells[index].fd);
    if (s->doorbells[index].fd >= 0) {
        /*
         *= VVFU-DOORBELL-1
         *# The device MUST add 1 to the target of a doorbell when the driver
         *# writes any 32-bit value to it.
         */
        vvfu_signal_eventfd(s, s->doorbells[index].fd);
    } else {
        vvfu_core_doorbell_written(s->core, index);
    }
    vvfu_core_end(s);
}

static void vvfu_doorbell_disconnect(VirtioVfioUser *s, unsigned index)
{
    VvfuDoorbell *doorbell = &s->doorbells[index];

    /*
     *= VVFU-DOORBELL-8
     *# The device MUST NOT signal an eventfd of the peer after the peer has
     *# de-assigned or masked its vector.
     */
    if (doorbell->ioeventfd) {
        /* Ends before the peer can read the reply, see vvfu_leave(). */
        vvfu_transaction_begin(s);
        memory_region_del_eventfd(&s->doorbell_page.mr,
                                  index * VVFU_DOORBELL_MULTIPLIER, 4, false, 0,
                                  doorbell->ioeventfd);
        s->retired_ioeventfds =
            g_slist_prepend(s->retired_ioeventfds, doorbell->ioeventfd);
        doorbell->ioeventfd = NULL;
        vvfu_ioeventfds--;
    }
    doorbell->fd = -1;
}

/* Lets KVM write the eventfd without leaving the kernel. */
static void vvfu_doorbell_accelerate(VirtioVfioUser *s, unsigned index)
{
    VvfuDoorbell *doorbell = &s->doorbells[index];
    int copy;

    /* With an iothread: to forget one needs the BQL, and must not wait. */
    if (!kvm_enabled() || s->iothread ||
        vvfu_ioeventfds >= VVFU_MAX_IOEVENTFDS) {
        return;
    }
    /* The core closes its fd before the transaction that forgets it ends. */
    copy = fcntl(doorbell->fd, F_DUPFD_CLOEXEC, 0);
    if (copy < 0) {
        return;
    }
    doorbell->ioeventfd = g_new0(EventNotifier, 1);
    event_notifier_init_fd(doorbell->ioeventfd, copy);
    vvfu_transaction_begin(s);
    memory_region_add_eventfd(&s->doorbell_page.mr,
                              index * VVFU_DOORBELL_MULTIPLIER, 4, false, 0,
                              doorbell->ioeventfd);
    vvfu_ioeventfds++;
}

void vvfu_doorbell_set(void *opaque, unsigned index, int fd)
{
    VirtioVfioUser *s = opaque;

    if (s->unrealized || index >= s->doorbell_count) {
        return;
    }
    vvfu_doorbell_disconnect(s, index);
    if (fd >= 0) {
        s->doorbells[index].fd = fd;
        vvfu_doorbell_accelerate(s, index);
    }
    trace_virtio_vfio_user_doorbell_set(index, fd,
                                        s->doorbells[index].ioeventfd);
}

static void vvfu_ioeventfd_free(gpointer data)
{
    EventNotifier *notifier = data;

    close(event_notifier_get_fd(notifier));
    g_free(notifier);
}

void vvfu_doorbells_free_retired(VirtioVfioUser *s)
{
    g_slist_free_full(s->retired_ioeventfds, vvfu_ioeventfd_free);
    s->retired_ioeventfds = NULL;
}

void vvfu_doorbells_init(VirtioVfioUser *s)
{
    s->doorbells = g_new0(VvfuDoorbell, s->doorbell_count);
    for (uint32_t i = 0; i < s->doorbell_count; i++) {
        s->doorbells[i].fd = -1;
    }
    s->doorbell_page.read = vvfu_doorbell_read;
    s->doorbell_page.write = vvfu_doorbell_write;
    s->doorbell_page.ops.valid.min_access_size = 1;
    s->doorbell_page.ops.valid.max_access_size = 8;
    s->doorbell_page.ops.valid.unaligned = true;
    s->doorbell_page.ops.impl.min_access_size = 1;
    s->doorbell_page.ops.impl.max_access_size = 8;
    s->doorbell_page.ops.impl.unaligned = true;
    vvfu_registers_init(&s->doorbell_page, s, "virtio-vfio-user-doorbells", 0,
                        vvfu_doorbells_size(s));
}

void vvfu_doorbells_cleanup(VirtioVfioUser *s)
{
    for (uint32_t i = 0; i < s->doorbell_count; i++) {
        vvfu_doorbell_disconnect(s, i);
    }
    vvfu_transaction_end(s);
    vvfu_registers_cleanup(&s->doorbell_page);
}
