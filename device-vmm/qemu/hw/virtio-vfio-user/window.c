/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * virtio-vfio-user: BAR 2, the window on the peer's memory and the region
 * memory behind it.
 */
#include "qemu/osdep.h"
#include "qemu/host-utils.h"
#include "qemu/madvise.h"
#include "qemu/rcu.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "exec/memory.h"
#include "system/kvm.h"
#include "virtio-vfio-user.h"
#include "trace.h"

/* QEMU looks for room for a new RAM block in time quadratic in their number;
 * what does not fit any more is message-only. */
#define VVFU_MAX_MAPPINGS 1024
/* KVM aborts without a free slot; other devices may want some too. */
#define VVFU_RESERVED_MEMSLOTS 32

#define TYPE_VVFU_MAPPING "virtio-vfio-user-mapping"
OBJECT_DECLARE_SIMPLE_TYPE(VvfuMapping, VVFU_MAPPING)

/*
 * One range of the peer's memory. An object of its own, so that the host
 * addresses stay reserved until QEMU's last user of the memory region, RCU
 * readers included, is gone.
 */
struct VvfuMapping {
    Object parent_obj;
    MemoryRegion mr;
    uint64_t window_offset; /* the key in the table */
    uint64_t size;
    void *host;
};

typedef struct VvfuReservation {
    struct rcu_head rcu;
    void *host;
    size_t size;
} VvfuReservation;

static void vvfu_reservation_free(VvfuReservation *reservation)
{
    munmap(reservation->host, reservation->size);
    g_free(reservation);
}

static void vvfu_mapping_finalize(Object *obj)
{
    VvfuMapping *mapping = VVFU_MAPPING(obj);
    VvfuReservation *reservation;

    if (mapping->host) {
        reservation = g_new(VvfuReservation, 1);
        reservation->host = mapping->host;
        reservation->size = mapping->size;
        /* The RAM block is reclaimed by RCU as well, after this. */
        call_rcu(reservation, vvfu_reservation_free, rcu);
    }
}

/*
 * Host addresses congruent to the file offset, so that huge pages of the file
 * stay huge pages here. NULL: none left.
 */
