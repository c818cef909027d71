/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * virtio-vfio-user: the virtio device, its properties and its life.
 */
#include "qemu/osdep.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qemu/units.h"
#include "qapi/clone-visitor.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-sockets.h"
#include "qapi/visitor.h"
#include "qapi/visitor-impl.h"
#include "hw/pci/pci_device.h"
#include "migration/blocker.h"
#include "system/system.h"
#include "virtio-vfio-user.h"

/* ---- property "socket" ---- */

static void vvfu_get_socket(Object *obj, Visitor *v, const char *name,
                            void *opaque, Error **errp)
{
    SocketAddress *socket = VIRTIO_VFIO_USER(obj)->socket;
    g_autofree char *text = NULL;

    if (!socket) {
        text = g_strdup("");
    } else if (socket->type == SOCKET_ADDRESS_TYPE_UNIX) {
        text = g_strdup(socket->u.q_unix.path);
    } else if (socket->type == SOCKET_ADDRESS_TYPE_FD) {
        text = g_strdup_printf("fd:%s", socket->u.fd.str);
    } else {
        text = g_strdup(SocketAddressType_str(socket->type));
    }
    visit_type_str(v, name, &text, errp);
}

static SocketAddress *vvfu_visit_path(Visitor *v, const char *name,
                                      Error **errp)
{
    SocketAddress *socket;
    char *path;

    if (!visit_type_str(v, name, &path, errp)) {
        return NULL;
    }
    socket = g_new0(SocketAddress, 1);
    socket->type = SOCKET_ADDRESS_TYPE_UNIX;
    socket->u.q_unix.path = path;
    return socket;
}

/* A string is a path; an object is a SocketAddress. */
static SocketAddress *vvfu_visit_socket(Visitor *v, const char *name,
                                        Error **errp)
{
    GenericAlternate *alternate = NULL;
    SocketAddress *socket = NULL;

    /* -global and HMP bring strings, with a visitor that knows no others. */
    if (!v->start_alternate) {
        return vvfu_visit_path(v, name, errp);
    }
    if (!visit_start_alternate(v, name, &alternate, sizeof(*alternate), errp)) {
        return NULL;
    }
    if (alternate->type == QTYPE_QDICT) {
        visit_type_SocketAddress(v, name, &socket, errp);
    } else {
        socket = vvfu_visit_path(v, name, errp);
    }
    visit_end_alternate(v, (void **)&alternate);
    g_free(alternate);
    return socket;
}

static void vvfu_set_socket(Object *obj, Visitor *v, const char *name,
                            void *opaque, Error **errp)
{
    VirtioVfioUser *s = VIRTIO_VFIO_USER(obj);
    SocketAddress *socket = vvfu_visit_socket(v, name, errp);

    if (socket) {
        qapi_free_SocketAddress(s->socket);
        s->socket = socket;
    }
}

static void vvfu_release_socket(Object *obj, const char *name, void *opaque)
{
    VirtioVfioUser *s = VIRTIO_VFIO_USER(obj);

    qapi_free_SocketAddress(s->socket);
    s->socket = NULL;
}

static const PropertyInfo vvfu_prop_socket = {
    .type = "str",
    .description = "where peers connect",
    .get = vvfu_get_socket,
    .set = vvfu_set_socket,
    .release = vvfu_release_socket,
};

static const Property vvfu_properties[] = {
    { .name = "socket", .info = &vvfu_prop_socket },
    DEFINE_PROP_SIZE("window-size", VirtioVfioUser, window_size, 8 * GiB),
    DEFINE_PROP_SIZE("region-memory-size", VirtioVfioUser, region_memory_size,
                     16 * MiB),
    DEFINE_PROP_UINT32("doorbells", VirtioVfioUser, doorbell_count, 64),
    DEFINE_PROP_UINT32("notifications", VirtioVfioUser, notification_count, 8),
    DEFINE_PROP_UUID_NODEFAULT("uuid", VirtioVfioUser, uuid),
    DEFINE_PROP_BOOL("trust-peer-memory", VirtioVfioUser, trust_peer_memory,
                     false),
    DEFINE_PROP_UINT32("unmap-timeout", VirtioVfioUser, unmap_timeout, 1000),
    DEFINE_PROP_UINT32("access-timeout", VirtioVfioUser, access_timeout, 2000),
    DEFINE_PROP_LINK("iothread", VirtioVfioUser, iothread, TYPE_IOTHREAD,
                     IOThread *),
    DEFINE_PROP_UINT16("x-virtio-id", VirtioVfioUser, virtio_id, 63),
};

