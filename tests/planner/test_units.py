"""Sizes read and written: units of 1000 and of 1024, three digits, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.errors import RequestError
from modelwright.planner.units import BYTES_IN, format_bytes, format_count, format_operations, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GiB", 24 * 2**30),
        ("80GB", 80 * 10**9),
        ("512 MiB", 2**29),
        ("1.5gib", 3 * 2**29),
        (" 40960mib ", 40 * 2**30),
        ("7B", 7),
        ("1TB", 10**12),
    ],
)
def test_a_size_is_a_number_and_a_unit(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "24", "24G", "GiB", "-1GiB", "1e3GiB", "24 GiB each", "²4GiB", "24GiBs"])
def test_anything_else_is_refused_with_the_units(text):
    with pytest.raises(RequestError) as error:
        parse_bytes(text)
    assert str(error.value) == (
        f"a size is a number and one of B, KB, MB, GB, TB, KiB, MiB, GiB, TiB, like 24GiB; got {text!r}"
    )


@pytest.mark.parametrize("text", ["0GiB", "0.5B", "9" * 400 + "GiB", "1048577TiB"])
def test_a_size_is_from_a_byte_to_an_exbibyte(text):
    with pytest.raises(RequestError, match="a size must be from one byte to 1048576 TiB"):
        parse_bytes(text)


@given(st.integers(1, 2**20), st.sampled_from(sorted(BYTES_IN)))
def test_whole_numbers_of_every_unit_are_exact(number, unit):
    assert parse_bytes(f"{number}{unit}") == number * BYTES_IN[unit]


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (10 * 2**20, "10.0 MiB"),
        (2**30 - 1, "1.00 GiB"),
        (15.66 * 2**30, "15.7 GiB"),
        (1000 * 2**30, "1000 GiB"),
        (4000 * 2**50, "4000 PiB"),
    ],
)
def test_bytes_take_the_largest_binary_unit_and_three_digits(amount, text):
    assert format_bytes(amount) == text


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "0"), (7, "7"), (999, "999"), (39_970, "40.0 K"), (235_741_434_880, "236 B")]
)
def test_counts_take_a_letter(amount, text):
    assert format_count(amount) == text


def test_operations_name_themselves():
    assert format_operations(14_130_000_000_000) == "14.1 TFLOP"
    assert format_operations(12) == "12 FLOP"
