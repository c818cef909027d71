/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * virtio-vfio-user: host addresses of which parts show files of the peer, and
 * all others filler memory.
 *
 * The addresses are QEMU's for good, so the memory region over them, its RAM
 * block and its memory slot never change: to show a file, or to cut it off, is
 * a matter of the host's page tables alone. KVM, vhost and TCG follow those at
 * once. No function but init and free needs the BQL, and any thread may call
 * them, one at a time for each arena.
 */
#ifndef HW_VIRTIO_VFIO_USER_ARENA_H
#define HW_VIRTIO_VFIO_USER_ARENA_H

#include "qemu/interval-tree.h"

typedef struct VvfuArena {
    uint8_t *host; /* NULL: not initialised */
    uint64_t size;
    void *reservation; /* what is unmapped in the end: host is aligned */
    uint64_t reservation_size;

    int fd;          /* of the filler: a sealed memfd of `chunk` bytes */
    uint64_t chunk;  /* offset o shows the filler's byte o % chunk */
    uint8_t *filler; /* where mappings of the filler are copied from */

    IntervalTreeRoot ranges;  /* VvfuArenaRange */
    uint64_t read_only_bytes; /* of ranges that are mapped privately */
    unsigned mappings;        /* of the kernel's, at most, for all this */
} VvfuArena;

/*
 * Reserves addresses, aligned so that huge pages of files stay huge, and makes
 * the filler. All arrives at vvfu_arena_fill().
 */
bool vvfu_arena_init(VvfuArena *arena, const char *name, uint64_t size,
                     uint64_t chunk, Error **errp);
/*
 * Shows the filler everywhere: after the memory region was made, which changes
 * attributes of the addresses.
 */
bool vvfu_arena_fill(VvfuArena *arena, Error **errp);
/*
 * Shows [fd_offset, fd_offset + size) of a file at an offset where no other
 * range is. Without PROT_WRITE stores go to private copies of the file's pages.
 * Returns 0 or -errno; -ENOSPC: the kernel has no more mappings for us, or too
 * much memory is read-only.
 */
int vvfu_arena_map(VvfuArena *arena, uint64_t offset, uint64_t size,
                   int protection, int fd, uint64_t fd_offset);
/*
 * The filler instead of what vvfu_arena_map() put there; false: nothing was
 * mapped exactly so. When it returns no access reaches the file.
 */
bool vvfu_arena_unmap(VvfuArena *arena, uint64_t offset, uint64_t size);
/* Unmaps every range. */
void vvfu_arena_clear(VvfuArena *arena);
/* The filler is all zero there. */
void vvfu_arena_zero(VvfuArena *arena, uint64_t offset, uint64_t size);
/* After the last user of the memory region; RCU readers may still be there. */
void vvfu_arena_free(VvfuArena *arena);

#endif
