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
static VvfuCoreState vvfu_get_state(VirtioVfioUser *s)
{
    VvfuCoreState state = { .state = "not realized" };

    vvfu_core_begin(s);
    if (s->core) {
        vvfu_core_state(s->core, &state);
    }
    vvfu_core_end(s);
    return state;
}

/* Requests that ended without the guest's answer. */
static uint64_t vvfu_unanswered(VirtioVfioUser *s)
{
    VvfuCoreState state = vvfu_get_state(s);

    return state.deadline_expiries + state.dropped_accesses;
}

static void vvfu_vm_state_changed(void *opaque, bool running, RunState state)
{
    VirtioVfioUser *s = opaque;

    if (s->paused == !running) {
        return;
    }
    s->paused = !running;
    if (running) {
        s->paused_requests += vvfu_unanswered(s) - s->unanswered_before;
    } else {
        s->unanswered_before = vvfu_unanswered(s);
    }
}

static void vvfu_get_paused_requests(Object *obj, Visitor *v, const char *name,
                                     void *opaque, Error **errp)
{
    VirtioVfioUser *s = opaque;
    uint64_t value = s->paused_requests;

    if (s->paused && s->core) {
        value += vvfu_unanswered(s) - s->unanswered_before;
    }
    visit_type_uint64(v, name, &value, errp);
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
    { "paused-requests", "uint64", vvfu_get_paused_requests,
      "Requests that ended without the guest's answer while the VM was "
      "stopped" },
};

void vvfu_state_publish(VirtioVfioUser *s)
{
    Object *function = OBJECT(s->pci);

    s->paused = !runstate_is_running();
    s->vm_state = qemu_add_vm_change_state_handler(vvfu_vm_state_changed, s);
    for (size_t i = 0; i < ARRAY_SIZE(vvfu_state); i++) {
        object_property_add(function, vvfu_state[i].name, vvfu_state[i].type,
                            vvfu_state[i].get, NULL, NULL, s);
        object_property_set_description(function, vvfu_state[i].name,
                                        vvfu_state[i].description);
    }
}

void vvfu_state_unpublish(VirtioVfioUser *s)
{
    qemu_del_vm_change_state_handler(s->vm_state);
    for (size_t i = 0; i < ARRAY_SIZE(vvfu_state); i++) {
        object_property_del(OBJECT(s->pci), vvfu_state[i].name);
    }
}
