/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * virtio-vfio-user: registers of ours, while the function is there.
 *
 * A vCPU finds a register first and waits for the BQL then: meanwhile the
 * function may be unplugged. What it accessed stays as long as it looks, but
 * holds nothing any more. So every page of registers is one of these: handlers
 * are not called once the device is unrealized (reads give 0), and what they
 * use of a realized device is freed no earlier than when the function is
 * finalized, if it outlives vvfu_core_stop() at all.
 */
#ifndef HW_VIRTIO_VFIO_USER_REGISTERS_H
#define HW_VIRTIO_VFIO_USER_REGISTERS_H

#include "hw/virtio/virtio.h"

typedef struct VirtioVfioUser VirtioVfioUser;

typedef struct VvfuRegisters {
    MemoryRegion mr;
    VirtioVfioUser *owner;
    uint64_t (*read)(VirtioVfioUser *s, hwaddr addr, unsigned size);
    void (*write)(VirtioVfioUser *s, hwaddr addr, uint64_t value,
                  unsigned size);
    MemoryRegionOps ops;
} VvfuRegisters;

/*
 * Puts `size` bytes of registers at an offset of BAR 0. The caller has set the
 * handlers, and in `ops` the sizes of accesses that they take.
 */
void vvfu_registers_init(VvfuRegisters *registers, VirtioVfioUser *s,
                         const char *name, hwaddr offset, uint64_t size);
/* Takes them out of the BAR. */
void vvfu_registers_cleanup(VvfuRegisters *registers);

#endif
