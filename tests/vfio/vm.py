# SPDX-License-Identifier: BSD-3-Clause
"""A small Linux guest under QEMU, with virtual I/OAT cards, that runs commands typed into its serial port."""

from __future__ import annotations

import json
import lzma
import os
import re
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType

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


class CommandFailed(AssertionError):
    pass


class VM:
    """Boots on entry. `cards` are the sockets of vfio-user servers that listen already."""

    def __init__(
        self, *cards: Path | str, iommu: bool = False, machine: str = "q35", memory: int = 512, host: bool = False
    ) -> None:
        system = packages.sysroot()
        kernel = next((system / "boot").glob("vmlinuz-*"))
        command = [
            *packages.loader(system, "qemu-system-x86_64"),
            str(system / "usr/bin/qemu-system-x86_64"),
            *("-L", str(system / "usr/share/qemu"), "-L", str(system / "usr/share/seabios")),
            *("-machine", f"{machine},memory-backend=ram", "-cpu", "max", "-accel", "tcg", "-m", f"{memory}M"),
            *("-object", f"memory-backend-memfd,id=ram,size={memory}M,share=on"),
            *("-nodefaults", "-nographic", "-serial", "stdio"),
            *("-kernel", str(kernel), "-initrd", str(initramfs())),
            *("-append", f"console=ttyS0 quiet panic=-1 {'intel_iommu=on' if iommu else ''}"),
        ]
        if iommu:
            command += ["-device", "intel-iommu,caching-mode=on"]
        if host:
            command += ["-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"]
        for card in cards:
            device = {"driver": "vfio-user-pci", "socket": {"path": str(card), "type": "unix"}}
            command += ["-device", json.dumps(device)]
        self._command = command
        self._host = host
        self._text = ""  # what the guest printed and nobody took yet
        self.log = ""  # all of it

    def __enter__(self) -> VM:
        environment = {**os.environ, "QEMU_MODULE_DIR": str(packages.sysroot() / "usr/lib/x86_64-linux-gnu/qemu")}
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
        )
        try:
            self.wait_boot()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def wait_boot(self, timeout: float = 120) -> None:
        self._until(r"@ready@\s+", timeout)
        if self._host:
            self.run("modprobe 9pnet_virtio; modprobe 9p; mount -t 9p -o ro,trans=virtio,cache=loose,msize=262144 host /host")
            self.run("for d in dev proc sys tmp; do mount --bind /$d /host/$d; done")

    def run(self, command: str, *, timeout: float = 60, check: bool = True) -> str:
        """Runs one shell command line and returns what it printed."""
        assert self._process.stdin
        self._process.stdin.write(command.encode() + b"\n")
        self._process.stdin.flush()
        text, end = self._until(r"@done (\d+)@\s+", timeout)
        if check and end[1] != "0":
            raise CommandFailed(f"{command}: exit code {end[1]}\n{text}")
        return text.replace("\r", "")

    def reboot(self) -> None:
        assert self._process.stdin
        self._process.stdin.write(b"reboot -f\n")
        self._process.stdin.flush()
        self.wait_boot()

    def _until(self, pattern: str, timeout: float) -> tuple[str, re.Match[str]]:
        assert self._process.stdout
        end = time.monotonic() + timeout
        while not (match := re.search(pattern, self._text)):
            ready, _, _ = select.select([self._process.stdout], [], [], max(0, end - time.monotonic()))
            data = os.read(self._process.stdout.fileno(), 65536) if ready else b""
            if not data:
                why = f"ended with {self._process.wait()}" if ready else f"printed no {pattern!r} within {timeout} s"
                raise TimeoutError(f"the guest {why}:\n{self.log[-4000:]}")
            text = data.decode(errors="replace")
            self._text += text
            self.log += text
        before, self._text = self._text[: match.start()], self._text[match.end() :]
        return before, match
