# SPDX-License-Identifier: BSD-3-Clause
"""Objects without a C++ object: made by `Class.__new__`, or by a subclass that does not call `super().__init__()`."""

from __future__ import annotations

import copy
import itertools
import pickle
import types

import pytest

import vhost_ioat
from vhost_ioat import Burst, EthVhost, VhostIoatError, _core
from vhost_ioat.dma import IoatChannel, IoatModel
from vhost_ioat.guest import Guest
from vhost_ioat.virtio import DriverRing, GuestMemory, SplitRing

OBJECT = {*dir(object), "__module__", "__dict__", "__weakref__", "_pybind11_conduit_v1_"}
ARGUMENTS = (0, b"", [], "io")


def native_classes(module: types.ModuleType) -> list[type]:
    """Every class of the native module and its submodules; one that is added later is here by itself."""
    found = []
    for value in vars(module).values():
        if isinstance(value, types.ModuleType) and value.__name__.startswith(f"{module.__name__}."):
            found += native_classes(value)
        elif isinstance(value, type):
            found.append(value)
    return found


CLASSES = [cls for cls in native_classes(_core) if cls is not Burst]
MEMBERS = [
    (cls, name)
    for cls in CLASSES
    for name in dir(cls)
    if name not in OBJECT or (name == "__repr__" and name in vars(cls))
]


def refusal(attempt):
    """What the attempt raises, or None. A TypeError about arguments says nothing yet."""
    try:
        attempt()
    except VhostIoatError as error:
        return str(error)
    except TypeError:
        return None
    pytest.fail("a method of an object that was never initialised returned")


def tried(instance, cls, name):
    if isinstance(getattr(cls, name), property):
        return refusal(lambda: getattr(instance, name))
    for count in range(5):
        for arguments in itertools.product(ARGUMENTS, repeat=count):
            if text := refusal(lambda arguments=arguments: getattr(cls, name)(instance, *arguments)):
                return text
    return None


def test_the_walk_finds_the_classes():
    names = {cls.__name__ for cls in CLASSES}
    assert {"Port", "Guest", "GuestMemory", "SplitRing", "DriverRing", "IoatModel", "IoatChannel"} <= names
    assert len(MEMBERS) > 90


@pytest.mark.parametrize(("cls", "name"), MEMBERS, ids=lambda value: getattr(value, "__name__", value))
def test_every_member_raises(cls, name):
    text = tried(cls.__new__(cls), cls, name)
    assert text is not None
    assert "initialised" in text


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_subclass_that_forgets_to_initialise(cls):
    names = [name for owner, name in MEMBERS if owner is cls and not name.startswith("__")]

    class Forgetful(cls):
        def __init__(self):
            self.refusals = [tried(self, cls, name) for name in names]
            assert all(self.refusals)

    with pytest.raises(TypeError, match="__init__"):
        Forgetful()


@pytest.mark.parametrize("method", ["start", "stop", "close", "link", "stats", "xstats", "info", "events", "wait_link"])
def test_a_port_in_python_raises_too(method):
    with pytest.raises((VhostIoatError, AttributeError)):
        getattr(EthVhost.__new__(EthVhost), method)()


def test_the_burst_methods_raise():
    port = EthVhost.__new__(EthVhost)
    for call in (lambda: port.rx_burst(0), lambda: port.tx_burst(0, [b"x" * 60]), port.__enter__):
        with pytest.raises(VhostIoatError, match="initialised"):
            call()


@pytest.mark.parametrize(
    "use",
    [
        lambda memory, model: SplitRing(memory, 4, 0, 64, 128),
        lambda memory, model: DriverRing(memory, 4, 0, 64, 128),
        lambda memory, model: IoatChannel(model),
        lambda memory, model: _core.dma.VfioUserServer(model),
        lambda memory, model: vhost_ioat.forward(EthVhost.__new__(EthVhost), EthVhost.__new__(EthVhost), seconds=0),
        lambda memory, model: _core.Forwarder(*[_core.Port.__new__(_core.Port)] * 2, "io", 1, "drop"),
        lambda memory, model: Guest.__enter__(Guest.__new__(Guest)),
    ],
)
def test_as_an_argument_they_raise(use):
    with pytest.raises(VhostIoatError, match="initialised"):
        use(GuestMemory.__new__(GuestMemory), IoatModel.__new__(IoatModel))


def test_a_second_init_changes_nothing(tmp_path):
    guest = Guest(str(tmp_path / "a"), queues=2)
    guest.__init__(str(tmp_path / "b"), queues=3)
    assert guest.queues == 2
    memory = GuestMemory([(0, 4096)])
    memory.view(0, 4, writable=True)[:] = 7
    memory.__init__([(0, 8192)])
    assert memory.view(0, 4).tolist() == [7] * 4


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps], ids=lambda f: f.__name__)
def test_none_can_be_copied_or_pickled(duplicate, tmp_path):
    port = EthVhost(str(tmp_path / "p"))
    guest = Guest(str(tmp_path / "g"))
    memory = GuestMemory([(0, 4096)])
    model = IoatModel()
    burst = Burst.from_packets([b"x" * 60])
    for original in (port, guest, memory, SplitRing(memory, 4, 0, 64, 128), model, IoatChannel(model), burst):
        with pytest.raises(TypeError):
            duplicate(original)
    port.close()


def test_a_burst_comes_from_nowhere_else():
    for make in (Burst, lambda: object.__new__(Burst), lambda: Burst.__new__(Burst)):
        with pytest.raises(TypeError):
            make()
    with pytest.raises(TypeError):
        type("Sub", (Burst,), {})