static const struct {
    const char *name, *description;
} vvfu_descriptions[] = {
    { "socket",
      "UNIX socket on which the driver VM's VMM connects: a path, or in JSON "
      "a SocketAddress ({\"type\":\"unix\",\"path\":..} or, for a listening "
      "socket passed to QEMU, {\"type\":\"fd\",\"str\":..})" },
    { "window-size",
      "Bytes of guest address space for the peer's memory, a multiple of "
      "4096 up to 4 TiB; what does not fit is reached by messages. Rounded up "
      "to a power of two, the size of BAR 2" },
    { "region-memory-size",
      "Bytes of memory for areas of the emulated device's BARs that the peer "
      "may map, a multiple of 4096; 0 for none" },
    { "doorbells",
      "Most interrupt vectors (INTx, MSI and MSI-X together) that an "
      "emulated device can have, 1 to 4096" },
    { "notifications",
      "Number of events from the peer that can raise an MSI-X vector, "
      "1 to 1024" },
    { "uuid", "UUID by which the guest driver finds this device" },
    { "trust-peer-memory",
      "Map memory of the peer that the peer could shrink: faster, but a "
      "faulty or hostile peer can then kill this QEMU" },
    { "unmap-timeout",
      "Milliseconds that the guest has to stop using memory that the peer "
      "takes back, 1 to 4000" },
    { "access-timeout",
      "Milliseconds that the guest has to answer a register access or any "
      "other request, 1 to 4000" },
    { "iothread",
      "Event loop for the peer's connection, so that a blocked main loop does "
      "not block the peer" },
    { "x-virtio-id", "Virtio device ID, 1 to 63" },
};

/* ---- checks ---- */

static bool vvfu_check_size(const char *name, uint64_t size, uint64_t least,
                            Error **errp)
{
    /*
     * KVM takes memory slots of less than 8 TiB, and QEMU aborts when it
     * refuses one.
     */
    if (size < least || size % VVFU_PAGE_SIZE || size > 4 * TiB) {
        error_setg(errp,
                   "virtio-vfio-user: %s=%" PRIu64 " is not a multiple of "
                   "%u between %" PRIu64 " and 4T",
                   name, size, VVFU_PAGE_SIZE, least);
        return false;
    }
    return true;
}

static bool vvfu_check_number(const char *name, uint32_t value, uint32_t most,
                              Error **errp)
{
    if (value < 1 || value > most) {
        error_setg(errp, "virtio-vfio-user: %s=%u is not in 1..%u", name, value,
                   most);
        return false;
    }
    return true;
}

bool vvfu_check_properties(VirtioVfioUser *s, Error **errp)
{
    return vvfu_check_size("window-size", s->window_size, VVFU_PAGE_SIZE,
                           errp) &&
           vvfu_check_size("region-memory-size", s->region_memory_size, 0,
                           errp) &&
           vvfu_check_number("doorbells", s->doorbell_count, VVFU_MAX_DOORBELLS,
                             errp) &&
           vvfu_check_number("notifications", s->notification_count,
                             VVFU_MAX_NOTIFICATIONS, errp) &&
           vvfu_check_number("unmap-timeout", s->unmap_timeout, 4000, errp) &&
           vvfu_check_number("access-timeout", s->access_timeout, 4000, errp) &&
           vvfu_check_number("x-virtio-id", s->virtio_id, 63, errp);
}