static void *vvfu_reserve(uint64_t size, uint64_t fd_offset)
{
    size_t align = size >= GiB       ? GiB
                   : size >= 2 * MiB ? 2 * MiB
                                     : VVFU_PAGE_SIZE;
    size_t total = size + align - VVFU_PAGE_SIZE;
    uintptr_t start, wanted, end;
    void *base = mmap(NULL, total, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (base == MAP_FAILED) {
        return NULL;
    }
    start = (uintptr_t)base;
    end = start + total;
    wanted = start + ((fd_offset - start) & (align - 1));
    if (wanted > start) {
        munmap(base, wanted - start);
    }
    if (end > wanted + size) {
        munmap((void *)(wanted + size), end - (wanted + size));
    }
    return (void *)wanted;
}

static int vvfu_map_host(VvfuMapping *mapping, int protection, int fd,
                         uint64_t fd_offset)
{
    void *made, *host;
    int error;

    /*
     * Made elsewhere and moved to its aligned place: a MAP_FIXED that the
     * peer's file refuses (its seals can) leaves a gap there on Linux before
     * 6.12, which another thread may use at once.
     */
    made = mmap(NULL, mapping->size, protection, MAP_SHARED, fd, fd_offset);
    if (made == MAP_FAILED) {
        return -errno;
    }
    host = vvfu_reserve(mapping->size, fd_offset);
    if (!host || mremap(made, mapping->size, mapping->size,
                        MREMAP_MAYMOVE | MREMAP_FIXED, host) == MAP_FAILED) {
        error = host ? -errno : -ENOMEM;
        munmap(made, mapping->size);
        if (host) {
            munmap(host, mapping->size);
        }
        return error;
    }
    /* Another VM's memory has no place in our core dumps. */
    qemu_madvise(host, mapping->size, QEMU_MADV_DONTDUMP);
    mapping->host = host;
    return 0;
}

static bool vvfu_room_for_mapping(VirtioVfioUser *s)
{
    if (g_hash_table_size(s->mappings) >= VVFU_MAX_MAPPINGS) {
        return false;
    }
    return !kvm_enabled() ||
           kvm_get_free_memslots() > s->new_mappings + VVFU_RESERVED_MEMSLOTS;
}

static int vvfu_do_window_map(VirtioVfioUser *s, uint64_t window_offset,
                              uint64_t size, int protection, int fd,
                              uint64_t fd_offset)
{
    VvfuMapping *mapping;
    int ret;

    if (s->unrealized) {
        return -ENODEV;
    }
    if (!vvfu_room_for_mapping(s)) {
        return -ENOSPC;
    }
    mapping = VVFU_MAPPING(object_new(TYPE_VVFU_MAPPING));
    mapping->window_offset = window_offset;
    mapping->size = size;
    ret = vvfu_map_host(mapping, protection, fd, fd_offset);
    if (ret < 0) {
        object_unref(OBJECT(mapping));
        return ret;
    }
    memory_region_init_ram_ptr(&mapping->mr, OBJECT(mapping),
                               "virtio-vfio-user-range", size, mapping->host);
    /*
     *= VVFU-WINDOW-2
     *# The device MUST NOT let a write through the window reach a range that
     *# the peer mapped without write permission.
     */
    memory_region_set_readonly(&mapping->mr, !(protection & PROT_WRITE));
    vvfu_transaction_begin(s);
    memory_region_add_subregion(&s->bar_window, window_offset, &mapping->mr);
    g_hash_table_insert(s->mappings, &mapping->window_offset, mapping);
    s->new_mappings++;
    return 0;
}

int vvfu_window_map(void *opaque, uint64_t window_offset, uint64_t size,
                    int protection, int fd, uint64_t fd_offset)
{
    int ret = vvfu_do_window_map(opaque, window_offset, size, protection, fd,
                                 fd_offset);

    trace_virtio_vfio_user_window_map(window_offset, size, protection, fd,
                                      fd_offset, ret);
    return ret;
}

/*
 * vCPUs and device DMA may go on using the host addresses until they notice
 * that the memory region is gone: from now on they find scratch memory there.
 */
static void vvfu_cut_off(void *host, size_t size)
{
    const int flags = MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

    /*
     *= VVFU-WINDOW-4
     *# The device MUST ensure that after a range's removal no access of the
     *# driver reaches the peer's memory in that range.
     */
    if (mmap(host, size, PROT_READ | PROT_WRITE, flags, -1, 0) != MAP_FAILED) {
        return;
    }
    /* Without memory for that: a stale access faults, which is still better
     * than one that reaches the peer. */
    if (mmap(host, size, PROT_NONE, flags, -1, 0) == MAP_FAILED) {
        munmap(host, size);
    }
}

static void vvfu_remove_mapping(VirtioVfioUser *s, VvfuMapping *mapping)
{
    vvfu_cut_off(mapping->host, mapping->size);
    vvfu_transaction_begin(s);
    memory_region_del_subregion(&s->bar_window, &mapping->mr);
    object_unref(OBJECT(mapping));
}

void vvfu_window_unmap(void *opaque, uint64_t window_offset, uint64_t size)
{
    VirtioVfioUser *s = opaque;
    VvfuMapping *mapping;

    trace_virtio_vfio_user_window_unmap(window_offset, size);
    if (s->unrealized) {
        return; /* vvfu_window_cleanup() did it */
    }
    mapping = g_hash_table_lookup(s->mappings, &window_offset);
    if (!mapping || mapping->size != size) {
        return;
    }
    g_hash_table_remove(s->mappings, &window_offset);
    vvfu_remove_mapping(s, mapping);
}

void vvfu_transaction_begin(VirtioVfioUser *s)
{
    if (!s->in_transaction) {
        s->in_transaction = true;
        memory_region_transaction_begin();
    }
}

void vvfu_transaction_end(VirtioVfioUser *s)
{
    if (s->in_transaction) {
        s->in_transaction = false;
        memory_region_transaction_commit();
        vvfu_doorbells_free_retired(s);
        s->new_mappings = 0;
    }
}

/*
 *= VVFU-WINDOW-5
 *# The device SHOULD return all-ones for reads of parts of the window that
 *# show no range.
 */
static uint64_t vvfu_hole_read(void *opaque, hwaddr addr, unsigned size)
{
    return UINT64_MAX;
}

static void vvfu_hole_write(void *opaque, hwaddr addr, uint64_t value,
                            unsigned size)
{
}

static const MemoryRegionOps vvfu_hole_ops = {
    .read = vvfu_hole_read,
    .write = vvfu_hole_write,
    .endianness = DEVICE_LITTLE_ENDIAN,
    .valid = { .min_access_size = 1, .max_access_size = 8, .unaligned = true },
    .impl = { .min_access_size = 1, .max_access_size = 8, .unaligned = true },
};

uint64_t vvfu_window_bar_size(const VirtioVfioUser *s)
{
    return pow2ceil(s->window_size + s->region_memory_size);
}

static bool vvfu_region_memory_init(VirtioVfioUser *s, Error **errp)
{
    void *host;

    if (!s->region_memory_size) {
        return true;
    }
    host = mmap(NULL, s->region_memory_size, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (host == MAP_FAILED) {
        error_setg_errno(errp, errno,
                         "virtio-vfio-user: cannot map "
                         "region memory");
        return false;
    }
    s->region_memory_host = host;
    memory_region_init_ram_ptr(&s->region_memory, OBJECT(s->pci),
                               "virtio-vfio-user-region-memory",
                               s->region_memory_size, host);
    memory_region_add_subregion(&s->bar_window, s->window_size,
                                &s->region_memory);
    return true;
}

int vvfu_region_memory_map(void *opaque, uint64_t offset, uint64_t size,
                           int fd, uint64_t fd_offset)
{
    VirtioVfioUser *s = opaque;

    if (s->unrealized) {
        return -ENODEV;
    }
    if (mmap((char *)s->region_memory_host + offset, size,
             PROT_READ | PROT_WRITE, MAP_FIXED | MAP_SHARED, fd,
             fd_offset) == MAP_FAILED) {
        return -errno;
    }
    return 0;
}

void vvfu_region_memory_unmap(void *opaque, uint64_t offset, uint64_t size)
{
    VirtioVfioUser *s = opaque;

    vvfu_cut_off((char *)s->region_memory_host + offset, size);
}

bool vvfu_window_init(VirtioVfioUser *s, Error **errp)
{
    memory_region_init_io(&s->bar_window, OBJECT(s->pci), &vvfu_hole_ops, s,
                          "virtio-vfio-user-window", vvfu_window_bar_size(s));
    if (!vvfu_region_memory_init(s, errp)) {
        return false;
    }
    s->mappings = g_hash_table_new(g_int64_hash, g_int64_equal);
    return true;
}

void vvfu_window_cleanup(VirtioVfioUser *s)
{
    GHashTableIter iter;
    gpointer value;

    g_hash_table_iter_init(&iter, s->mappings);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        g_hash_table_iter_steal(&iter);
        vvfu_remove_mapping(s, value);
    }
    vvfu_transaction_end(s);
    if (s->region_memory_host) {
        memory_region_del_subregion(&s->bar_window, &s->region_memory);
    }
    g_hash_table_destroy(s->mappings);
    s->mappings = NULL;
}

void vvfu_window_finalize(VirtioVfioUser *s)
{
    VvfuReservation *reservation;

    if (s->region_memory_host) {
        reservation = g_new(VvfuReservation, 1);
        reservation->host = s->region_memory_host;
        reservation->size = s->region_memory_size;
        call_rcu(reservation, vvfu_reservation_free, rcu);
    }
}

static const TypeInfo vvfu_mapping_info = {
    .name = TYPE_VVFU_MAPPING,
    .parent = TYPE_OBJECT,
    .instance_size = sizeof(VvfuMapping),
    .instance_finalize = vvfu_mapping_finalize,
};

static void vvfu_window_register_types(void)
{
    type_register_static(&vvfu_mapping_info);
}

type_init(vvfu_window_register_types)
