# SPDX-License-Identifier: BSD-3-Clause
"""A small Linux guest under QEMU, with virtual I/OAT cards, that runs commands typed into its serial port."""

from __future__ import annotations

import json
import lzma
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

from interop.console import Console
from vfio import packages

HERE = Path(__file__).resolve().parent
MODULES = ["ioatdma", "vfio_pci", "vfio_iommu_type1", "9pnet_virtio", "9p"]


def kernel_version() -> str:
    return next((packages.sysroot() / "usr/lib/modules").iterdir()).name


def initramfs() -> Path:
    """A file system of busybox, the modules above with what they need, and init."""
    image = packages.CACHE / "initramfs.gz"
    init = HERE / "init"
    if image.exists() and image.stat().st_mtime > max(init.stat().st_mtime, Path(__file__).stat().st_mtime):
        return image
    system = packages.sysroot()
    root = packages.CACHE / "initramfs"
    shutil.rmtree(root, ignore_errors=True)
    (root / "bin").mkdir(parents=True)
    shutil.copy(system / "usr/bin/busybox", root / "bin/busybox")
    shutil.copy(init, root / "init")
    (root / "init").chmod(0o755)

    source = system / "usr/lib/modules" / kernel_version()
    target = root / "lib/modules" / kernel_version()
    depends = {}
    for line in (source / "modules.dep").read_text().splitlines():
        module, _, needs = line.partition(":")
        depends[module] = needs.split()
    by_name = {Path(module).name.removesuffix(".ko.xz").replace("-", "_"): module for module in depends}
    wanted = {by_name[name] for name in MODULES}
    wanted |= {need for module in wanted for need in depends[module]}
    target.mkdir(parents=True)
    lines = []
    for module in sorted(wanted):
        plain = target / module.removesuffix(".xz")
        plain.parent.mkdir(parents=True, exist_ok=True)
        plain.write_bytes(lzma.decompress((source / module).read_bytes()))
        lines.append(f"{module}: {' '.join(depends[module])}\n".replace(".ko.xz", ".ko"))
    (target / "modules.dep").write_text("".join(lines))

    names = "\n".join(str(path.relative_to(root)) for path in [root, *sorted(root.rglob("*"))])
    archive = subprocess.run(
        ["cpio", "--quiet", "-o", "-H", "newc"], cwd=root, input=names.encode(), stdout=subprocess.PIPE, check=True
    )
    partial = image.with_suffix(".partial")
    partial.write_bytes(subprocess.run(["gzip", "-1"], input=archive.stdout, stdout=subprocess.PIPE, check=True).stdout)
    partial.rename(image)
    return image


