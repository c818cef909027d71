# SPDX-License-Identifier: BSD-3-Clause
"""Bad set-up in the device guest gets one clear line that says what is wrong and what to do."""

import pytest

from vmlab.topology import FUNCTION

UUID = "5f1c7e2a-90b3-4d68-8a41-c3e2d7f60b19"


@pytest.fixture(scope="module")
def device(lab):
    image = lab.directory / "disk.img"
    image.write_bytes(bytes(1 << 20))
    machine = lab.device_vm(image, properties={"uuid": UUID}).start()
    machine.wait_ready()
    return machine


def refused(machine, arguments, status=1):
    """The one line that vvfu-guest prints when it does not start."""
    found, output = machine.run(f"timeout 300 vvfu-guest {arguments} </dev/null", 60, check=False)
    lines = output.strip().splitlines()
    assert found == status, output
    assert len(lines) == 1, output
    assert lines[0].startswith("vvfu-guest: "), output
    return lines[0]


def test_no_such_function(device):
    assert "0000:00:1e.0" in refused(device, "--device=0000:00:1e.0 nvme --backing=/dev/vda")


def test_malformed_address_is_a_usage_error(device):
    assert "zebra" in refused(device, "--device=zebra nvme --backing=/dev/vda", status=2)


def test_not_a_virtio_vfio_user_function(device):
    line = refused(device, "--device=0000:00:05.0 nvme --backing=/dev/vda")
    assert "0000:00:05.0" in line and "virtio-vfio-user" in line


def test_function_not_bound_to_vfio_pci(device):
    line = refused(device, f"--device={FUNCTION} nvme --backing=/dev/vda")
    assert "vfio-pci" in line and "driver_override" in line


def test_list_names_the_function_before_and_after_binding(device):
    assert FUNCTION in device.run("vvfu-guest list")
    device.bind()
    line = next(line for line in device.run("vvfu-guest list").splitlines() if FUNCTION in line)
    assert "vfio-pci" in line


def test_uuid_that_no_function_has(device):
    uuid = "01234567-89ab-cdef-0123-456789abcdef"
    assert uuid in refused(device, f"--uuid={uuid} nvme --backing=/dev/vda")


def test_backing_missing(device):
    assert "/dev/vdz" in refused(device, f"--device={FUNCTION} nvme --backing=/dev/vdz")


def test_backing_of_odd_size(device):
    device.run("dd if=/dev/zero of=/tmp/odd bs=1000 count=3 2>/dev/null")
    line = refused(device, f"--device={FUNCTION} nvme --backing=/tmp/odd")
    assert "3000" in line and "512" in line


def test_no_device_model(device):
    refused(device, f"--device={FUNCTION}", status=2)


def test_print_capabilities_and_version(device):
    assert '"type"' in device.run("vvfu-guest --print-capabilities")
    assert device.run("vvfu-guest --version").strip()


def test_second_instance_is_refused_while_one_serves(device):
    device.start_guest_driver("nvme --backing=mem:16M")
    refused(device, f"--device={FUNCTION} nvme --backing=mem:16M")
    assert device.socket.is_socket(), "the first one still serves"
    device.stop_guest_driver()


def test_found_by_uuid(device):
    assert any(FUNCTION in line and UUID in line for line in device.run("vvfu-guest list").splitlines())
    device.start_guest_driver("nvme --backing=mem:16M", options=f"--uuid={UUID}")
    device.stop_guest_driver()


def test_machine_without_viommu_has_no_iommu_group(lab):
    # The first machine has the usual path.
    machine = lab.device_vm(name="noiommu", iommu=False, properties={"socket": lab.directory / "noiommu.sock"}).start()
    machine.wait_ready()
    # vfio-pci refuses a device without a group; vvfu-guest must name the cause, not the symptom.
    machine.run(f"vfio-bind {FUNCTION}", check=False)
    line = refused(machine, f"--device={FUNCTION} nvme --backing=mem:16M")
    assert "IOMMU" in line and "intel-iommu" in line
    machine.power_off()
