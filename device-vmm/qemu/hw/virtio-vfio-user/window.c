/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * virtio-vfio-user: the window on the peer's memory (BAR 2), and region memory
 * (BAR 4, behind the virtio structures).
 *
 * Both are arenas: QEMU's memory map does not change while ranges and areas
 * come and go, and their functions need no BQL.
 */
#include "qemu/osdep.h"
#include "qemu/host-utils.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "virtio-vfio-user.h"
#include "trace.h"

/*
 *= VVFU-WINDOW-5
 *
 * Parts of the window that show no range show scratch memory: the same few MiB
 * again and again, in at most so many mappings. Reads and writes of any width
 * and length succeed there, whoever does them; what is written may change.
 */
#define VVFU_SCRATCH_MAPPINGS 1024
#define VVFU_MIN_SCRATCH (2 * MiB)

int vvfu_window_map(void *opaque, uint64_t window_offset, uint64_t size,
                    int protection, int fd, uint64_t fd_offset)
{
    VirtioVfioUser *s = opaque;
    int ret = -ENODEV;

    if (!s->unrealized) {
        ret = vvfu_arena_map(&s->window, window_offset, size, protection, fd,
                             fd_offset);
    }
    trace_virtio_vfio_user_window_map(window_offset, size, protection, fd,
                                      fd_offset, ret);
    return ret;
}

void vvfu_window_unmap(void *opaque, uint64_t window_offset, uint64_t size)
{
    VirtioVfioUser *s = opaque;

    trace_virtio_vfio_user_window_unmap(window_offset, size);
    if (!s->unrealized) { /* else vvfu_window_cleanup() did it */
        vvfu_arena_unmap(&s->window, window_offset, size);
    }
}

int vvfu_region_memory_map(void *opaque, uint64_t offset, uint64_t size, int fd,
                           uint64_t fd_offset)
{
    VirtioVfioUser *s = opaque;

    if (s->unrealized || !s->region_memory.host) {
        return -ENODEV;
    }
    return vvfu_arena_map(&s->region_memory, offset, size,
                          PROT_READ | PROT_WRITE, fd, fd_offset);
}

void vvfu_region_memory_unmap(void *opaque, uint64_t offset, uint64_t size)
{
    VirtioVfioUser *s = opaque;

    if (!s->unrealized && s->region_memory.host) {
        /* Nobody can see it there yet. */
        vvfu_arena_zero(&s->region_memory, offset, size);
        vvfu_arena_unmap(&s->region_memory, offset, size);
    }
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
    }
}

uint64_t vvfu_window_bar_size(const VirtioVfioUser *s)
{
    return pow2ceil(s->window_size);
}

uint64_t vvfu_region_memory_offset(const VirtioVfioUser *s, uint64_t structures)
{
    uint64_t offset = pow2ceil(structures);

    /* Huge pages of it shall be huge pages of the guest. */
    return s->region_memory_size >= 2 * MiB ? MAX(offset, 2 * MiB) : offset;
}

static uint64_t vvfu_scratch_size(const VirtioVfioUser *s)
{
    uint64_t share =
        pow2ceil(DIV_ROUND_UP(s->window_size, VVFU_SCRATCH_MAPPINGS));

    return MIN(MAX(share, VVFU_MIN_SCRATCH), s->window_size);
}

bool vvfu_window_init(VirtioVfioUser *s, Error **errp)
{
    if (!vvfu_arena_init(&s->window, "virtio-vfio-user-window", s->window_size,
                         vvfu_scratch_size(s), errp)) {
        return false;
    }
    /*
     * A "RAM device": the guest's CPUs access it as RAM, but QEMU's own devices
     * go through a bounce buffer, so that no transfer of theirs is still under
     * way into memory that was cut off; and it is in no dump of the guest.
     */
    memory_region_init_ram_device_ptr(&s->window_memory, OBJECT(s->pci),
                                      "virtio-vfio-user-window", s->window_size,
                                      s->window.host);
    memory_region_init(&s->bar_window, OBJECT(s->pci),
                       "virtio-vfio-user-window-bar", vvfu_window_bar_size(s));
    memory_region_add_subregion(&s->bar_window, 0, &s->window_memory);
    return vvfu_arena_fill(&s->window, errp);
}

bool vvfu_region_memory_init(VirtioVfioUser *s, Error **errp)
{
    if (!s->region_memory_size) {
        return true;
    }
    if (!vvfu_arena_init(&s->region_memory, "virtio-vfio-user-region-memory",
                         s->region_memory_size, s->region_memory_size, errp)) {
        return false;
    }
    memory_region_init_ram_ptr(&s->region_memory_region, OBJECT(s->pci),
                               "virtio-vfio-user-region-memory",
                               s->region_memory_size, s->region_memory.host);
    return vvfu_arena_fill(&s->region_memory, errp);
}

static void vvfu_leave_container(MemoryRegion *mr)
{
    /* Inside of another region of the same owner it keeps its owner alive. */
    if (mr->container) {
        memory_region_del_subregion(mr->container, mr);
    }
}

void vvfu_window_cleanup(VirtioVfioUser *s)
{
    if (s->window.host) {
        vvfu_arena_clear(&s->window);
        vvfu_leave_container(&s->window_memory);
    }
    if (s->region_memory.host) {
        vvfu_arena_clear(&s->region_memory);
        vvfu_leave_container(&s->region_memory_region);
    }
}

void vvfu_window_finalize(VirtioVfioUser *s)
{
    vvfu_arena_free(&s->window);
    vvfu_arena_free(&s->region_memory);
}
