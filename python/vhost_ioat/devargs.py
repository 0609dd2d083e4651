# SPDX-License-Identifier: BSD-3-Clause
"""The options of a port: a DPDK-style devargs string, or keywords, with one validation for both."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, TypedDict

from .errors import ConfigError

__all__ = ["Devargs", "Options", "parse_devargs"]

MAX_QUEUES = 128
MAX_PATH = 107  # bytes: sockaddr_un.sun_path is 108 with its terminating NUL (unix(7))
MIN_MEMPOOL = 1 << 20  # bytes: what one burst may take
MAX_MEMPOOL = 1 << 43  # bytes: what an arena can count

_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,63}")
_SIZE = re.compile(r"([0-9]{1,19})([KMG]?)")
_TXQ = re.compile(r"txq([0-9]{1,5})")
_PCI = re.compile(r"(?:([0-9a-f]{1,4}):)?([0-9a-f]{1,2}):([01]?[0-9a-f])\.([0-7])", re.IGNORECASE)
_SOFTWARE = re.compile(r"sw([0-9]{1,5})")
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30}

# Keyword -> feature bits (VIRTIO 1.2, 5.1.3 and 6; bit 30 is vhost-user's own).
_FEATURE_BITS = {
    "mrg_rxbuf": (15,),
    "csum": (0,),
    "guest_csum": (1,),
    "tso": (11, 12, 13),  # HOST_TSO4, HOST_TSO6, HOST_ECN
    "guest_tso": (7, 8, 9),  # GUEST_TSO4, GUEST_TSO6, GUEST_ECN
    "uso": (56,),  # HOST_USO
    "guest_uso": (54, 55),  # GUEST_USO4, GUEST_USO6
    "mtu": (3,),
    "status": (16,),
    "ctrl_vq": (17, 18, 21),  # CTRL_VQ, CTRL_RX, GUEST_ANNOUNCE
    "mq": (22,),
    "any_layout": (27,),
    "indirect_desc": (28,),
    "event_idx": (29,),
    "protocol_features": (30,),
    "version_1": (32,),
    "in_order": (35,),
}
# A device must not offer a feature without the one it requires (VIRTIO 1.2, 2.2.2 and 5.1.3.1).
_REQUIRES = {"tso": "csum", "uso": "csum", "guest_tso": "guest_csum", "guest_uso": "guest_csum", "mq": "ctrl_vq"}


def _refuse(key: str, value: object, why: str) -> NoReturn:
    raise ConfigError(f"{key}={value}: {why}")


# A reader takes a key and its value, as text or as a Python object, and returns the one form that a field may hold.
_Reader = Callable[[str, Any], Any]


def _integer(low: int, high: int) -> _Reader:
    def read(key: str, value: object) -> int:
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value):
            value = int(value)
        number = _index(value)
        if number is None or not low <= number <= high:
            _refuse(key, value, f"must be a whole number from {low} to {high}")
        return number

    return read


def _index(value: object) -> int | None:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return None
    return value.__index__()  # type: ignore[no-any-return]


def _boolean(key: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    flag = {"0": 0, "1": 1}.get(value) if isinstance(value, str) else _index(value)
    if flag not in (0, 1):
        _refuse(key, value, "must be 0 or 1")
    return bool(flag)


def _choice(*words: str) -> _Reader:
    def read(key: str, value: object) -> str:
        if value not in words:
            _refuse(key, value, f"must be one of {', '.join(words)}")
        return str(value)

    return read


def _size(low: int, high: int = (1 << 63) - 1) -> _Reader:
    def read(key: str, value: object) -> int:
        if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
            value = int(match[1]) << _UNITS[match[2]]
        number = _index(value)
        if number is None or not low <= number <= high:
            _refuse(key, value, f"must be a number of bytes from {low} to {high} (the suffixes K, M and G are allowed)")
        return number

    return read


def socket_path(key: str, value: object) -> str:
    """The path of a Unix socket as text. An empty one would be bound to a name that nobody knows."""
    try:
        text = os.fsdecode(value)  # type: ignore[arg-type]
        length = len(text.encode())  # as it is passed on, in whatever way this system writes names
    except TypeError:
        _refuse(key, value, "must be the path of a socket")
    except UnicodeError:
        _refuse(key, ascii(value), "a path must be UTF-8")
    if not text:
        raise ConfigError(f"{key} is missing: give the path of the socket, such as /tmp/vhost0.sock")
    if "\0" in text:
        _refuse(key, ascii(text), "a path cannot contain NUL")
    if length > MAX_PATH:
        _refuse(key, text, f"the path has {length} bytes, but a socket path may have at most {MAX_PATH}; shorten it")
    return text


def _path(key: str, value: object) -> str:
    text = socket_path(key, value)
    if "," in text:
        _refuse(key, ascii(text), "a path with a comma cannot be given as a devarg")
    return text


def _port_name(key: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        _refuse(key, value, "must be 1 to 63 letters, digits or any of _ . : -")
    if value in _KEYS:
        _refuse(key, value, "is the name of an option; choose another one")
    return value


def _threshold(key: str, value: object) -> int | Literal["auto"]:
    return "auto" if value == "auto" else _integer(0, 2**32 - 1)(key, value)


def _mode(key: str, value: object) -> int:
    if isinstance(value, str):
        value = int(value, 8) if re.fullmatch(r"(0o?)?[0-7]{1,3}", value) else value
    mode = _index(value)
    if mode is None or not 0 <= mode <= 0o777:
        _refuse(key, value, "must be octal permissions from 0 to 0777")
    return mode


def _optional(reader: _Reader) -> _Reader:
    return lambda key, value: None if value is None else reader(key, value)


def _device(key: str, value: object) -> str:
    if isinstance(value, str):
        if match := _PCI.fullmatch(value):
            domain, bus, slot, function = (int(part or "0", 16) for part in match.groups())
            return f"{domain:04x}:{bus:02x}:{slot:02x}.{function}"
        if match := _SOFTWARE.fullmatch(value):
            return f"sw{int(match[1])}"
    _refuse(key, value, "the device must be a PCI address, such as 0000:00:04.0 or 00:04.0, or swN")


def _queue(key: object) -> int:
    number = int(match[1]) if isinstance(key, str) and (match := _TXQ.fullmatch(key)) else _index(key)
    if number is None or number < 0:
        _refuse("ioats", key, "the queue must be txqN; engines copy to the guest only, so there is none for rxqN")
    return number


def _engine_pairs(text: str) -> Iterable[tuple[str, str]]:
    if not re.fullmatch(r"\(.+\)|\[.+\]", text):
        _refuse("ioats", text, "must be (txqN@device;...) or [txqN@device;...]")
    for entry in text[1:-1].split(";"):
        queue, at, device = entry.partition("@")
        if not at:
            _refuse("ioats", text, f"'{entry}' is not txqN@device")
        yield queue.strip(), device.strip()


def _engines(key: str, value: object) -> dict[int, str]:
    pairs: Iterable[tuple[object, object]]
    if value is None:
        return {}
    if isinstance(value, str):
        pairs = _engine_pairs(value)
    elif isinstance(value, Mapping):
        pairs = value.items()
    else:
        _refuse(key, value, "must be a mapping of tx queue to device, such as {0: '00:04.0', 1: 'sw0'}")
    engines: dict[int, str] = {}
    for queue, device in pairs:
        number = _queue(queue)
        if number in engines:
            _refuse(key, value, f"txq{number} is given twice")
        engines[number] = _device(f"{key}: txq{number}", device)
    return dict(sorted(engines.items()))


def _write_engines(engines: dict[int, str]) -> str:
    return "(" + ";".join(f"txq{queue}@{device}" for queue, device in engines.items()) + ")"


def _as_it_is(value: Any) -> Any:
    return value


def _option(
    default: Any, read: _Reader, write: Callable[[Any], str] = str, core: Callable[[Any], Any] = _as_it_is
) -> Any:
    """A field of `Devargs`. `read` makes its value of what is given, `write` its text, `core` what the core takes."""
    return field(default=default, metadata={"read": read, "write": write, "core": core})


def _core_threshold(value: int | Literal["auto"]) -> int | None:
    return None if value == "auto" else max(1, value)


def _switch() -> Any:
    return _option(True, _boolean, _write_switch)


def _write_switch(value: bool) -> str:
    return str(int(value))


@dataclass(frozen=True, slots=True)
class Devargs:
    """The options of one port, validated. `str()` gives the text that `parse_devargs` reads back.

    Each field may be given as a Python value or as the text that it has in a devargs string.

    Attributes:
        iface: Path of the vhost-user socket, at most 107 bytes.
        queues: Queue pairs, 1 to 128.
        client: Connect to a socket on which the front end listens, instead of listening.
        ioats: Maps a tx queue to a DMA device: a PCI address ("0000:00:04.0") or a software engine ("sw0"). Queues that
            name the same device share it; a PCI address serves one port of the process, and swN is the port's own.
        name: Name of the port in messages; None means the next eth_vhost_ioatN.
        ioat_threshold: The engine makes copies of at least this many bytes; "auto" measures the best value.
        ioat_fallback: Replace hardware that cannot be used by a software engine; if False, raise DmaError instead.
        publish: What writes the used index of a queue that has an engine: "cpu" or "dma".
        sw_mode: How software engines run: "threaded" (a worker thread each), "inline" (the caller copies) or
            "stepped" (for tests).
        socket_mode: Permissions of a listening socket.
        mempool: Bytes of packet memory, divided equally among the rx queues (each gets at least 1 MiB).
        max_guest_mem: Most bytes of guest memory accepted from a front end; None means the RAM of this machine.
        mrg_rxbuf, csum, guest_csum, tso, guest_tso, uso, guest_uso, mtu, status, ctrl_vq, mq, any_layout,
        indirect_desc, event_idx, protocol_features, version_1, in_order: Offer this feature. tso and uso include their
            IPv4, IPv6 and ECN bits; ctrl_vq includes CTRL_RX and GUEST_ANNOUNCE. All but status are offered by default.
            The link status is in the configuration space, which belongs to the front end: a front end that has one
            (QEMU, DPDK) adds the feature itself, and with one that has none (User-Mode Linux) the guest would read
            "no carrier".

    Raises:
        ConfigError: A field has a value that the port cannot use.
    """

    iface: str = _option("", _path)
    queues: int = _option(1, _integer(1, MAX_QUEUES))
    client: bool = _option(False, _boolean, _write_switch)
    ioats: Mapping[int, str] = field(
        default_factory=dict, hash=False, metadata={"read": _engines, "write": _write_engines, "core": dict}
    )
    name: str | None = _option(None, _port_name)
    ioat_threshold: int | Literal["auto"] = _option(1024, _threshold, core=_core_threshold)
    ioat_fallback: bool = _switch()
    publish: Literal["cpu", "dma"] = _option("cpu", _choice("cpu", "dma"))
    sw_mode: Literal["threaded", "inline", "stepped"] = _option("threaded", _choice("threaded", "inline", "stepped"))
    socket_mode: int = _option(0o600, _mode, "{:04o}".format)
    mempool: int = _option(64 << 20, _size(MIN_MEMPOOL, MAX_MEMPOOL))
    max_guest_mem: int | None = _option(None, _optional(_size(4096)))
    mrg_rxbuf: bool = _switch()
    csum: bool = _switch()
    guest_csum: bool = _switch()
    tso: bool = _switch()
    guest_tso: bool = _switch()
    uso: bool = _switch()
    guest_uso: bool = _switch()
    mtu: bool = _switch()
    status: bool = _option(False, _boolean, _write_switch)
    ctrl_vq: bool = _switch()
    mq: bool = _switch()
    any_layout: bool = _switch()
    indirect_desc: bool = _switch()
    event_idx: bool = _switch()
    protocol_features: bool = _switch()
    version_1: bool = _switch()
    in_order: bool = _switch()

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            value = option.metadata["read"](option.name, getattr(self, option.name))
            object.__setattr__(self, option.name, value)
        if (last := max(self.ioats, default=0)) >= self.queues:
            _refuse("ioats", _write_engines(dict(self.ioats)), f"txq{last} does not exist: queues={self.queues}")

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Devargs:
        """Make it from named values; a name that is not an option raises `ConfigError`, which lists the options."""
        for key in options:
            if key not in _KEYS:
                raise ConfigError(f"unknown option '{key}'; the options are {', '.join(sorted(_KEYS))}")
        return cls(**options)

    @property
    def features(self) -> int:
        """The virtio feature bits this port offers, as a mask (VIRTIO 1.2, 5.1.3 and 6)."""
        mask = 0
        for switch, bits in _FEATURE_BITS.items():
            if getattr(self, switch) and getattr(self, _REQUIRES.get(switch, switch)):
                mask |= sum(1 << bit for bit in bits)
        return mask

    def core_options(self) -> dict[str, Any]:
        """What the core takes: the feature switches as one mask, and every other field under its name."""
        options: dict[str, Any] = {"features": self.features}
        for option in dataclasses.fields(self):
            if option.name not in _FEATURE_BITS:
                options[option.name] = option.metadata["core"](getattr(self, option.name))
        return options

    def __str__(self) -> str:
        parts = [] if self.name is None else [self.name]
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            default = {} if option.name == "ioats" else option.default
            if option.name != "name" and value != default:
                parts.append(f"{option.name}={option.metadata['write'](value)}")
        return ",".join(parts)


_KEYS = frozenset(option.name for option in dataclasses.fields(Devargs))


class Options(TypedDict, total=False):
    """The keywords of `EthVhost` for type checkers: the fields of `Devargs` without `iface`."""

    queues: int
    client: bool
    ioats: Mapping[int, str] | Mapping[str, str] | Mapping[int | str, str] | str | None
    name: str | None
    ioat_threshold: int | Literal["auto"]
    ioat_fallback: bool
    publish: Literal["cpu", "dma"]
    sw_mode: Literal["threaded", "inline", "stepped"]
    socket_mode: int
    mempool: int
    max_guest_mem: int | None
    mrg_rxbuf: bool
    csum: bool
    guest_csum: bool
    tso: bool
    guest_tso: bool
    uso: bool
    guest_uso: bool
    mtu: bool
    status: bool
    ctrl_vq: bool
    mq: bool
    any_layout: bool
    indirect_desc: bool
    event_idx: bool
    protocol_features: bool
    version_1: bool
    in_order: bool


# A value in brackets may hold commas only for ioats: a path may begin with a bracket too.
_PART = re.compile(r"(?P<key>\s*ioats\s*)=(?P<list>\([^)]*\)|\[[^\]]*\])(?=,|$)|(?P<text>[^,]*)")


def _parts(text: str) -> Iterable[tuple[str, str | None]]:
    position = 0
    while position <= len(text):
        match = _PART.match(text, position)
        assert match is not None  # the last alternative takes anything, including nothing
        if match["list"] is not None:
            yield "ioats", match["list"]
        else:
            key, equals, value = match["text"].partition("=")
            yield key.strip(), value if equals else None
        position = match.end() + 1


def parse_devargs(text: str) -> Devargs:
    """Read a devargs string such as `eth_vhost_ioat0,iface=/tmp/v.sock,queues=2,ioats=(txq0@00:04.0;txq1@sw0)`.

    Args:
        text: `key=value` parts separated by commas; the first part may be just the port's name. Booleans are 0 or 1,
            sizes may end in K, M or G, and `ioats` is in round or square brackets.

    Raises:
        ConfigError: A part is malformed, unknown or given twice, a value is out of range, or `iface` is missing.
    """
    options: dict[str, str] = {}
    parts = list(_parts(text)) if text else []
    if parts and parts[0][1] is None and _NAME.fullmatch(parts[0][0]) and parts[0][0] not in _KEYS:
        parts[0] = ("name", parts[0][0])
    for key, value in parts:
        if value is None:
            raise ConfigError(f"'{key}' has no value: write key=value (in '{text}')")
        if key in options:
            raise ConfigError(f"{key}={value}: {key} is given twice (in '{text}')")
        options[key] = value
    return Devargs.from_options(options)