class VM(Console):
    """A guest that boots on entry. `cards` are sockets on which vfio-user servers listen already.

    With `host` the guest sees this machine's file system, read-only, at /host, and may chroot to it. With `bridge` the
    cards sit behind a bridge to conventional PCI, which puts them into one IOMMU group.
    """

    def __init__(
        self,
        *cards: str,
        iommu: bool = False,
        bridge: bool = False,
        machine: str = "q35",
        memory: int = 512,
        host: bool = False,
    ) -> None:
        system = packages.sysroot()
        self._complaints = tempfile.NamedTemporaryFile("w+")  # noqa: SIM115  (QEMU's stderr; the guest has stdout)
        command = [
            *("sh", "-c", 'exec "$@" 2>"$0"', self._complaints.name),
            "env",  # else QEMU loads the modules of the machine's own QEMU
            f"QEMU_MODULE_DIR={system / 'usr/lib/x86_64-linux-gnu/qemu'}",
            *packages.loader(system, "qemu-system-x86_64"),
            str(system / "usr/bin/qemu-system-x86_64"),
            *("-L", str(system / "usr/share/qemu"), "-L", str(system / "usr/share/seabios")),
            *("-machine", f"{machine},memory-backend=ram", "-cpu", "max", "-accel", "tcg", "-m", f"{memory}M"),
            *("-object", f"memory-backend-memfd,id=ram,size={memory}M,share=on"),
            *("-nodefaults", "-nographic", "-serial", "stdio"),
            *("-kernel", str(next((system / "boot").glob("vmlinuz-*"))), "-initrd", str(initramfs())),
            *("-append", f"console=ttyS0 quiet panic=-1 intel_iommu={'on' if iommu else 'off'}"),
        ]
        if iommu:
            command += ["-device", "intel-iommu,caching-mode=on"]
        if host:
            command += ["-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"]
        if bridge:
            command += ["-device", "pcie-pci-bridge,id=bridge"]
        for slot, card in enumerate(cards, 1):
            device: dict[str, object] = {"driver": "vfio-user-pci", "socket": {"path": card, "type": "unix"}}
            if bridge:
                device |= {"bus": "bridge", "addr": str(slot)}
            command += ["-device", json.dumps(device)]
        self._host = host
        super().__init__(command)

    def __enter__(self) -> Self:
        try:
            self.wait_booted()
        except BaseException:
            self.kill()
            raise
        return self

    def expect(self, pattern: str, timeout: float = 60) -> re.Match[str]:
        try:
            return super().expect(pattern, timeout)
        except AssertionError as error:
            error.add_note("QEMU: " + self.complaints())
            raise

    def kill(self) -> None:
        super().kill()
        self._complaints.close()

    def complaints(self) -> str:
        """What QEMU itself said last."""
        return Path(self._complaints.name).read_text()[-4000:]

    def wait_booted(self, timeout: float = 120) -> None:
        self.expect(r"@ready@\n", timeout)
        if self._host:
            self.run("modprobe 9pnet_virtio && modprobe 9p")
            self.run("mount -t 9p -o ro,trans=virtio,cache=loose,msize=262144 host /host")
            # Not /tmp: the checkout may lie there.
            self.run("for folder in dev proc sys run; do mount --bind /$folder /host/$folder; done")

    def run(self, command: str, *, timeout: float = 60, check: bool = True) -> str:
        """Run one line of shell and return what it printed; AssertionError when it fails."""
        start = self._seen
        self.send(command)
        end = self.expect(r"@done (\d+)@\n", timeout)
        output = self.text[start : end.start()]
        if check and end[1] != "0":
            msg = f"guest: {command!r} ended with {end[1]}:\n{output}"
            raise AssertionError(msg)
        return output

    def reboot(self) -> None:
        self.send("reboot -f")
        self.wait_booted()

    def cards(self) -> list[str]:
        """PCI addresses of the I/OAT cards."""
        return self.run("cd /sys/bus/pci/devices; grep -lE '0x(0b00|2021)' */device | cut -d/ -f1").split()

    def bind(self, address: str, driver: str) -> None:
        """Hand a device to a driver, whatever holds it now."""
        device = f"/sys/bus/pci/devices/{address}"
        self.run(f"echo {driver} > {device}/driver_override")
        self.run(f"[ ! -e {device}/driver ] || echo {address} > {device}/driver/unbind")
        self.run(f"modprobe {driver}")
        self.run(f"[ -e {device}/driver ] || echo {address} > /sys/bus/pci/drivers_probe")

    @property
    def environment(self) -> str:
        """What makes Python in the guest find the packages that the test finds."""
        return "PYTHONPATH=" + shlex.quote(os.environ.get("PYTHONPATH", ""))

    def python(self, script: str, *, timeout: float = 60, check: bool = True) -> str:
        """Run a Python script with the interpreter and the packages of the test itself; needs `host`."""
        with tempfile.NamedTemporaryFile("w", suffix=".py", dir=packages.CACHE) as file:
            file.write(script)
            file.flush()
            Path(file.name).chmod(0o644)
            return self.run(
                f"{self.environment} chroot /host {sys.executable} {file.name}", timeout=timeout, check=check
            )

    def driver(self, address: str) -> str:
        return Path(self.run(f"readlink /sys/bus/pci/devices/{address}/driver || true").strip()).name
