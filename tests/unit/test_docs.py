# SPDX-License-Identifier: BSD-3-Clause
"""The code in the documentation runs."""

import re
import subprocess
import sys
from pathlib import Path

TESTING = Path(__file__).parents[2] / "docs" / "testing.md"


def test_the_examples_of_the_test_kit_pass(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", TESTING.read_text(), re.DOTALL)
    assert len(blocks) == 4
    (tmp_path / "test_it.py").write_text("\n\n".join(blocks))
    (tmp_path / "conftest.py").write_text(
        "from hypothesis import settings\n"
        'settings.register_profile("short", deadline=None, max_examples=10)\n'
        'settings.load_profile("short")\n'
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, timeout=250)
    assert re.search(r"\b4 passed", done.stdout), done.stdout
