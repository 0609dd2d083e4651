# SPDX-License-Identifier: BSD-3-Clause
"""Fetches what a VM test needs from Debian: a QEMU with vfio-user, a kernel with ioatdma and VFIO, a static busybox.

Nothing is installed and no root is needed: apt resolves and checks the packages in a root of its own, they are unpacked
side by side into .cache/vfio, and QEMU is started with the libraries it was built for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "vfio"
SUITE = "trixie"
PACKAGES = ["qemu-system-x86", "linux-image-amd64", "busybox-static", "kmod"]
PREFERENCES = f"Package: src:qemu src:seabios\nPin: release n={SUITE}-backports\nPin-Priority: 900\n"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def mirror() -> str:
    """The Debian mirror this machine's own apt uses; DEBIAN_MIRROR names one where apt has none (Ubuntu)."""
    if named := os.environ.get("DEBIAN_MIRROR"):
        return named
    targets = subprocess.check_output(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)", "Created-By: Packages"], text=True
    )
    for line in targets.splitlines():
        if line.startswith("Debian Debian "):
            return line.split()[-1]
    msg = "apt knows no Debian mirror here: run apt-get update, or name one in DEBIAN_MIRROR"
    raise OSError(msg)


def _apt(root: Path, *arguments: str) -> None:
    settings = {
        "Dir": str(root),
        "Dir::State::status": str(root / "status"),
        "Dir::Etc::trusted": "/dev/null",
        "Dir::Etc::trustedparts": "/dev/null",
        "APT::Architecture": "amd64",
        "APT::Architectures": "amd64",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "root",
        "Debug::NoLocking": "true",
    }
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    command = ["apt-get", "-q", *options, *arguments]
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        msg = f"apt-get {arguments[0]} in {root} failed:\n{done.stderr[-2000:]}"
        raise OSError(msg)


def sysroot() -> Path:
    """The unpacked packages, fetched once (110 MB). Raises OSError when they cannot be had."""
    done = CACHE / "sysroot"
    if done.exists():
        return done
    apt_root, unpacked = CACHE / "apt", CACHE / "sysroot.partial"
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir(parents=True)
    for folder in ("etc/apt", "var/lib/apt/lists/partial", "var/cache/apt/archives/partial"):
        (apt_root / folder).mkdir(parents=True, exist_ok=True)
    (apt_root / "status").touch()
    (apt_root / "etc/apt/preferences").write_text(PREFERENCES)
    (apt_root / "etc/apt/sources.list").write_text(
        "".join(f"deb [signed-by={KEYRING}] {mirror()} {suite} main\n" for suite in (SUITE, f"{SUITE}-backports"))
    )
    _apt(apt_root, "update")
    _apt(apt_root, "--download-only", "--yes", "install", *PACKAGES)
    # A merged /usr: later packages that still carry /lib must land in the same place.
    for name in ("bin", "sbin", "lib", "lib64"):
        (unpacked / "usr" / name).mkdir(parents=True, exist_ok=True)
        (unpacked / name).symlink_to(f"usr/{name}")
    archives = apt_root / "var/cache/apt/archives"
    for package in sorted(archives.glob("*.deb")):
        unpack: list[str | Path] = ["tar", "-x", "--keep-directory-symlink", "--no-same-owner", "-C", unpacked]
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as tar:
            subprocess.run(unpack, stdin=tar.stdout, check=True)
        if tar.returncode:
            msg = f"cannot unpack {package.name}"
            raise OSError(msg)
    version = next((unpacked / "usr/lib/modules").iterdir()).name
    subprocess.run(
        [*loader(unpacked, "depmod"), unpacked / "usr/bin/kmod", "-b", unpacked / "usr", version], check=True
    )
    unpacked.rename(done)
    shutil.rmtree(apt_root)
    return done


def loader(root: Path, argv0: str) -> list[str]:
    """How a program of the unpacked system starts: with its own dynamic linker and libraries, not this machine's."""
    return [
        str(root / "usr/lib64/ld-linux-x86-64.so.2"),
        *("--library-path", str(root / "usr/lib/x86_64-linux-gnu")),
        *("--argv0", argv0),
    ]
