# SPDX-License-Identifier: BSD-3-Clause
"""ARCHITECTURE.md and its picture are of the tree they lie in."""

import html
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PICTURE = (ROOT / "docs" / "architecture.dot").read_text()
LABELS = re.findall(r'label="\s*([^"]+)"', PICTURE)
SOURCES = sorted((ROOT / "csrc").rglob("*.[ch]pp"))
LONGEST = 400  # lines


def test_the_picture_was_drawn_from_its_source() -> None:
    drawn = html.unescape((ROOT / "docs" / "architecture.svg").read_text()).replace("\N{NO-BREAK SPACE}", " ")
    assert LABELS
    missing = [label for label in LABELS if label not in drawn]
    assert not missing, f"run make docs/architecture.svg: {missing}"


@pytest.mark.parametrize("label", [label for label in LABELS if "/  " in label])
def test_what_the_picture_names_is_in_that_folder(label: str) -> None:
    folder, _, names = label.partition("/  ")
    text = "\n".join(path.read_text() for path in (ROOT / "csrc" / folder).glob("*.[ch]pp"))
    for name in re.findall(r"\b[A-Z][a-z]\w+", re.sub("<.*?>", "", names)):
        assert re.search(rf"\b(class|struct) (\w+ )*{name}\b", text) or name == "Burst", f"{folder}/ has no {name}"


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`([a-z_]+/[a-z_]+\.[ch]pp)`", (ROOT / "ARCHITECTURE.md").read_text())))
)
def test_a_file_that_the_text_names_is_there(path: str) -> None:
    assert (ROOT / "csrc" / path).exists()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_file_has_one_subject_and_room_for_it(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= LONGEST, f"{lines} lines: which two subjects are in it?"
