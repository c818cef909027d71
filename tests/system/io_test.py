# SPDX-License-Identifier: BSD-3-Clause
"""Two VMs: the unmodified nvme driver of one does I/O on a disk that vvfu-guest in the other implements."""

import json
import re
import types

import pytest

from vmlab import guestio
from vmlab.diskimage import MIB, DiskImage, random_file

RAW = 48 * MIB


@pytest.fixture(scope="module")
def vms(lab):
    image = DiskImage(lab.directory / "disk.img", RAW + 16 * MIB, 64 * MIB)
    source = lab.directory / "source.img"
    digest = random_file(source, RAW)
    device = lab.device_vm(image.path).start()
    device.wait_ready()
    device.bind()
    device.start_guest_driver("nvme --serial=IO-TEST --backing=/dev/vda")
    driver = lab.driver_vm(source=source, smp=2, programs=["fio"]).start()
    driver.wait_ready()
    guestio.wait_for_disk(driver)
    return types.SimpleNamespace(image=image, digest=digest, device=device, driver=driver)


def on_image(vms, size):
    """SHA-256 of partition 1 in the host's file, after the device guest has written its cache back."""
    vms.device.run("sync", 120)
    return vms.image.raw_digest(size)


def test_driver_guest_sees_an_nvme_controller_of_the_images_size(vms):
    seen = guestio.controller(vms.driver)
    assert seen["class"] == "0x010802"
    assert seen["serial"] == "IO-TEST"
    assert guestio.wait_for_disk(vms.driver) == vms.image.size
    assert int(seen["queues"]) == 3, "an admin queue and one I/O queue per CPU"


def test_session_is_visible_in_the_device_vmm(vms):
    assert vms.device.property("session-state") == "connected"
    assert vms.device.property("epoch") == 1
    assert vms.device.property("peer-pid") == vms.driver.process.pid


def test_direct_io_reaches_the_image_and_reads_back(vms):
    guestio.write_direct(vms.driver, "/dev/vda", "/dev/nvme0n1p1", RAW)
    assert guestio.read_direct(vms.driver, "/dev/nvme0n1p1", RAW)[1] == vms.digest
    assert on_image(vms, RAW) == vms.digest


def test_every_io_queue_raises_its_own_msix_vector(vms):
    before = guestio.interrupts(vms.driver)
    for cpu in (0, 1):
        vms.driver.run(f"taskset {cpu + 1} dd if=/dev/nvme0n1p1 of=/dev/null bs=64k count=64 iflag=direct 2>/dev/null")
    after = guestio.interrupts(vms.driver)
    assert set(after) == {"nvme0q0", "nvme0q1", "nvme0q2"}
    for queue in ("nvme0q1", "nvme0q2"):
        assert "MSIX" in after[queue][1].replace("-", "")
        assert after[queue][0] >= before[queue][0] + 32, f"{queue}: {before[queue]} then {after[queue]}"


def test_both_queues_in_parallel_keep_their_data_apart(vms):
    half = RAW // 2 // MIB
    copy = f"dd if=/dev/vda of=/dev/nvme0n1p1 bs=256k oflag=direct count={half * 4}"
    vms.driver.run("dd if=/dev/zero of=/dev/nvme0n1p1 bs=1M oflag=direct count=48 2>/dev/null", 120)
    vms.driver.run(f"taskset 1 {copy} 2>/dev/null & "
                   f"taskset 2 {copy} skip={half * 4} seek={half * 4} 2>/dev/null & wait", 120)
    assert guestio.read_direct(vms.driver, "/dev/nvme0n1p1", RAW)[1] == vms.digest


def test_small_unaligned_buffers_and_odd_lengths(vms):
    vms.driver.run("dd if=/dev/vda of=/dev/nvme0n1p1 bs=3584 count=1000 oflag=direct 2>/dev/null && "
                   "dd if=/dev/vda of=/dev/nvme0n1p1 bs=512 skip=7000 seek=7000 count=300 oflag=direct 2>/dev/null", 120)
    expected = vms.driver.run("dd if=/dev/vda bs=512 count=7300 2>/dev/null | sha256sum")
    assert vms.driver.run("dd if=/dev/nvme0n1p1 bs=512 count=7300 iflag=direct 2>/dev/null | sha256sum", 60) == expected


