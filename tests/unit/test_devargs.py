# SPDX-License-Identifier: BSD-3-Clause
import dataclasses
import pathlib
import re

import pytest

from vhost_ioat import _core
from vhost_ioat.devargs import Devargs, Options, parse_devargs
from vhost_ioat.errors import ConfigError, VhostIoatError


def test_reads_the_form_dpdk_users_know():
    devargs = parse_devargs(
        "eth_vhost_ioat0,iface=/tmp/vhost0.sock,queues=2,client=0,ioats=(txq0@00:04.0;txq1@0000:00:04.1)"
    )
    assert devargs.name == "eth_vhost_ioat0"
    assert devargs.iface == "/tmp/vhost0.sock"
    assert devargs.queues == 2
    assert devargs.client is False
    assert devargs.ioats == {0: "0000:00:04.0", 1: "0000:00:04.1"}


def test_defaults():
    devargs = parse_devargs("iface=/tmp/v.sock")
    assert devargs == Devargs("/tmp/v.sock")
    assert (devargs.queues, devargs.client, devargs.ioats, devargs.name) == (1, False, {}, None)
    assert (devargs.ioat_threshold, devargs.ioat_fallback, devargs.publish) == (1024, True, "cpu")
    assert (devargs.sw_mode, devargs.socket_mode, devargs.mempool) == ("threaded", 0o600, 64 << 20)
    assert devargs.max_guest_mem is None
    assert str(devargs) == "iface=/tmp/v.sock"


def test_is_frozen_and_hashable():
    devargs = Devargs("/tmp/v.sock", ioats={0: "sw0"})
    with pytest.raises(dataclasses.FrozenInstanceError):
        devargs.queues = 2
    assert hash(devargs) == hash(Devargs("/tmp/v.sock", ioats={"txq0": "sw0"}))


def test_does_not_keep_the_callers_mapping():
    engines = {0: "sw0"}
    devargs = Devargs("/tmp/v.sock", queues=2, ioats=engines)
    engines[1] = "nonsense"
    assert devargs.ioats == {0: "sw0"}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("(txq0@00:04.0)", {0: "0000:00:04.0"}),
        ("[txq0@00:04.0]", {0: "0000:00:04.0"}),
        ("(txq0@0000:00:04.0)", {0: "0000:00:04.0"}),
        ("(txq0@AF:1E.7)", {0: "0000:af:1e.7"}),
        ("(txq0@1:0:4.0)", {0: "0001:00:04.0"}),
        ("(txq1@sw1;txq0@sw0)", {0: "sw0", 1: "sw1"}),
        ("(txq0@sw0; txq1@sw07)", {0: "sw0", 1: "sw7"}),
    ],
)
def test_ioats(written, meant):
    assert parse_devargs(f"iface=/v,queues=2,ioats={written}").ioats == meant
    assert Devargs("/v", queues=2, ioats=written).ioats == meant


