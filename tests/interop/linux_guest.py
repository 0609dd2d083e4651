# SPDX-License-Identifier: BSD-3-Clause
"""Real Linux guests with virtio-net cards on vhost-user sockets, and busybox in them.

In QEMU, with Debian's cloud kernel; or Linux as a process of this machine's, which is User-Mode Linux.
"""

from __future__ import annotations

import gzip
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from interop.console import Console
from watchdog import WATCHDOG

ROOT = Path(__file__).parents[2]
KERNEL = ROOT / ".cache" / "guest-kernel"
# insmod resolves nothing, so the order counts: virtio_ring is what virtio stands on
MODULES = [
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
]

# No interactive shell: it edits lines, and sees an end of input while it switches the terminal's mode.
INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in {modules}; do insmod /modules/$module.ko; done
stty -echo
echo guest is up
while read -r line; do eval "$line" </dev/null; echo "@ended:$?"; done
"""


def fetch_kernel() -> Path:
    """The folder with the guest's kernel, downloaded on first use. Raises OSError when it cannot be had."""
    try:
        subprocess.run(
            [ROOT / "tools" / "guest-kernel", KERNEL], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
    except subprocess.CalledProcessError as error:
        msg = f"no kernel for the guest: {error.stderr.decode().strip()[-500:]}"
        raise OSError(msg) from error
    return KERNEL


def build_initramfs(target: Path) -> Path:
    """For LinuxGuest."""
    kernel = fetch_kernel()
    return pack_initramfs(target, [kernel / f"{module}.ko" for module in MODULES])


def build_uml_initramfs(target: Path) -> Path:
    """For UmlGuest, whose virtio is part of the kernel."""
    kernels = sorted(Path("/usr/lib/uml/modules").glob("*/kernel"))
    places = ["net/core/failover.ko", "drivers/net/net_failover.ko", "drivers/net/virtio_net.ko"]
    return pack_initramfs(target, [kernels[-1] / place for place in places])


def pack_initramfs(target: Path, modules: list[Path]) -> Path:
    """busybox, the modules and an /init that ends in a shell on the console."""
    tree = target.with_suffix(".d")
    (tree / "bin").mkdir(parents=True)
    (tree / "modules").mkdir()
    shutil.copy("/bin/busybox", tree / "bin" / "busybox")
    for module in modules:
        shutil.copy(module, tree / "modules")
    init = tree / "init"
    init.write_text(INIT.format(modules=" ".join(module.stem for module in modules)))
    init.chmod(0o755)
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    archive = subprocess.run(
        ["cpio", "--quiet", "-o", "-H", "newc"], cwd=tree, input=names.encode(), stdout=subprocess.PIPE, check=True
    ).stdout
    target.write_bytes(gzip.compress(archive, 1))
    return target


@dataclass(frozen=True)
class Nic:
    """One virtio-net card of a guest. server=True: QEMU listens on `path` and the back end connects."""

    path: str
    server: bool = False
    queues: int = 1
    host_mtu: int | None = None
    mac: str | None = None
    options: dict[str, str] = field(default_factory=dict)  # more properties of virtio-net-pci

    def arguments(self, index: int) -> list[str]:
        device = {"netdev": f"n{index}", "romfile": "", "vectors": "0", **self.options}
        if self.queues > 1:
            device["mq"] = "on"
        if self.host_mtu:
            device["host_mtu"] = str(self.host_mtu)
        if self.mac:
            device["mac"] = self.mac
        return [
            *("-chardev", f"socket,id=c{index},path={self.path}" + (",server=on" if self.server else "")),
            *("-netdev", f"vhost-user,id=n{index},chardev=c{index},queues={self.queues}"),
            *("-device", ",".join(["virtio-net-pci", *(f"{key}={value}" for key, value in device.items())])),
        ]


class Shell(Console):
    """A guest with a shell. `run` is how a test speaks to it."""

    def wait_booted(self, timeout: float = 120.0) -> None:
        self.expect("guest is up", timeout)

    def run(self, command: str, timeout: float = WATCHDOG, *, check: bool = True) -> str:
        """Run one line of shell in the guest and return what it printed; AssertionError when it fails."""
        self.send(command)
        start = self._seen
        match = self.expect(r"@ended:(\d+)\n", timeout)
        output = self.text[start : match.start()]
        if check and match[1] != "0":
            msg = f"guest: {command!r} ended with {match[1]}:\n{output}"
            raise AssertionError(msg)
        return output

    def up(self, address: str, mtu: int = 1500, interface: str = "eth0") -> None:
        self.run(f"ip link set {interface} mtu {mtu} up && ip addr add {address} dev {interface}")

    def ping(self, address: str, size: int = 56, count: int = 5, timeout: float = WATCHDOG) -> int:
        """Number of answers to `count` pings."""
        output = self.run(f"ping -c {count} -i 0.2 -W 5 -s {size} {address}", timeout, check=False)
        return output.count(f"{size + 8} bytes from")

    def power_off(self) -> None:
        self.send("poweroff -f")
        self.wait()
        self.kill()


class LinuxGuest(Shell):
    """A guest in QEMU.

    Software emulation, since a test machine is often a virtual machine itself. vectors=0 (no MSI-X) because QEMU 7.2
    crashes under it with MSI-X and vhost-user.
    """

    def __init__(self, initramfs: Path, *nics: Nic, memory: int = 256, cpus: int = 1) -> None:
        command = ["qemu-system-x86_64", "-machine", "q35", "-cpu", "max", "-accel", "tcg", "-smp", str(cpus)]
        command += ["-m", str(memory), "-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio"]
        command += ["-kernel", str(KERNEL / "vmlinuz"), "-initrd", str(initramfs)]
        command += ["-append", "console=ttyS0 quiet panic=-1"]
        command += ["-object", f"memory-backend-memfd,id=mem,size={memory}M,share=on", "-numa", "node,memdev=mem"]
        for index, nic in enumerate(nics):
            command += nic.arguments(index)
        super().__init__(command)


class UmlGuest(Shell):
    """User-Mode Linux, one card: a front end that is neither QEMU's nor DPDK's, and boots in a second.

    Its memory is a file in /dev/shm, shared with the back end.
    """

    def __init__(self, initramfs: Path, path: str, memory: int = 128) -> None:
        command = ["linux.uml", f"mem={memory}M", f"initrd={initramfs}", "quiet", "con=null", "con0=fd:0,fd:1"]
        super().__init__([*command, f"virtio_uml.device={path}:1:1"], TMPDIR="/dev/shm")
