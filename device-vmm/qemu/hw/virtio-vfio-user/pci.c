/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * virtio-vfio-user: the PCI function, its BARs and capabilities.
 */
#include "qemu/osdep.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/host-utils.h"
#include "qemu/module.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "hw/core/cpu.h"
#include "hw/pci/pci_device.h"
#include "virtio-vfio-user.h"

#define VVFU_BAR_INTERRUPTS 0
#define VVFU_BAR_MSIX 1
#define VVFU_BAR_WINDOW 2

/* Shared memory region IDs (device specification, 6.2). */
#define VVFU_SHMID_WINDOW 0
#define VVFU_SHMID_REGION_MEMORY 1

/* One for configuration changes, one per queue, one per notification. */
static uint32_t vvfu_default_vectors(const VirtioVfioUser *s)
{
    return 1 + VVFU_QUEUES + s->notification_count;
}

/* Of the guest; 64 where that is not known. */
static unsigned vvfu_address_bits(void)
{
    uint64_t bits = 0;

    if (first_cpu && object_property_find(OBJECT(first_cpu), "phys-bits")) {
        bits = object_property_get_uint(OBJECT(first_cpu), "phys-bits", NULL);
    }
    return bits && bits < 64 ? bits : 64;
}

/* A BAR is aligned to its size and shares the space with RAM and others. */
static bool vvfu_check_address_width(const char *property, uint64_t size,
                                     Error **errp)
{
    unsigned bits = vvfu_address_bits();
    g_autofree char *wanted = NULL;

    if (size <= 1ULL << (bits - 1)) {
        return true;
    }
    wanted = size_to_str(size);
    error_setg(errp,
               "virtio-vfio-user: %s needs a BAR of %s, but the guest has "
               "%u physical address bits: use a smaller one, or a CPU "
               "with more (-cpu ...,phys-bits=N)",
               property, wanted, bits);
    return false;
}

static bool vvfu_check_transport(VirtIOPCIProxy *proxy, Error **errp)
{
    VirtioVfioUserPCI *dev = VIRTIO_VFIO_USER_PCI(proxy);

    if (proxy->flags & VIRTIO_PCI_FLAG_MODERN_PIO_NOTIFY) {
        error_setg(errp, "virtio-vfio-user: modern-pio-notify=on needs BAR "
                         "2, where the window is");
        return false;
    }
    /*
     *= VVFU-FEAT-1
     *# The device MUST offer VIRTIO_F_VERSION_1 and
     *# VIRTIO_F_ACCESS_PLATFORM.
     */
    if (!virtio_host_has_feature(VIRTIO_DEVICE(&dev->vdev),
                                 VIRTIO_F_IOMMU_PLATFORM)) {
        error_setg(errp, "virtio-vfio-user: iommu_platform=off is not "
                         "possible: the guest driver uses the IOMMU");
        return false;
    }
    return true;
}

static bool vvfu_add_capability(PCIDevice *pci, const uint8_t *body,
                                size_t size, Error **errp)
{
    int offset = pci_add_capability(pci, PCI_CAP_ID_VNDR, 0, size, errp);

    if (offset < 0) {
        return false;
    }
    /* pci_add_capability() wrote ID and next. */
    memcpy(pci->config + offset + PCI_CAP_FLAGS, body + PCI_CAP_FLAGS,
           size - PCI_CAP_FLAGS);
    return true;
}

