# SPDX-License-Identifier: BSD-3-Clause
from vhost_ioat import GuestError
from vhost_ioat.testing import Memory
from vhost_ioat.testing.model import EVENT_IDX, Device
from vhost_ioat.testing.stateful import HostileRingMachine, RingMachine
from vhost_ioat.virtio import DriverRing, GuestMemory, SplitRing


class NativeRing:
    """`SplitRing` over memory that the machines see as bytes."""

    def open_memory(self, regions):
        self.native = GuestMemory(regions)
        return Memory((gpa, self.native.view(gpa, size, writable=True)) for gpa, size in regions)

    def open_ring(self, view, features, last_avail):
        return SplitRing(
            self.native, view.size, view.desc, view.avail, view.used, features=features, last_avail=last_avail
        )


class NativeRingMachine(NativeRing, RingMachine):
    """The ring of this package."""


class NativeHostileRingMachine(NativeRing, HostileRingMachine):
    """The ring of this package, and a driver that writes anything."""

    FAULTS = (GuestError,)


class NativeDriverMachine(NativeRing, RingMachine):
    """The driver of this package, and the model as its device. Its indirect tables are out of the model's sight."""

    FEATURES = EVENT_IDX

    def open_driver(self, view, features, start):
        return DriverRing(self.native, view.size, view.desc, view.avail, view.used, features=features, start=start)

    def open_ring(self, view, features, last_avail):
        return Device(view, features=features, last_avail=last_avail)


class NativeBothMachine(NativeRing, RingMachine):
    """Both sides are of this package."""

    def open_driver(self, view, features, start):
        return DriverRing(self.native, view.size, view.desc, view.avail, view.used, features=features, start=start)


TestModel = RingMachine.TestCase
TestModelWithHostileDriver = HostileRingMachine.TestCase
TestNative = NativeRingMachine.TestCase
TestNativeWithHostileDriver = NativeHostileRingMachine.TestCase
TestNativeDriver = NativeDriverMachine.TestCase
TestNativeBoth = NativeBothMachine.TestCase