def test_ioats_keys_may_be_numbers_or_names():
    assert Devargs("/v", queues=2, ioats={0: "04:00.0", "txq1": "sw0"}).ioats == {0: "0000:04:00.0", 1: "sw0"}


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("client=1", "client", True),
        ("queues=128", "queues", 128),
        ("ioat_threshold=0", "ioat_threshold", 0),
        ("ioat_threshold=auto", "ioat_threshold", "auto"),
        ("ioat_fallback=0", "ioat_fallback", False),
        ("publish=dma", "publish", "dma"),
        ("sw_mode=stepped", "sw_mode", "stepped"),
        ("socket_mode=0660", "socket_mode", 0o660),
        ("socket_mode=0o666", "socket_mode", 0o666),
        ("mempool=16M", "mempool", 16 << 20),
        ("max_guest_mem=4G", "max_guest_mem", 4 << 30),
        ("name=left", "name", "left"),
        ("mrg_rxbuf=0", "mrg_rxbuf", False),
    ],
)
def test_each_option_reads_its_text(text, field, value):
    assert getattr(parse_devargs(f"iface=/v,{text}"), field) == value
    assert getattr(parse_devargs(f"{text},iface=/v"), field) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "iface is missing"),
        ("iface=", "iface is missing"),
        ("queues=2", "iface is missing"),
        ("eth_vhost_ioat0", "iface is missing"),
        ("/tmp/vhost0.sock", "'/tmp/vhost0.sock' has no value: write key=value"),
        ("iface=/v,client", "'client' has no value"),
        ("client,iface=/v", "'client' has no value"),
        ("iface=/v,", "'' has no value"),
        (",iface=/v", "'' has no value"),
        ("iface=/v,queue=2", "unknown option 'queue'; the options are any_layout, client, csum, "),
        ("iface=/v,=2", "unknown option ''"),
        ("iface=/v,iface=/w", "iface is given twice"),
        ("a,iface=/v,name=b", "name is given twice"),
        ("iface=/v,queues=0", "queues=0: must be a whole number from 1 to 128"),
        ("iface=/v,queues=129", "queues=129: must be a whole number from 1 to 128"),
        ("iface=/v,queues=two", "queues=two: must be a whole number"),
        ("iface=/v,queues=-1", "queues=-1: must be a whole number"),
        ("iface=/v,queues=\u0662", "must be a whole number"),
        ("iface=/v,client=2", "client=2: must be 0 or 1"),
        ("iface=/v,client=yes", "client=yes: must be 0 or 1"),
        ("iface=/v,publish=gpu", "publish=gpu: must be one of cpu, dma"),
        ("iface=/v,sw_mode=fast", "sw_mode=fast: must be one of threaded, inline, stepped"),
        ("iface=/v,socket_mode=888", "socket_mode=888: must be octal permissions"),
        ("iface=/v,socket_mode=1777", "socket_mode=1777: must be octal permissions"),
        ("iface=/v,mempool=64MB", "mempool=64MB: must be a number of bytes from 1048576"),
        ("iface=/v,mempool=4096", "mempool=4096: must be a number of bytes from 1048576"),
        ("iface=/v,max_guest_mem=0", "max_guest_mem=0: must be a number of bytes"),
        ("iface=/v,ioat_threshold=-1", "ioat_threshold=-1: must be a whole number from 0"),
        ("iface=/v,mq=2", "mq=2: must be 0 or 1"),
        ("iface=/v,name=mq", "name=mq: is the name of an option"),
        ("iface=/v,name=a/b", "name=a/b: must be 1 to 63"),
        ("iface=/" + "x" * 107, "has 108 bytes, but a socket path may have at most 107"),
        ("iface=/" + "\u00e9" * 54, "has 109 bytes"),
        ("iface=/a\0b", "NUL"),
        ("iface=/tmp/\udcff", "a path must be UTF-8"),
        ("iface=/v,ioats=", "ioats=: must be (txqN@device;...)"),
        ("iface=/v,ioats=()", "ioats=(): must be (txqN@device;...)"),
        ("iface=/v,ioats=txq0@sw0", "ioats=txq0@sw0: must be (txqN@device;...)"),
        ("iface=/v,ioats=(txq0@sw0", "ioats=(txq0@sw0: must be (txqN@device;...)"),
        ("iface=/v,ioats=(txq0@sw0]", "ioats=(txq0@sw0]: must be (txqN@device;...)"),
        ("iface=/v,ioats=(txq0@sw0)x", "ioats=(txq0@sw0)x: must be (txqN@device;...)"),
        ("iface=/v,ioats=(txq0@sw0;)", "'' is not txqN@device"),
        ("iface=/v,ioats=(txq0)", "'txq0' is not txqN@device"),
        ("iface=/v,ioats=(txq0@)", "txq0=: the device must be a PCI address"),
        ("iface=/v,ioats=(txq0@04:00)", "txq0=04:00: the device must be a PCI address"),
        ("iface=/v,ioats=(txq0@00:20.0)", "the device must be a PCI address"),
        ("iface=/v,ioats=(txq0@00:04.8)", "the device must be a PCI address"),
        ("iface=/v,ioats=(q0@sw0)", "ioats=q0: the queue must be txqN"),
        ("iface=/v,ioats=(rxq0@sw0)", "there is none for rxqN"),
        ("iface=/v,ioats=(txq0@sw0;txq0@sw1)", "txq0 is given twice"),
        ("iface=/v,queues=2,ioats=(txq2@sw0)", "txq2 does not exist: queues=2"),
    ],
)
def test_a_bad_string_gives_one_clear_message(text, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as raised:
        parse_devargs(text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queues": 0}, "queues=0: must be"),
        ({"queues": True}, "queues=True: must be"),
        ({"queues": 2.0}, "queues=2.0: must be"),
        ({"client": 2}, "client=2: must be 0 or 1"),
        ({"client": None}, "client=None: must be 0 or 1"),
        ({"ioats": ["sw0"]}, "must be a mapping of tx queue to device"),
        ({"ioats": {1: "sw0"}}, "txq1 does not exist"),
        ({"ioats": {-1: "sw0"}}, "ioats=-1: the queue must be txqN"),
        ({"ioats": {True: "sw0"}}, "ioats=True: the queue must be txqN"),
        ({"ioats": {"0": "sw0"}}, "ioats=0: the queue must be txqN"),
        ({"ioats": {0: 4}}, "txq0=4: the device must be"),
        ({"ioats": {0: "sw0", "txq0": "sw1"}}, "txq0 is given twice"),
        ({"socket_mode": -1}, "socket_mode=-1: must be octal"),
        ({"mempool": 1.5e9}, "mempool=1500000000.0: must be a number of bytes"),
        ({"name": ""}, "name=: must be 1 to 63"),
        ({"ioat_threshold": None}, "ioat_threshold=None: must be"),
        ({"queue": 1}, "unknown option 'queue'"),
    ],
)
def test_a_bad_keyword_gives_one_clear_message(options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Devargs.from_options({"iface": "/v", **options})


@pytest.mark.parametrize("iface", [None, 3, "", b""])
def test_a_bad_path_gives_one_clear_message(iface):
    with pytest.raises(ConfigError, match="iface"):
        Devargs(iface)


def test_a_path_may_be_a_path_object_or_bytes():
    assert Devargs(pathlib.Path("/run/v.sock")) == Devargs("/run/v.sock") == Devargs(b"/run/v.sock")


def test_a_path_that_text_could_not_carry_is_refused():
    with pytest.raises(ConfigError, match="comma"):
        Devargs("/tmp/a,b")


def test_a_path_of_107_bytes_is_accepted():
    assert len(Devargs("/" + "x" * 106).iface) == 107


def test_a_config_error_is_a_value_error():
    assert issubclass(ConfigError, ValueError)
    assert issubclass(ConfigError, VhostIoatError)


def test_str_writes_the_name_first_and_only_what_was_chosen():
    devargs = Devargs("/v", queues=2, ioats={1: "04:00.0", 0: "sw0"}, name="left", client=True, mq=False)
    assert str(devargs) == "left,iface=/v,queues=2,client=1,ioats=(txq0@sw0;txq1@0000:04:00.0),mq=0"


def test_shared_devices_are_the_same_device():
    shared = parse_devargs("iface=/v,queues=3,ioats=(txq0@4:0.0;txq1@0000:04:00.0;txq2@sw0)")
    assert shared.ioats == {0: "0000:04:00.0", 1: "0000:04:00.0", 2: "sw0"}
    assert parse_devargs("iface=/v,queues=2,ioats=(txq0@sw0;txq1@sw00)").ioats == {0: "sw0", 1: "sw0"}


def test_the_core_has_the_same_options_and_defaults():
    core, ours = _core._default_options(), Devargs("/tmp/v.sock", status=True).core_options()
    assert core.keys() == ours.keys()
    assert {name for name in core if core[name] != ours[name]} == {"name", "iface"}
    assert (core["name"], core["iface"]) == ("", "")


def test_the_core_refuses_options_it_does_not_know_and_misses_those_it_does():
    options = Devargs("/tmp/v.sock", name="v").core_options()
    with pytest.raises(TypeError, match=r"there is no option queue$"):
        _core.Port(**options, queue=1)
    del options["mempool"]
    with pytest.raises(TypeError, match="the option mempool is missing"):
        _core.Port(**options)


def test_type_checkers_see_every_option():
    assert set(Options.__annotations__) | {"iface"} == {field.name for field in dataclasses.fields(Devargs)}


def test_every_option_is_documented():
    for field in dataclasses.fields(Devargs):
        assert re.search(rf"\b{field.name}\b", Devargs.__doc__), field.name


OFFERED = [0, 1, 3, 7, 8, 9, 11, 12, 13, 15, 17, 18, 21, 22, 27, 28, 29, 30, 32, 35, 54, 55, 56]


def bits(mask):
    return [bit for bit in range(64) if mask >> bit & 1]


def test_offers_all_but_status_by_default():
    assert bits(Devargs("/v").features) == OFFERED
    assert bits(Devargs("/v", status=True).features) == sorted([*OFFERED, 16])


@pytest.mark.parametrize(
    ("switch", "gone"),
    [
        ("mrg_rxbuf", {15}),
        ("csum", {0, 11, 12, 13, 56}),  # segmentation requires checksums: VIRTIO 1.2, 5.1.3.1
        ("guest_csum", {1, 7, 8, 9, 54, 55}),
        ("tso", {11, 12, 13}),
        ("guest_tso", {7, 8, 9}),
        ("uso", {56}),
        ("guest_uso", {54, 55}),
        ("mtu", {3}),
        ("ctrl_vq", {17, 18, 21, 22}),
        ("mq", {22}),
        ("any_layout", {27}),
        ("indirect_desc", {28}),
        ("event_idx", {29}),
        ("protocol_features", {30}),
        ("version_1", {32}),
        ("in_order", {35}),
    ],
)
def test_each_feature_can_be_switched_off(switch, gone):
    expected = set(OFFERED) - gone
    assert set(bits(Devargs("/v", **{switch: False}).features)) == expected
    assert set(bits(parse_devargs(f"iface=/v,{switch}=0").features)) == expected


def test_a_path_may_begin_with_a_bracket():
    assert parse_devargs("iface=(v,queues=2").iface == "(v"