/* ---- virtio ---- */

static uint64_t vvfu_get_features(VirtIODevice *vdev, uint64_t features,
                                  Error **errp)
{
    VirtioVfioUser *s = VIRTIO_VFIO_USER(vdev);

    /*
     * The core does not know resets of single queues.
     *
     *= VVFU-FEAT-6
     *# The device MUST NOT offer VIRTIO_F_RING_RESET.
     */
    virtio_clear_feature(&features, VIRTIO_F_RING_RESET);
    /*
     *= VVFU-FEAT-4
     *# The device MUST NOT offer VIRTIO_F_IN_ORDER.
     */
    virtio_clear_feature(&features, VIRTIO_F_IN_ORDER);
    /*
     *= VVFU-FEAT-3
     *# The device MUST NOT offer VIRTIO_VFIO_USER_F_ACCESS_QUEUES.
     */
    return features | vvfu_core_device_features(s->core);
}

static void vvfu_get_config(VirtIODevice *vdev, uint8_t *config)
{
    /*
     *= VVFU-CONF-1
     *# The device MUST present its configuration in the layout of this
     *# section.
     */
    vvfu_core_device_config(VIRTIO_VFIO_USER(vdev)->core, config);
}

/* The driver is gone, or starts anew. */
static void vvfu_withdraw(VirtioVfioUser *s)
{
    bool core_knew = s->core_knows_broken;

    vvfu_queues_stop(s);
    s->core_knows_broken = true; /* what follows says it */
    /*
     *= VVFU-INIT-3
     *# The device MUST end the session, withdraw the emulated device and
     *# forget all outstanding requests when the driver resets it.
     */
    if (vvfu_enter(s)) {
        vvfu_core_driver_reset(s->core, vvfu_now());
        vvfu_leave(s);
    }
    s->core_knows_broken = core_knew || VIRTIO_DEVICE(s)->broken;
}

static void vvfu_reset(VirtIODevice *vdev)
{
    VirtioVfioUser *s = VIRTIO_VFIO_USER(vdev);

    vvfu_withdraw(s);
    s->core_knows_broken = false; /* the virtio core mends the device next */
    vvfu_core_begin(s);
    s->break_pending = false;
    vvfu_core_end(s);
    vvfu_notifications_reset(s);
}

static void vvfu_status_changed(VirtIODevice *vdev, uint8_t status)
{
    VirtioVfioUser *s = VIRTIO_VFIO_USER(vdev);

    /* Also called when the VM stops and goes on, with an unchanged status. */
    if ((status & ~vdev->status & VIRTIO_CONFIG_S_DRIVER_OK) &&
        (status & VIRTIO_CONFIG_S_FEATURES_OK) && vvfu_features_fit(s)) {
        vvfu_queues_start(s);
        if (vvfu_enter(s)) {
            vvfu_core_driver_ok(s->core, vvfu_now());
            qemu_bh_schedule(s->resume); /* buffers that were there before */
            vvfu_leave(s);
        }
    }
    /*
     * DRIVER_OK goes without a reset when Bus Master Enable is cleared. That
     * is all the device hears when vfio-pci takes it from a driver that died.
     *
     *= VVFU-INIT-5
     *# The device MUST act as on a reset of the session and of the emulated
     *# device when Bus Master Enable of its function is cleared.
     */
    if (vdev->status & ~status & VIRTIO_CONFIG_S_DRIVER_OK) {
        vvfu_withdraw(s);
    }
}

VVFU_DEFINE_SET_STATUS(vvfu_set_status, vvfu_status_changed)

/* VIRTIO_F_RING_RESET is not offered, but QEMU lets the guest do it. */
static void vvfu_queue_reset(VirtIODevice *vdev, uint32_t index)
{
    if (index < VVFU_QUEUES) {
        vvfu_queue_drop_chains(VIRTIO_VFIO_USER(vdev), index);
    }
}

