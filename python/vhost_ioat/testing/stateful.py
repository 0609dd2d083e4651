# SPDX-License-Identifier: BSD-3-Clause
"""The state machines. Subclass one, override the method that opens what is tested, and collect its `TestCase`.

class TestMyRing(MyRingMachine.TestCase): ...
"""

from .channels import DmaMachine
from .rings import HostileRingMachine, RingMachine
from .sessions import SessionMachine

__all__ = ["DmaMachine", "HostileRingMachine", "RingMachine", "SessionMachine"]
