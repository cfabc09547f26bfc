"""Devices as text: memory and count, and the sentence for what is neither."""

import pytest

from modelwright.errors import RequestError
from modelwright.planner.device import Devices, parse_devices


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("24GiB", Devices(24 * 2**30)),
        ("24GiB,1", Devices(24 * 2**30, 1)),
        ("80GB, 8", Devices(80 * 10**9, 8)),
        ("512MiB,016", Devices(2**29, 16)),
    ],
)
def test_memory_and_count(text, devices):
    assert parse_devices(text) == devices


@pytest.mark.parametrize("text", ["24GiB,", "24GiB,0", "24GiB,-2", "24GiB,two", "24GiB,2,3", "24GiB,1.5", "1B,123456"])
def test_a_count_is_a_whole_number_of_at_least_one(text):
    with pytest.raises(RequestError) as error:
        parse_devices(text)
    assert str(error.value) == (
        f"devices must be their memory and, after a comma, how many there are (1 to 99999), like 24GiB,8; got {text!r}"
    )


@pytest.mark.parametrize("text", ["", ",2", "24", "plenty"])
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(RequestError, match="a size is a number and one of"):
        parse_devices(text)


def test_devices_read_as_count_times_memory():
    assert str(Devices(24 * 2**30, 8)) == "8 x 24.0 GiB"
    assert str(Devices(24 * 2**30)) == "24.0 GiB"