static void vvfu_resume(void *opaque)
{
    VirtioVfioUser *s = opaque;

    vvfu_queues_run(s);
}

static void vvfu_exit(Notifier *notifier, void *data)
{
    VirtioVfioUser *s = container_of(notifier, VirtioVfioUser, exit_notifier);

    vvfu_core_begin(s);
    vvfu_peer_exit(s);
    vvfu_core_end(s);
}

static bool vvfu_block_migration(VirtioVfioUser *s, Error **errp)
{
    error_setg(&s->migration_blocker,
               "virtio-vfio-user: the peer's connection and memory cannot be "
               "moved to another host");
    return migrate_add_blocker(&s->migration_blocker, errp) == 0;
}

static void vvfu_device_realize(DeviceState *dev, Error **errp)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(dev);
    VirtioVfioUser *s = VIRTIO_VFIO_USER(dev);

    if (!vvfu_block_migration(s, errp)) {
        return;
    }
    if (!vvfu_core_create(s, errp)) {
        migrate_del_blocker(&s->migration_blocker);
        return;
    }
    virtio_init(vdev, s->virtio_id, vvfu_core_device_config_size());
    vdev->name = "virtio-vfio-user"; /* x-virtio-id may be another's */
    vvfu_queues_init(s);
    s->resume = virtio_bh_new_guarded(dev, vvfu_resume, s);
    s->exit_notifier.notify = vvfu_exit;
    qemu_add_exit_notifier(&s->exit_notifier);
}

static void vvfu_device_unrealize(DeviceState *dev)
{
    VirtioVfioUser *s = VIRTIO_VFIO_USER(dev);

    qemu_remove_exit_notifier(&s->exit_notifier);
    migrate_del_blocker(&s->migration_blocker);
    vvfu_core_stop(s);
    qemu_bh_delete(s->resume); /* nobody schedules it any more */
    vvfu_queues_cleanup(s);
    virtio_cleanup(VIRTIO_DEVICE(s));
}

static void vvfu_device_instance_init(Object *obj)
{
    VirtioVfioUser *s = VIRTIO_VFIO_USER(obj);

    qemu_mutex_init(&s->lock);
    s->peer.listener = -1;
    s->peer.fd = -1;
}

static void vvfu_device_instance_finalize(Object *obj)
{
    qemu_mutex_destroy(&VIRTIO_VFIO_USER(obj)->lock);
}

static void vvfu_device_class_init(ObjectClass *klass, VvfuClassData *data)
{
    DeviceClass *dc = DEVICE_CLASS(klass);
    VirtioDeviceClass *vdc = VIRTIO_DEVICE_CLASS(klass);

    device_class_set_props(dc, vvfu_properties);
    for (size_t i = 0; i < ARRAY_SIZE(vvfu_descriptions); i++) {
        object_class_property_set_description(klass, vvfu_descriptions[i].name,
                                              vvfu_descriptions[i].description);
    }
    dc->desc = "Part of virtio-vfio-user-pci";
    dc->user_creatable = false; /* needs BARs */
    set_bit(DEVICE_CATEGORY_MISC, dc->categories);
    vdc->realize = vvfu_device_realize;
    vdc->unrealize = vvfu_device_unrealize;
    vdc->get_features = vvfu_get_features;
    vdc->get_config = vvfu_get_config;
    vdc->set_status = vvfu_set_status;
    vdc->reset = vvfu_reset;
    vdc->queue_reset = vvfu_queue_reset;
}

static const TypeInfo vvfu_device_info = {
    .name = TYPE_VIRTIO_VFIO_USER,
    .parent = TYPE_VIRTIO_DEVICE,
    .instance_size = sizeof(VirtioVfioUser),
    .instance_init = vvfu_device_instance_init,
    .instance_finalize = vvfu_device_instance_finalize,
    .class_init = vvfu_device_class_init,
};

static void vvfu_device_register_types(void)
{
    type_register_static(&vvfu_device_info);
}

type_init(vvfu_device_register_types)
