/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * virtio-vfio-user: all that differs between the QEMU versions that it builds
 * with (scripts/build-qemu --help lists them), as far as can be told of 11 too.
 */
#ifndef HW_VIRTIO_VFIO_USER_COMPAT_H
#define HW_VIRTIO_VFIO_USER_COMPAT_H

#define VVFU_QEMU_AT_LEAST(major, minor)                                       \
    (QEMU_VERSION_MAJOR > (major) ||                                           \
     (QEMU_VERSION_MAJOR == (major) && QEMU_VERSION_MINOR >= (minor)))

#if VVFU_QEMU_AT_LEAST(10, 1)
#include "system/memory.h"
#else
#include "exec/memory.h"
#endif

#if VVFU_QEMU_AT_LEAST(11, 0)
#include "hw/core/qdev-properties.h"
#include "hw/core/qdev-properties-system.h"
#else
#include "hw/qdev-properties.h"
#include "hw/qdev-properties-system.h"
#endif

/* What the data argument of a class_init() points to. */
#if VVFU_QEMU_AT_LEAST(10, 1)
typedef const void VvfuClassData;
#else
typedef void VvfuClassData;
#endif

/* A VirtioDeviceClass.set_status: since 10.1 it can fail. Ours does not. */
#if VVFU_QEMU_AT_LEAST(10, 1)
#define VVFU_DEFINE_SET_STATUS(name, handler)                                  \
    static int name(VirtIODevice *vdev, uint8_t status)                        \
    {                                                                          \
        handler(vdev, status);                                                 \
        return 0;                                                              \
    }
#else
#define VVFU_DEFINE_SET_STATUS(name, handler)                                  \
    static void name(VirtIODevice *vdev, uint8_t status)                       \
    {                                                                          \
        handler(vdev, status);                                                 \
    }
#endif

#endif