static bool vvfu_add_interrupt_bar(VirtioVfioUser *s, Error **errp)
{
    uint32_t doorbells = vvfu_doorbells_size(s);
    uint8_t cap[24];
    size_t size;

    memory_region_init(&s->bar_interrupts, OBJECT(s->pci),
                       "virtio-vfio-user-interrupts",
                       pow2ceil(doorbells + VVFU_PAGE_SIZE));
    vvfu_signal_init(s);
    vvfu_doorbells_init(s);
    vvfu_notifications_init(s);
    /*
     *= VVFU-PCI-3
     *# The device MUST place the window and the region memory page-aligned in
     *# prefetchable BARs, and the doorbells and notification registers in a
     *# BAR that is not prefetchable.
     */
    pci_register_bar(s->pci, VVFU_BAR_INTERRUPTS, PCI_BASE_ADDRESS_SPACE_MEMORY,
                     &s->bar_interrupts);
    size =
        vvfu_core_doorbell_cap(cap, VVFU_BAR_INTERRUPTS, 0, s->doorbell_count);
    if (!vvfu_add_capability(s->pci, cap, size, errp)) {
        return false;
    }
    size = vvfu_core_notification_cap(cap, VVFU_BAR_INTERRUPTS, doorbells);
    return vvfu_add_capability(s->pci, cap, size, errp);
}

static bool vvfu_add_window_bar(VirtioVfioUser *s, Error **errp)
{
    VirtIOPCIProxy *proxy = VIRTIO_PCI(s->pci);

    if (!vvfu_window_init(s, errp)) {
        return false;
    }
    pci_register_bar(s->pci, VVFU_BAR_WINDOW,
                     PCI_BASE_ADDRESS_SPACE_MEMORY |
                         PCI_BASE_ADDRESS_MEM_PREFETCH |
                         PCI_BASE_ADDRESS_MEM_TYPE_64,
                     &s->bar_window);
    /*
     *= VVFU-PCI-1
     *# The device MUST present one capability of type 6, one of type 7 and
     *# one of type 8 with `id` 0, and one of type 8 with `id` 1 if
     *# `region_memory_size` is not 0.
     */
    virtio_pci_add_shm_cap(proxy, VVFU_BAR_WINDOW, 0, s->window_size,
                           VVFU_SHMID_WINDOW);
    return true;
}

/*
 * In the BAR of the virtio structures, which is registered when the device is
 * plugged: behind the window it would double the window's BAR.
 */
static bool vvfu_add_region_memory(VirtioVfioUser *s, Error **errp)
{
    VirtIOPCIProxy *proxy = VIRTIO_PCI(s->pci);
    uint64_t offset, size;

    if (!s->region_memory_size) {
        return true;
    }
    offset =
        vvfu_region_memory_offset(s, memory_region_size(&proxy->modern_bar));
    size = pow2ceil(offset + s->region_memory_size);
    if (!vvfu_check_address_width("region-memory-size", size, errp) ||
        !vvfu_region_memory_init(s, errp)) {
        return false;
    }
    memory_region_set_size(&proxy->modern_bar, size);
    memory_region_add_subregion(&proxy->modern_bar, offset,
                                &s->region_memory_region);
    virtio_pci_add_shm_cap(proxy, proxy->modern_mem_bar_idx, offset,
                           s->region_memory_size, VVFU_SHMID_REGION_MEMORY);
    return true;
}

bool vvfu_features_fit(VirtioVfioUser *s)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(s);
    VirtIOPCIProxy *proxy = VIRTIO_PCI(s->pci);
    /* QEMU keeps of them in vdev only what is offered. */
    uint64_t written =
        proxy->guest_features[0] | (uint64_t)proxy->guest_features[1] << 32;

    return virtio_vdev_has_feature(vdev, VIRTIO_F_VERSION_1) &&
           virtio_vdev_has_feature(vdev, VIRTIO_F_IOMMU_PLATFORM) &&
           !(written & ~vdev->host_features);
}

/*
 * QEMU checks features of a driver only if it accepted VIRTIO_F_VERSION_1, and
 * drops those that are not offered without a word.
 */
