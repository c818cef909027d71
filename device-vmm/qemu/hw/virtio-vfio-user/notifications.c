/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * virtio-vfio-user: notifications. Eventfds that the peer signals raise MSI-X
 * vectors of this function: by KVM while the vector can be delivered, by the
 * main loop otherwise, also with an iothread: vectors need the BQL. Events are
 * never lost in between, since the eventfd keeps them.
 */
#include "qemu/osdep.h"
#include <poll.h>
#include <sys/uio.h>
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "hw/pci/msix.h"
#include "hw/pci/pci_device.h"
#include "system/kvm.h"
#include "virtio-vfio-user.h"
#include "trace.h"

/* Device specification, section 6.4. */
#define VVFU_NOTIFICATION_SELECT 0
#define VVFU_NOTIFICATION_VECTOR 2

/* Takes the count out of a peer's eventfd, which may be in blocking mode. */
static bool vvfu_eventfd_take(int fd)
{
    uint64_t count;
    struct iovec iov = { .iov_base = &count, .iov_len = sizeof(count) };
    struct pollfd readable = { .fd = fd, .events = POLLIN };
    ssize_t ret;

    do {
        ret = preadv2(fd, &iov, 1, -1, RWF_NOWAIT);
    } while (ret < 0 && errno == EINTR);
    if (ret < 0 && (errno == EOPNOTSUPP || errno == ENOSYS) &&
        poll(&readable, 1, 0) == 1) {
        ret = read(fd, &count, sizeof(count));
    }
    return ret == sizeof(count);
}

static void vvfu_notification_fired(void *opaque)
{
    VvfuNotification *n = opaque;
    VirtioVfioUser *s = n->owner;
    unsigned index = n - s->notifications;

    if (!vvfu_eventfd_take(event_notifier_get_fd(&n->notifier))) {
        return;
    }
    trace_virtio_vfio_user_notification_fired(index, n->vector);
    /*
     *= VVFU-NOTIFY-2
     *# The device MUST raise the selected MSI-X vector when a notification
     *# that has one fires.
     */
    if (n->vector != VIRTIO_NO_VECTOR && msix_enabled(s->pci)) {
        msix_notify(s->pci, n->vector);
        return;
    }
    if (vvfu_enter(s)) {
        if (!n->changed) { /* else it is the core's no more */
            vvfu_core_notification_fired(s->core, vvfu_now(), index);
        }
        vvfu_leave(s);
    }
}

static void vvfu_watch(VvfuNotification *n, bool on)
{
    qemu_set_fd_handler(event_notifier_get_fd(&n->notifier),
                        on ? vvfu_notification_fired : NULL, NULL, n);
}

static int vvfu_irqfd_add(VvfuNotification *n, PCIDevice *pci)
{
    KVMRouteChange change = kvm_irqchip_begin_route_changes(kvm_state);
    int virq = kvm_irqchip_add_msi_route(&change, n->vector, pci);
    int ret;

    if (virq < 0) {
        return virq;
    }
    kvm_irqchip_commit_route_changes(&change);
    ret =
        kvm_irqchip_add_irqfd_notifier_gsi(kvm_state, &n->notifier, NULL, virq);
    if (ret < 0) {
        kvm_irqchip_release_virq(kvm_state, virq);
        return ret;
    }
    n->virq = virq;
    return 0;
}

static void vvfu_irqfd_remove(VvfuNotification *n)
{
    kvm_irqchip_remove_irqfd_notifier_gsi(kvm_state, &n->notifier, n->virq);
    kvm_irqchip_release_virq(kvm_state, n->virq);
}

/*
 * Hands a watched notification to KVM if its vector can be delivered, and
 * back to the main loop if not.
 */
