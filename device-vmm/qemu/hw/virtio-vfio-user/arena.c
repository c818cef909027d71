/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * virtio-vfio-user: host addresses of which parts show files of the peer, and
 * all others filler memory.
 */
#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/error-report.h"
#include "qemu/madvise.h"
#include "qemu/memfd.h"
#include "qemu/rcu.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "arena.h"

#ifndef F_SEAL_SEAL
#include <linux/fcntl.h>
#endif

#define VVFU_HOST_PAGE 4096u

/*
 * Read-only ranges are mapped privately: stores that the guest must not do
 * then cost memory of this host, but hurt nobody. What exceeds this is reached
 * by messages.
 */
#define VVFU_MAX_READ_ONLY_BYTES (256 * MiB)

/* Mappings (vm.max_map_count) that the rest of QEMU may need. */
#define VVFU_RESERVED_MAPPINGS 4096

typedef struct VvfuArenaRange {
    IntervalTreeNode node;
    bool read_only;
} VvfuArenaRange;

typedef struct VvfuReservation {
    struct rcu_head rcu;
    void *host;
    size_t size;
} VvfuReservation;

/* ---- the kernel's limit of mappings, which all arenas share ---- */

static int vvfu_mappings_in_use;

static int vvfu_mappings_limit(void)
{
    static int limit;
    g_autofree char *text = NULL;
    uint64_t value = 65530; /* the kernel's default */

    if (!qatomic_read(&limit)) {
        if (g_file_get_contents("/proc/sys/vm/max_map_count", &text, NULL,
                                NULL)) {
            value = g_ascii_strtoull(text, NULL, 10);
        }
        value = MIN(value, INT_MAX);
        qatomic_set(&limit, value > 2 * VVFU_RESERVED_MAPPINGS
                                ? value - VVFU_RESERVED_MAPPINGS
                                : MAX(value / 2, 1));
    }
    return qatomic_read(&limit);
}

static bool vvfu_mappings_take(VvfuArena *arena, unsigned count)
{
    if (qatomic_fetch_add(&vvfu_mappings_in_use, count) + (int)count >
        vvfu_mappings_limit()) {
        qatomic_sub(&vvfu_mappings_in_use, count);
        return false;
    }
    arena->mappings += count;
    return true;
}

static void vvfu_mappings_give(VvfuArena *arena, unsigned count)
{
    qatomic_sub(&vvfu_mappings_in_use, count);
    arena->mappings -= count;
}

/* ---- filler ---- */

/* Neither in core dumps nor in children: it may be another VM's memory. */
static void vvfu_keep_private(void *host, uint64_t size)
{
    qemu_madvise(host, size, QEMU_MADV_DONTDUMP);
    qemu_madvise(host, size, QEMU_MADV_DONTFORK);
}

/*
 * Maps a file somewhere. Inaccessible at first and then not locked: with
 * -overcommit mem-lock=on the kernel would allocate all of it at once, and for
 * a private mapping copy it.
 */
static void *vvfu_map_somewhere(uint64_t size, int flags, int protection,
                                int fd, uint64_t fd_offset)
{
    void *made = mmap(NULL, size, PROT_NONE, flags, fd, fd_offset);
    int error;

    if (made == MAP_FAILED) {
        return NULL;
    }
    if (munlock(made, size) < 0 || mprotect(made, size, protection) < 0) {
        error = errno;
        munmap(made, size);
        errno = error;
        return NULL;
    }
    vvfu_keep_private(made, size);
    return made;
}

/*
 * An old size of 0 makes mremap() copy the mapping, without a moment in which
 * nothing is at the new place: other threads use it meanwhile.
 */
static bool vvfu_show_filler(VvfuArena *arena, uint64_t offset, uint64_t size)
{
    while (size) {
        uint64_t start = offset % arena->chunk;
        uint64_t part = MIN(size, arena->chunk - start);

        if (mremap(arena->filler + start, 0, part,
                   MREMAP_MAYMOVE | MREMAP_FIXED,
                   arena->host + offset) == MAP_FAILED) {
            return false;
        }
        offset += part;
        size -= part;
    }
    return true;
}

/*
 *= VVFU-WINDOW-4
 *# The device MUST ensure that after a range's removal no access of the driver
 *# reaches the peer's memory in that range.
 */
