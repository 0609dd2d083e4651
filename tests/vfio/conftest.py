# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

import pytest

from vfio import packages


@pytest.fixture(scope="session", autouse=True)
def machine_parts() -> None:
    """QEMU and a kernel, before the first test's clock runs."""
    try:
        packages.sysroot()
    except OSError as error:
        pytest.skip(str(error))