static void vvfu_update_irqfd(VirtioVfioUser *s, VvfuNotification *n)
{
    unsigned index = n - s->notifications;
    bool wanted = n->watched && n->vector != VIRTIO_NO_VECTOR &&
                  kvm_msi_via_irqfd_enabled() && msix_enabled(s->pci) &&
                  !msix_is_masked(s->pci, n->vector) &&
                  s->pci->msix_vector_use_notifier;
    int ret = 0;

    if (wanted == n->irqfd) {
        return;
    }
    if (wanted) {
        vvfu_watch(n, false);
        ret = vvfu_irqfd_add(n, s->pci);
        n->irqfd = ret == 0;
    } else {
        vvfu_irqfd_remove(n);
        n->irqfd = false;
    }
    if (n->watched && !n->irqfd) {
        vvfu_watch(n, true);
    }
    trace_virtio_vfio_user_notification_irqfd(index, wanted, ret);
}

static void vvfu_drop_irqfd(VirtioVfioUser *s, VvfuNotification *n)
{
    if (n->irqfd) {
        vvfu_irqfd_remove(n);
        n->irqfd = false;
        vvfu_watch(n, true);
    }
}

static void vvfu_drop_next(VvfuNotification *n)
{
    if (n->next_fd >= 0) {
        close(n->next_fd);
        n->next_fd = -1;
    }
}

static void vvfu_unwatch(VirtioVfioUser *s, VvfuNotification *n)
{
    if (n->watched) {
        vvfu_drop_irqfd(s, n);
        vvfu_watch(n, false);
        n->watched = false;
        close(event_notifier_get_fd(&n->notifier));
    }
}

void vvfu_notification_set(void *opaque, unsigned index, int fd)
{
    VirtioVfioUser *s = opaque;
    VvfuNotification *n;

    if (s->unrealized || index >= s->notification_count) {
        return;
    }
    trace_virtio_vfio_user_notification_set(index, fd);
    n = &s->notifications[index];
    vvfu_drop_next(n);
    n->changed = true;
    s->notifications_changed = true;
    if (fd >= 0) {
        /* The core may close its own before the BQL is there. */
        n->next_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        if (n->next_fd < 0) {
            warn_report_once("virtio-vfio-user: an event of the peer cannot be "
                             "watched: %s",
                             strerror(errno));
        }
    }
}

static void vvfu_notification_settle(VirtioVfioUser *s, VvfuNotification *n)
{
    int fd = n->next_fd;

    n->changed = false;
    n->next_fd = -1;
    vvfu_unwatch(s, n);
    if (fd >= 0) {
        event_notifier_init_fd(&n->notifier, fd);
        n->watched = true;
        vvfu_watch(n, true);
        vvfu_update_irqfd(s, n);
    }
}

void vvfu_notifications_settle(VirtioVfioUser *s)
{
    vvfu_core_begin(s);
    if (s->notifications_changed && !s->unrealized) {
        s->notifications_changed = false;
        for (uint32_t i = 0; i < s->notification_count; i++) {
            if (s->notifications[i].changed) {
                vvfu_notification_settle(s, &s->notifications[i]);
            }
        }
    }
    vvfu_core_end(s);
}

static void vvfu_set_vector(VirtioVfioUser *s, VvfuNotification *n,
                            uint16_t vector)
{
    vvfu_drop_irqfd(s, n);
    if (n->vector != VIRTIO_NO_VECTOR) {
        msix_vector_unuse(s->pci, n->vector);
    }
    /*
     *= VVFU-NOTIFY-1
     *# The device MUST return the vector that the driver wrote when
     *# `notification_msix_vector` is read back, or 0xffff if it could not
     *# connect that vector.
     */
    if (msix_present(s->pci) && vector < s->pci->msix_entries_nr) {
        msix_vector_use(s->pci, vector);
        n->vector = vector;
    } else {
        n->vector = VIRTIO_NO_VECTOR;
    }
    vvfu_update_irqfd(s, n);
    trace_virtio_vfio_user_notification_vector(n - s->notifications, n->vector);
}

static VvfuNotification *vvfu_selected(VirtioVfioUser *s)
{
    return s->notification_select < s->notification_count
               ? &s->notifications[s->notification_select]
               : NULL;
}

