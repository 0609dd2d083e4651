# SPDX-License-Identifier: BSD-3-Clause
import dataclasses

from hypothesis import example, given
from hypothesis import strategies as st

from vhost_ioat.devargs import Devargs, parse_devargs
from vhost_ioat.errors import ConfigError
from vhost_ioat.testing import strategies

KEYS = [field.name for field in dataclasses.fields(Devargs)]


@given(strategies.devargs())
def test_text_round_trips(devargs):
    assert parse_devargs(str(devargs)) == devargs
    assert str(parse_devargs(str(devargs))) == str(devargs)


@given(strategies.devargs())
def test_keywords_and_text_are_the_same_options(devargs):
    assert Devargs(**dataclasses.asdict(devargs)) == devargs


def refusal(call, *args):
    """What the call complains of, or None."""
    try:
        call(*args)
    except ConfigError as error:
        return str(error)
    return None


@given(strategies.devargs(), st.characters(exclude_categories=["Cs"]), st.integers(0, 1), st.data())
def test_a_string_with_one_character_changed_is_read_or_refused_clearly(devargs, inserted, removed, data):
    text = str(devargs)
    where = data.draw(st.integers(0, len(text)))
    complaint = refusal(parse_devargs, text[:where] + inserted + text[where + removed :])
    assert complaint is None or "has no value" in complaint or any(key in complaint for key in KEYS)


@given(st.text())
@example("iface=a,ioats=(txq0@sw0" + "(" * 1000)
def test_any_text_is_read_or_refused(text):
    if refusal(parse_devargs, text) is None:
        assert parse_devargs(str(parse_devargs(text))) == parse_devargs(text)


values = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.binary(max_size=4))
anything = values | st.lists(values, max_size=2) | st.dictionaries(st.text() | st.integers(), values)


@given(st.sampled_from(KEYS), anything)
def test_any_value_of_any_option_is_taken_or_refused(key, value):
    options = {"iface": "/v", key: value}
    complaint = refusal(Devargs.from_options, options)
    if complaint is None:
        devargs = Devargs.from_options(options)
        assert parse_devargs(str(devargs)) == devargs
    else:
        assert key in complaint