static void vvfu_cut_off(VvfuArena *arena, uint64_t offset, uint64_t size)
{
    if (!vvfu_show_filler(arena, offset, size)) {
        /*
         * The mappings are counted, so the kernel is out of memory for its own
         * small structures. Better no VM than one that reaches the peer, or
         * whatever of QEMU's is mapped there next.
         */
        error_report("virtio-vfio-user: cannot cut off memory of the peer: %s",
                     strerror(errno));
        abort();
    }
}

/* ---- ranges ---- */

static VvfuArenaRange *vvfu_range_at(VvfuArena *arena, uint64_t start,
                                     uint64_t last)
{
    IntervalTreeNode *node =
        interval_tree_iter_first(&arena->ranges, start, last);

    return node ? container_of(node, VvfuArenaRange, node) : NULL;
}

static bool vvfu_is_gap(VvfuArena *arena, uint64_t offset)
{
    return !vvfu_range_at(arena, offset, offset);
}

/*
 * Mappings that a range adds: two in the middle of a gap, one at its edge, none
 * if it fills it. The kernel may join neighbours, never split more. The answer
 * is the same before the range is mapped and after it is unmapped.
 */
static unsigned vvfu_mappings_for(VvfuArena *arena, uint64_t offset,
                                  uint64_t size)
{
    bool gap_before = offset > 0 && vvfu_is_gap(arena, offset - 1);
    bool gap_behind =
        offset + size < arena->size && vvfu_is_gap(arena, offset + size);

    return gap_before + gap_behind;
}

static bool vvfu_has_room(const VvfuArena *arena, uint64_t offset,
                          uint64_t size)
{
    return size && size <= arena->size && offset <= arena->size - size;
}

static int vvfu_show_file(VvfuArena *arena, uint64_t offset, uint64_t size,
                          bool read_only, int fd, uint64_t fd_offset)
{
    /*
     *= VVFU-WINDOW-2
     *# The device MUST NOT let a write through the window reach a range that
     *# the peer mapped without write permission.
     */
    void *made = vvfu_map_somewhere(size, read_only ? MAP_PRIVATE : MAP_SHARED,
                                    PROT_READ | PROT_WRITE, fd, fd_offset);
    int error;

    if (!made) {
        return -errno;
    }
    /*
     * Made elsewhere and moved here: a MAP_FIXED that the peer's file refuses
     * (its seals can) leaves a gap on Linux before 6.12, which another thread
     * may use at once.
     */
    if (mremap(made, size, size, MREMAP_MAYMOVE | MREMAP_FIXED,
               arena->host + offset) == MAP_FAILED) {
        error = -errno;
        munmap(made, size);
        vvfu_cut_off(arena, offset, size);
        return error;
    }
    return 0;
}

int vvfu_arena_map(VvfuArena *arena, uint64_t offset, uint64_t size,
                   int protection, int fd, uint64_t fd_offset)
{
    bool read_only = !(protection & PROT_WRITE);
    VvfuArenaRange *range;
    unsigned mappings;
    int ret;

    if (!vvfu_has_room(arena, offset, size) ||
        vvfu_range_at(arena, offset, offset + size - 1)) {
        return -EINVAL;
    }
    mappings = vvfu_mappings_for(arena, offset, size);
    if ((read_only &&
         size > VVFU_MAX_READ_ONLY_BYTES - arena->read_only_bytes) ||
        !vvfu_mappings_take(arena, mappings)) {
        return -ENOSPC;
    }
    ret = vvfu_show_file(arena, offset, size, read_only, fd, fd_offset);
    if (ret < 0) {
        vvfu_mappings_give(arena, mappings);
        return ret;
    }
    range = g_new0(VvfuArenaRange, 1);
    range->node.start = offset;
    range->node.last = offset + size - 1;
    range->read_only = read_only;
    interval_tree_insert(&range->node, &arena->ranges);
    arena->read_only_bytes += read_only ? size : 0;
    return 0;
}

static void vvfu_remove_range(VvfuArena *arena, VvfuArenaRange *range)
{
    uint64_t offset = range->node.start;
    uint64_t size = range->node.last - offset + 1;

    vvfu_cut_off(arena, offset, size);
    interval_tree_remove(&range->node, &arena->ranges);
    vvfu_mappings_give(arena, vvfu_mappings_for(arena, offset, size));
    arena->read_only_bytes -= range->read_only ? size : 0;
    g_free(range);
}