static uint64_t vvfu_notification_read(VirtioVfioUser *s, hwaddr addr,
                                       unsigned size)
{
    VvfuNotification *n = vvfu_selected(s);

    switch (addr) {
    case VVFU_NOTIFICATION_SELECT:
        return s->notification_select;
    case VVFU_NOTIFICATION_VECTOR:
        return n ? n->vector : VIRTIO_NO_VECTOR;
    default:
        return 0;
    }
}

static void vvfu_notification_write(VirtioVfioUser *s, hwaddr addr,
                                    uint64_t value, unsigned size)
{
    switch (addr) {
    case VVFU_NOTIFICATION_SELECT:
        s->notification_select = value;
        break;
    case VVFU_NOTIFICATION_VECTOR:
        if (vvfu_selected(s)) {
            vvfu_set_vector(s, vvfu_selected(s), value);
        }
        break;
    default:
        break;
    }
}

static void vvfu_update_vector(PCIDevice *pci, VirtioVfioUser *s,
                               unsigned vector)
{
    for (uint32_t i = 0; i < s->notification_count; i++) {
        if (s->notifications[i].vector == vector) {
            vvfu_update_irqfd(s, &s->notifications[i]);
        }
    }
}

static VirtioVfioUser *vvfu_of_pci(PCIDevice *pci)
{
    return &VIRTIO_VFIO_USER_PCI(pci)->vdev;
}

static int vvfu_vector_unmasked(PCIDevice *pci, unsigned vector,
                                MSIMessage message)
{
    vvfu_update_vector(pci, vvfu_of_pci(pci), vector);
    return 0;
}

static void vvfu_vector_masked(PCIDevice *pci, unsigned vector)
{
    VirtioVfioUser *s = vvfu_of_pci(pci);

    for (uint32_t i = 0; i < s->notification_count; i++) {
        if (s->notifications[i].vector == vector) {
            vvfu_drop_irqfd(s, &s->notifications[i]);
        }
    }
}

void vvfu_notifications_use_irqfds(VirtioVfioUser *s)
{
    if (kvm_msi_via_irqfd_enabled() && msix_present(s->pci)) {
        msix_set_vector_notifiers(s->pci, vvfu_vector_unmasked,
                                  vvfu_vector_masked, NULL);
    }
}

void vvfu_notifications_unuse_irqfds(VirtioVfioUser *s)
{
    if (s->pci->msix_vector_use_notifier) {
        msix_unset_vector_notifiers(s->pci);
    }
}

void vvfu_notifications_init(VirtioVfioUser *s)
{
    s->notifications = g_new0(VvfuNotification, s->notification_count);
    for (uint32_t i = 0; i < s->notification_count; i++) {
        s->notifications[i].owner = s;
        s->notifications[i].vector = VIRTIO_NO_VECTOR;
        s->notifications[i].next_fd = -1;
    }
    s->notification_page.read = vvfu_notification_read;
    s->notification_page.write = vvfu_notification_write;
    s->notification_page.ops.valid.min_access_size = 2;
    s->notification_page.ops.valid.max_access_size = 4;
    s->notification_page.ops.impl.min_access_size = 2;
    s->notification_page.ops.impl.max_access_size = 2;
    vvfu_registers_init(&s->notification_page, s,
                        "virtio-vfio-user-notifications",
                        vvfu_doorbells_size(s), VVFU_PAGE_SIZE);
}

void vvfu_notifications_reset(VirtioVfioUser *s)
{
    s->notification_select = 0;
    for (uint32_t i = 0; i < s->notification_count; i++) {
        vvfu_set_vector(s, &s->notifications[i], VIRTIO_NO_VECTOR);
    }
}

void vvfu_notifications_cleanup(VirtioVfioUser *s)
{
    for (uint32_t i = 0; i < s->notification_count; i++) {
        vvfu_drop_next(&s->notifications[i]);
        vvfu_unwatch(s, &s->notifications[i]);
    }
    vvfu_registers_cleanup(&s->notification_page);
}