def test_mounted_filesystem_survives_a_second_mount(vms):
    run = vms.driver.run
    run("/bin/mke2fs -q -F -t ext4 /dev/nvme0n1p2 && mount -t ext4 /dev/nvme0n1p2 /mnt", 120)
    run("mkdir -p /mnt/a/b && dd if=/dev/vda of=/mnt/a/b/data bs=1M count=24 2>/dev/null", 120)
    run("for i in $(seq 200); do echo $i >/mnt/a/$i; done")
    run("umount /mnt && mount -t ext4 -o ro /dev/nvme0n1p2 /mnt", 120)
    expected = run("dd if=/dev/vda bs=1M count=24 2>/dev/null | sha256sum").split()[0]
    assert guestio.digest(vms.driver, "/mnt/a/b/data") == expected
    assert run("ls /mnt/a | wc -l").strip() == "201"
    assert run("cat /mnt/a/137").strip() == "137"
    run("umount /mnt")


def test_fio_verifies_random_writes_at_depth(vms):
    """Two jobs, each with its own range and checksums; many commands in flight, flushes between them."""
    output = vms.driver.run(
        "cd /tmp && fio --filename=/dev/nvme0n1p1 --direct=1 --ioengine=libaio --iodepth=32 --rw=randwrite "
        "--bsrange=512-128k --bs_unaligned=0 --fsync=64 --verify=crc32c --verify_fatal=1 --size=6M "
        "--name=first --offset=0 --name=second --offset=24M --output-format=json", 300)
    result = json.loads(output[output.index("{"):])
    assert [job["error"] for job in result["jobs"]] == [0, 0]
    for job in result["jobs"]:
        assert job["write"]["io_bytes"] == 6 * MIB
        assert job["read"]["io_bytes"] == 6 * MIB, "everything was read back and verified"


def nvme(vms, command, **options):
    return vms.driver.run(f"nvme {command}", **options)


def test_nvme_cli_reads_identity_logs_and_features(vms):
    identity = json.loads(nvme(vms, "id-ctrl /dev/nvme0 -o json"))
    assert identity["sn"].strip() == "IO-TEST"
    assert identity["nn"] >= 1
    namespace = json.loads(nvme(vms, "id-ns /dev/nvme0n1 -o json"))
    assert namespace["nsze"] * 512 == vms.image.size
    before = json.loads(nvme(vms, "smart-log /dev/nvme0 -o json"))
    vms.driver.run("dd if=/dev/nvme0n1 of=/dev/null bs=1M count=8 iflag=direct 2>/dev/null", 60)
    after = json.loads(nvme(vms, "smart-log /dev/nvme0 -o json"))
    assert int(after["host_read_commands"]) > int(before["host_read_commands"])
    for command in ("error-log /dev/nvme0", "fw-log /dev/nvme0", "list-ns /dev/nvme0", "get-feature /dev/nvme0 -f 7",
                    "ns-descs /dev/nvme0n1", "flush /dev/nvme0n1"):
        nvme(vms, command)


def refused_with(vms, command):
    """Status code and type (NVMe 4.6.1) of a command that fails."""
    status, output = nvme(vms, command, check=False)
    assert status != 0, f"nvme {command} succeeded"
    return int(re.search(r"\(0x([0-9a-f]+)\)", output)[1], 16) & 0x7ff