bool vvfu_arena_unmap(VvfuArena *arena, uint64_t offset, uint64_t size)
{
    VvfuArenaRange *range;

    if (!vvfu_has_room(arena, offset, size)) {
        return false;
    }
    range = vvfu_range_at(arena, offset, offset + size - 1);
    if (!range || range->node.start != offset ||
        range->node.last != offset + size - 1) {
        return false;
    }
    vvfu_remove_range(arena, range);
    return true;
}

void vvfu_arena_clear(VvfuArena *arena)
{
    VvfuArenaRange *range;

    while ((range = vvfu_range_at(arena, 0, UINT64_MAX))) {
        vvfu_remove_range(arena, range);
    }
}

void vvfu_arena_zero(VvfuArena *arena, uint64_t offset, uint64_t size)
{
    if (fallocate(arena->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  offset % arena->chunk, size) < 0) {
        memset(arena->filler + offset % arena->chunk, 0, size);
    }
}

/* ---- life ---- */

/*
 * The addresses. Aligned, so that offsets congruent to file offsets are
 * congruent addresses, and the guest's huge pages are the host's.
 */
static bool vvfu_reserve(VvfuArena *arena, const char *name, Error **errp)
{
    uint64_t align = arena->size >= GiB       ? GiB
                     : arena->size >= 2 * MiB ? 2 * MiB
                                              : VVFU_HOST_PAGE;

    arena->reservation_size = arena->size + align - VVFU_HOST_PAGE;
    arena->reservation =
        mmap(NULL, arena->reservation_size, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena->reservation == MAP_FAILED) {
        error_setg_errno(errp, errno,
                         "%s: cannot reserve %" PRIu64 " MiB of addresses",
                         name, arena->reservation_size / MiB);
        return false;
    }
    arena->host = (uint8_t *)ROUND_UP((uintptr_t)arena->reservation, align);
    return true;
}

static bool vvfu_make_filler(VvfuArena *arena, const char *name, Error **errp)
{
    arena->fd =
        qemu_memfd_create(name, arena->chunk, false, 0,
                          F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL, errp);
    if (arena->fd < 0) {
        return false;
    }
    arena->filler = vvfu_map_somewhere(arena->chunk, MAP_SHARED,
                                       PROT_READ | PROT_WRITE, arena->fd, 0);
    if (!arena->filler) {
        error_setg_errno(errp, errno, "%s: cannot map its memory", name);
        close(arena->fd);
        return false;
    }
    return true;
}

bool vvfu_arena_init(VvfuArena *arena, const char *name, uint64_t size,
                     uint64_t chunk, Error **errp)
{
    *arena = (VvfuArena){ .size = size, .chunk = chunk };
    if (!vvfu_mappings_take(arena, DIV_ROUND_UP(size, chunk))) {
        error_setg(errp, "%s: vm.max_map_count leaves no room for it", name);
        return false;
    }
    if (!vvfu_make_filler(arena, name, errp)) {
        vvfu_mappings_give(arena, arena->mappings);
        return false;
    }
    if (!vvfu_reserve(arena, name, errp)) {
        munmap(arena->filler, chunk);
        close(arena->fd);
        vvfu_mappings_give(arena, arena->mappings);
        return false;
    }
    return true;
}

bool vvfu_arena_fill(VvfuArena *arena, Error **errp)
{
    if (!vvfu_show_filler(arena, 0, arena->size)) {
        error_setg_errno(errp, errno,
                         "virtio-vfio-user: cannot map scratch "
                         "memory");
        return false;
    }
    return true;
}

static void vvfu_reservation_free(VvfuReservation *reservation)
{
    munmap(reservation->host, reservation->size);
    g_free(reservation);
}

void vvfu_arena_free(VvfuArena *arena)
{
    VvfuReservation *reservation;

    if (!arena->host) {
        return;
    }
    vvfu_arena_clear(arena);
    vvfu_mappings_give(arena, arena->mappings);
    munmap(arena->filler, arena->chunk);
    close(arena->fd);
    reservation = g_new(VvfuReservation, 1);
    reservation->host = arena->reservation;
    reservation->size = arena->reservation_size;
    /* The RAM block is reclaimed by RCU as well, before this. */
    call_rcu(reservation, vvfu_reservation_free, rcu);
    arena->host = NULL;
}