static void vvfu_common_write(void *opaque, hwaddr addr, uint64_t value,
                              unsigned size)
{
    VirtioVfioUser *s = &VIRTIO_VFIO_USER_PCI(opaque)->vdev;
    VirtIODevice *vdev = VIRTIO_DEVICE(s);
    uint8_t before = vdev->status;

    object_ref(OBJECT(opaque));
    s->virtio_common_ops->write(opaque, addr, value, size);
    /*
     *= VVFU-FEAT-5
     *# The device MUST NOT let FEATURES_OK be set unless the driver accepted
     *# VIRTIO_F_VERSION_1 and VIRTIO_F_ACCESS_PLATFORM, and no feature that is
     *# not offered.
     */
    if ((vdev->status & ~before & VIRTIO_CONFIG_S_FEATURES_OK) &&
        !vvfu_features_fit(s)) {
        vdev->status &= ~VIRTIO_CONFIG_S_FEATURES_OK;
    }
    object_unref(OBJECT(opaque));
}

static void vvfu_check_features(VirtIOPCIProxy *proxy, VirtioVfioUser *s)
{
    s->virtio_common_ops = proxy->common.mr.ops;
    s->common_ops = *s->virtio_common_ops;
    s->common_ops.write = vvfu_common_write;
    proxy->common.mr.ops = &s->common_ops;
}

static bool vvfu_bar_is_reachable(PCIDevice *pci, int bar)
{
    pcibus_t address = pci_get_bar_addr(pci, bar);
    unsigned bits = vvfu_address_bits();

    return address == PCI_BAR_UNMAPPED || bits == 64 ||
           address + pci->io_regions[bar].size <= 1ULL << bits;
}

/*
 * KVM takes no memory slot above the guest's addresses, and QEMU aborts when it
 * refuses one: a guest that finds out the size of a BAR while memory accesses
 * are enabled puts it there for a moment.
 */
static void vvfu_write_config(PCIDevice *pci, uint32_t address, uint32_t value,
                              int length)
{
    VirtioVfioUser *s = &VIRTIO_VFIO_USER_PCI(pci)->vdev;
    bool reachable;

    memory_region_transaction_begin();
    s->parent_config_write(pci, address, value, length);
    reachable = vvfu_bar_is_reachable(pci, VVFU_BAR_WINDOW);
    memory_region_set_enabled(&s->window_memory, reachable);
    if (s->region_memory_size) {
        reachable =
            vvfu_bar_is_reachable(pci, VIRTIO_PCI(pci)->modern_mem_bar_idx);
        memory_region_set_enabled(&s->region_memory_region, reachable);
    }
    memory_region_transaction_commit();
}

/* What vvfu_pci_realize() made; any part of it may be missing. */
static void vvfu_pci_release(VirtioVfioUser *s)
{
    if (s->doorbells) {
        vvfu_doorbells_cleanup(s);
        vvfu_signal_cleanup(s);
    }
    if (s->notifications) {
        vvfu_notifications_cleanup(s);
    }
    vvfu_window_cleanup(s);
    vvfu_peer_cleanup(s);
}

static void vvfu_pci_realize(VirtIOPCIProxy *proxy, Error **errp)
{
    VirtioVfioUser *s = &VIRTIO_VFIO_USER_PCI(proxy)->vdev;

    s->pci = PCI_DEVICE(proxy);
    s->context = s->iothread ? iothread_get_aio_context(s->iothread)
                             : iohandler_get_aio_context();
    virtio_pci_force_virtio_1(proxy);
    proxy->msix_bar_idx = VVFU_BAR_MSIX;
    if (proxy->nvectors == DEV_NVECTORS_UNSPECIFIED) {
        proxy->nvectors = vvfu_default_vectors(s);
    }
    if (!vvfu_check_transport(proxy, errp) || !vvfu_check_properties(s, errp) ||
        !vvfu_check_address_width("window-size", vvfu_window_bar_size(s),
                                  errp) ||
        !vvfu_peer_init(s, errp)) {
        return;
    }
    if (!vvfu_add_window_bar(s, errp) || !vvfu_add_region_memory(s, errp) ||
        !vvfu_add_interrupt_bar(s, errp) ||
        !qdev_realize(DEVICE(s), BUS(&proxy->bus), errp)) {
        vvfu_pci_release(s);
        return;
    }
    vvfu_check_features(proxy, s);
    s->parent_config_write = s->pci->config_write;
    s->pci->config_write = vvfu_write_config;
    vvfu_notifications_use_irqfds(s);
    vvfu_state_publish(s);
}

