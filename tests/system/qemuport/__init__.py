# SPDX-License-Identifier: BSD-3-Clause
"""The device VM's QEMU without a guest: the tests play the guest driver over qtest, and the peer over the socket."""
