/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * virtio-vfio-user: the state of the session, as QOM properties of the PCI
 * function that can only be read. They are there while it is realized, so that
 * "-device virtio-vfio-user-pci,help" shows what a user can set and no more:
 * it would show properties of the class.
 */
#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/visitor.h"
#include "virtio-vfio-user.h"

/* The core goes with the virtio device, a little before the function does. */
static VvfuCoreState vvfu_get_state(const VirtioVfioUser *s)
{
    VvfuCoreState state = { .state = "not realized" };

    if (s->core) {
        vvfu_core_state(s->core, &state);
    }
    return state;
}

static void vvfu_get_session_state(Object *obj, Visitor *v, const char *name,
                                   void *opaque, Error **errp)
{
    char *state = (char *)vvfu_get_state(opaque).state;

    visit_type_str(v, name, &state, errp);
}

#define VVFU_GETTER(field)                                                     \
    static void vvfu_get_##field(Object *obj, Visitor *v, const char *name,    \
                                 void *opaque, Error **errp)                   \
    {                                                                          \
        uint64_t value = vvfu_get_state(opaque).field;                         \
                                                                               \
        visit_type_uint64(v, name, &value, errp);                              \
    }

VVFU_GETTER(epoch)
VVFU_GETTER(peer_pid)
VVFU_GETTER(peer_uid)
VVFU_GETTER(mapped_bytes)
VVFU_GETTER(mapped_ranges)
VVFU_GETTER(message_ranges)
VVFU_GETTER(requests)
VVFU_GETTER(protocol_errors)
VVFU_GETTER(deadline_expiries)
VVFU_GETTER(unknown_replies)
VVFU_GETTER(silences)
VVFU_GETTER(dropped_accesses)

static const struct {
    const char *name, *type;
    ObjectPropertyAccessor *get;
    const char *description;
} vvfu_state[] = {
    { "session-state", "str", vvfu_get_session_state,
      "State of the session: no driver, no device, listening, negotiating, "
      "connected or broken" },
    { "epoch", "uint64", vvfu_get_epoch,
      "Number of the current or last session" },
    { "peer-pid", "uint64", vvfu_get_peer_pid,
      "Process ID of the connected peer, or 0" },
    { "peer-uid", "uint64", vvfu_get_peer_uid,
      "User ID of the connected peer" },
    { "mapped-bytes", "uint64", vvfu_get_mapped_bytes,
      "Bytes of the peer's memory in the window" },
    { "mapped-ranges", "uint64", vvfu_get_mapped_ranges,
      "Ranges of the peer's memory in the window" },
    { "message-ranges", "uint64", vvfu_get_message_ranges,
      "Ranges of the peer's memory outside of the window" },
    { "requests", "uint64", vvfu_get_requests, "Messages that the peer sent" },
    { "protocol-errors", "uint64", vvfu_get_protocol_errors,
      "Messages of the peer that were refused" },
    { "deadline-expiries", "uint64", vvfu_get_deadline_expiries,
      "Times that the guest or the peer was too late" },
    { "unknown-replies", "uint64", vvfu_get_unknown_replies,
      "Replies of the guest that answered nothing" },
    { "silences", "uint64", vvfu_get_silences,
      "Times that the guest stopped to answer anything" },
    { "dropped-accesses", "uint64", vvfu_get_dropped_accesses,
      "Register accesses that were answered without the guest, because it was "
      "silent or in a reset" },
};

void vvfu_state_publish(VirtioVfioUser *s)
{
    Object *function = OBJECT(s->pci);

    for (size_t i = 0; i < ARRAY_SIZE(vvfu_state); i++) {
        object_property_add(function, vvfu_state[i].name, vvfu_state[i].type,
                            vvfu_state[i].get, NULL, NULL, s);
        object_property_set_description(function, vvfu_state[i].name,
                                        vvfu_state[i].description);
    }
}

void vvfu_state_unpublish(VirtioVfioUser *s)
{
    for (size_t i = 0; i < ARRAY_SIZE(vvfu_state); i++) {
        object_property_del(OBJECT(s->pci), vvfu_state[i].name);
    }
}