static void vvfu_pci_exit(PCIDevice *pci)
{
    PCIDeviceClass *parent =
        PCI_DEVICE_CLASS(object_class_by_name(TYPE_VIRTIO_PCI));
    VirtioVfioUser *s = &VIRTIO_VFIO_USER_PCI(pci)->vdev;

    /* The device itself is unrealized already. */
    vvfu_state_unpublish(s);
    vvfu_notifications_unuse_irqfds(s);
    vvfu_pci_release(s);
    parent->exit(pci);
}

static const Property vvfu_pci_properties[] = {
    DEFINE_PROP_UINT32("vectors", VirtIOPCIProxy, nvectors,
                       DEV_NVECTORS_UNSPECIFIED),
    DEFINE_PROP_BIT("ioeventfd", VirtIOPCIProxy, flags,
                    VIRTIO_PCI_FLAG_USE_IOEVENTFD_BIT, true),
};

static DeviceRealize vvfu_parent_dc_realize;

/*
 * The virtio transport made it a PCI Express function just now. It is none,
 * behind a root port either: 256 bytes of configuration space do not hold the
 * capabilities of one too.
 */
static void vvfu_dc_realize(DeviceState *qdev, Error **errp)
{
    PCI_DEVICE(qdev)->cap_present &= ~QEMU_PCI_CAP_EXPRESS;
    vvfu_parent_dc_realize(qdev, errp);
}

static void vvfu_pci_class_init(ObjectClass *klass, VvfuClassData *data)
{
    DeviceClass *dc = DEVICE_CLASS(klass);
    VirtioPCIClass *k = VIRTIO_PCI_CLASS(klass);
    PCIDeviceClass *pcidev_k = PCI_DEVICE_CLASS(klass);

    dc->desc = "PCI device of another VM, implemented by a program in this "
               "one (vfio-user server)";
    set_bit(DEVICE_CATEGORY_MISC, dc->categories);
    device_class_set_props(dc, vvfu_pci_properties);
    k->realize = vvfu_pci_realize;
    vvfu_parent_dc_realize = k->parent_dc_realize;
    k->parent_dc_realize = vvfu_dc_realize;
    pcidev_k->exit = vvfu_pci_exit;
    pcidev_k->class_id = PCI_CLASS_OTHERS;
}

static void vvfu_pci_instance_init(Object *obj)
{
    VirtioVfioUserPCI *dev = VIRTIO_VFIO_USER_PCI(obj);

    virtio_instance_init_common(obj, &dev->vdev, sizeof(dev->vdev),
                                TYPE_VIRTIO_VFIO_USER);
    object_property_set_bool(OBJECT(&dev->vdev), "iommu_platform", true,
                             &error_abort);
}

static void vvfu_pci_instance_finalize(Object *obj)
{
    VirtioVfioUser *s = &VIRTIO_VFIO_USER_PCI(obj)->vdev;

    vvfu_window_finalize(s);
    g_free(s->doorbells);
    g_free(s->notifications);
}

static const VirtioPCIDeviceTypeInfo vvfu_pci_info = {
    .base_name = TYPE_VIRTIO_VFIO_USER_PCI,
    .generic_name = "virtio-vfio-user-pci",
    .instance_size = sizeof(VirtioVfioUserPCI),
    .instance_init = vvfu_pci_instance_init,
    .instance_finalize = vvfu_pci_instance_finalize,
    .class_init = vvfu_pci_class_init,
};

static void vvfu_pci_register_types(void)
{
    virtio_pci_types_register(&vvfu_pci_info);
}

type_init(vvfu_pci_register_types)
