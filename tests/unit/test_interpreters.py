# SPDX-License-Identifier: BSD-3-Clause
"""Sub-interpreters are refused with a sentence, and the main interpreter goes on."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
if {first}:
    import vhost_ioat
names = {{"isolated": False}} if sys.version_info < (3, 13) else {{"config": "legacy"}}
try:
    other = interpreters.create(**names)
except TypeError:
    other = interpreters.create("legacy")
code = '''
import sys
sys.path[:] = {path!r}
for attempt in range(2):
    try:
        import {module}
    except ImportError as error:
        print(type(error).__name__, "sub-interpreter" in str(error) or "subinterpreter" in str(error), flush=True)
'''
print(interpreters.run_string(other, code) or "returned", flush=True)
interpreters.destroy(other)
import vhost_ioat
print(len(vhost_ioat.Burst.from_packets([b"x" * 60])))
"""


def refused(first: bool, module: str) -> str:
    script = SCRIPT.format(first=first, module=module, path=sys.path)
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_sub_interpreter_gets_an_import_error():
    assert refused(False, "vhost_ioat._core") == "ImportError True\nImportError True\nreturned\n1\n"


def test_also_when_the_main_interpreter_has_the_module():
    assert refused(True, "vhost_ioat.guest") == "ImportError True\nImportError True\nreturned\n1\n"
