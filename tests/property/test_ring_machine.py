# SPDX-License-Identifier: BSD-3-Clause
from vhost_ioat.testing.stateful import HostileRingMachine, RingMachine

TestModel = RingMachine.TestCase
TestModelWithHostileDriver = HostileRingMachine.TestCase
