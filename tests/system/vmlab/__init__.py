# SPDX-License-Identifier: BSD-3-Clause
"""Two virtual machines, a device between them, and commands run inside: what system tests and the demo share."""
