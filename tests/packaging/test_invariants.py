# SPDX-License-Identifier: BSD-3-Clause
"""The tests that docs/invariants.md names exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/invariants.md").read_text()


@pytest.fixture(scope="module")
def cpp_tests():
    sources = [path.read_text() for path in ROOT.glob("tests/cpp/*.cpp")]
    return [name for text in sources for name in re.findall(r'TEST_CASE\(\s*"([^"]+)"', text)]


@pytest.mark.parametrize("name", sorted(set(re.findall(r'"([^"]{3,})"', TEXT)) - {"... sent to"}))
def test_a_cpp_test_is_there(name, cpp_tests):
    assert [test for test in cpp_tests if test.startswith(name.removesuffix(" ...").removesuffix("..."))]


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_[a-z][^`]+)`", TEXT))))
def test_a_python_test_is_there(name):
    file, _, function = name.partition("::")
    (path,) = ROOT.glob(f"tests/*/{file}")
    assert f"def {function.removesuffix('...')}" in path.read_text() if function else path.is_file()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(fuzz_[a-z_]+)`", TEXT))))
def test_a_fuzzer_is_there(name):
    assert (ROOT / "tests/fuzz" / f"{name}.cpp").is_file()