def test_bad_commands_get_the_specified_status_and_the_device_lives(vms):
    last = vms.image.size // 512
    assert refused_with(vms, "admin-passthru /dev/nvme0 --opcode=0x7f") == 0x001, "Invalid Command Opcode"
    assert refused_with(vms, f"read /dev/nvme0n1 -s {last} -c 0 -z 512 -d /dev/null") == 0x080, "LBA Out of Range"
    assert refused_with(vms, "get-feature /dev/nvme0 -f 0x7f") == 0x002, "Invalid Field in Command"
    beyond = json.loads(nvme(vms, "id-ctrl /dev/nvme0 -o json"))["nn"] + 1
    assert refused_with(vms, f"id-ns /dev/nvme0 -n {beyond}") == 0x00b, "Invalid Namespace or Format"
    nvme(vms, "id-ctrl /dev/nvme0")


def test_write_zeroes_and_discard(vms):
    vms.driver.run("dd if=/dev/vda of=/dev/nvme0n1p1 bs=1M count=4 oflag=direct 2>/dev/null", 60)
    start = MIB // 512
    nvme(vms, f"write-zeroes /dev/nvme0n1 -s {start + 2048} -c 2047")
    read = "dd if=/dev/nvme0n1p1 bs=1M skip=%d count=1 iflag=direct 2>/dev/null | sha256sum"
    zeroes = vms.driver.run("dd if=/dev/zero bs=1M count=1 2>/dev/null | sha256sum")
    assert vms.driver.run(read % 1) == zeroes
    expected = vms.driver.run("dd if=/dev/vda bs=1M skip=2 count=1 2>/dev/null | sha256sum")
    assert vms.driver.run(read % 2) == expected, "the block behind the zeroed range changed"
    nvme(vms, f"dsm /dev/nvme0n1 -d -s {start} -b 2048")
    assert vms.driver.run(read % 2) == expected


def test_controller_reset_keeps_data(vms):
    guestio.write_direct(vms.driver, "/dev/vda", "/dev/nvme0n1p1", 8 * MIB)
    expected = guestio.read_direct(vms.driver, "/dev/nvme0n1p1", 8 * MIB)[1]
    nvme(vms, "reset /dev/nvme0", seconds=60)
    vms.driver.run("until [ $(cat /sys/class/nvme/nvme0/state) = live ]; do usleep 50000; done", 60)
    assert guestio.read_direct(vms.driver, "/dev/nvme0n1p1", 8 * MIB)[1] == expected


def test_driver_can_be_unbound_and_bound_again(vms):
    expected = guestio.read_direct(vms.driver, "/dev/nvme0n1p1", 8 * MIB)[1]
    address = guestio.controller(vms.driver)["address"]
    vms.driver.run(f"echo {address} >/sys/bus/pci/drivers/nvme/unbind", 60)
    assert vms.driver.run("test -e /dev/nvme0n1", check=False)[0] != 0
    vms.driver.run(f"echo {address} >/sys/bus/pci/drivers/nvme/bind", 60)
    guestio.wait_for_disk(vms.driver)
    assert guestio.read_direct(vms.driver, "/dev/nvme0n1p1", 8 * MIB)[1] == expected


def test_driver_guest_reboot_resets_the_device_within_the_session(vms):
    epoch = vms.device.property("epoch")
    expected = guestio.read_direct(vms.driver, "/dev/nvme0n1p1", 8 * MIB)[1]
    boot = vms.driver.run("cat /proc/sys/kernel/random/boot_id").strip()
    vms.driver.agent.post("reboot -f")
    assert vms.driver.wait_ready() != boot
    guestio.wait_for_disk(vms.driver)
    assert vms.device.property("epoch") == epoch, "a reboot is no new session"
    assert guestio.read_direct(vms.driver, "/dev/nvme0n1p1", 8 * MIB)[1] == expected
    guestio.write_direct(vms.driver, "/dev/vda", "/dev/nvme0n1p1", 8 * MIB)


def test_driver_guest_powers_off_in_order(vms):
    vms.driver.power_off()
    vms.device.await_state("listening")
    vms.device.stop_guest_driver()
    vms.device.await_state("no driver")
    assert not vms.device.socket.exists(), "without a device there is no socket"
    vms.device.power_off()
