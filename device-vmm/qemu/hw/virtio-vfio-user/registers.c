/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * virtio-vfio-user: registers of ours, while the function is there.
 */
#include "qemu/osdep.h"
#include "virtio-vfio-user.h"

static uint64_t vvfu_registers_read(void *opaque, hwaddr addr, unsigned size)
{
    VvfuRegisters *registers = opaque;
    VirtioVfioUser *s = registers->owner;

    return s->unrealized ? 0 : registers->read(s, addr, size);
}

static void vvfu_registers_write(void *opaque, hwaddr addr, uint64_t value,
                                 unsigned size)
{
    VvfuRegisters *registers = opaque;
    VirtioVfioUser *s = registers->owner;

    if (!s->unrealized) {
        registers->write(s, addr, value, size);
    }
}

void vvfu_registers_init(VvfuRegisters *registers, VirtioVfioUser *s,
                         const char *name, hwaddr offset, uint64_t size)
{
    registers->owner = s;
    registers->ops.read = vvfu_registers_read;
    registers->ops.write = vvfu_registers_write;
    registers->ops.endianness = DEVICE_LITTLE_ENDIAN;
    memory_region_init_io(&registers->mr, OBJECT(s->pci), &registers->ops,
                          registers, name, size);
    memory_region_add_subregion(&s->bar_interrupts, offset, &registers->mr);
}

void vvfu_registers_cleanup(VvfuRegisters *registers)
{
    /* A subregion holds a reference to the function, which lived on. */
    memory_region_del_subregion(&registers->owner->bar_interrupts,
                                &registers->mr);
}
