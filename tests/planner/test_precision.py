"""Bytes of matrices and of cached vectors in every type, reckoned by hand, and the sentences for unknown names."""

from dataclasses import replace

import pytest

from modelwright.errors import RequestError
from modelwright.planner.precision import Precision, float_type, kv_type, quantization
from modelwright.planner.shapes import Linear

MATRIX = Linear(300, 40, bias=True, cut="outputs")


@pytest.mark.parametrize(
    ("dtype", "quant", "size"),
    [
        ("float32", None, 300 * 40 * 4),
        ("bfloat16", None, 300 * 40 * 2),
        ("bfloat16", "int8", 300 * 40 + 40 * 4),  # a scale in float32 for each output
        ("float32", "int8", 300 * 40 + 40 * 4),
        ("bfloat16", "fp8", 300 * 40 + 40 * 4),
        ("bfloat16", "int4", 300 * 40 // 2 + 40 * 10 * 4),  # ten groups of 32, a scale and an offset in bfloat16 each
        ("float32", "int4", 300 * 40 // 2 + 40 * 10 * 4),
    ],
)
def test_a_matrix_takes_its_numbers_and_its_scales(dtype, quant, size):
    assert Precision.uniform(dtype, quant=quant).matrix_bytes(MATRIX) == size


def test_larger_groups_have_fewer_scales_and_a_kept_matrix_has_none():
    int4 = Precision.uniform("bfloat16", quant="int4")
    assert replace(int4, group=128).matrix_bytes(MATRIX) == 300 * 40 // 2 + 40 * 3 * 4
    assert replace(int4, group=64, symmetric=True).matrix_bytes(MATRIX) == 300 * 40 // 2 + 40 * 5 * 2
    assert int4.matrix_bytes(replace(MATRIX, kept=True)) == 300 * 40 * 2


def test_a_cut_matrix_keeps_the_scales_of_its_own_rows_and_groups():
    int8, int4 = (Precision.uniform("bfloat16", quant=quant) for quant in ("int8", "int4"))
    assert int8.matrix_bytes(MATRIX, tensor=4) == 300 * 10 + 10 * 4
    by_inputs = Linear(512, 40, cut="inputs")
    assert int4.matrix_bytes(by_inputs, tensor=2) == 256 * 40 // 2 + 40 * 8 * 4
    assert int4.matrix_bytes(Linear(512, 40), tensor=2) == int4.matrix_bytes(Linear(512, 40))


@pytest.mark.parametrize(("kv", "size"), [("float32", 400), ("bfloat16", 200), ("fp8", 100), ("int8", 100 + 4 * 4)])
def test_cached_vectors_have_scales_in_int8_alone(kv, size):
    assert Precision.uniform("float32", kv=kv).kv_bytes(numbers=100, vectors=4) == size


@pytest.mark.parametrize("name", ["bf16", "bfloat16", "BF16", "torch.bfloat16"])
def test_types_go_by_short_and_long_names(name):
    assert float_type(name, "dtype") == kv_type(name, "kv_dtype") == "bfloat16"


@pytest.mark.parametrize(
    ("read", "option", "name", "message"),
    [
        (float_type, "dtype", "int8", "dtype must be one of float32, bfloat16, float16, got 'int8'"),
        (kv_type, "kv_dtype", "int4", "kv_dtype must be one of float32, bfloat16, float16, fp8, int8, got 'int4'"),
        (quantization, "quant", "int2", "quant must be one of fp8, int8, int4, got 'int2'"),
    ],
)
def test_an_unknown_type_is_refused_with_the_known_ones(read, option, name, message):
    with pytest.raises(RequestError) as error:
        read(name, option)
    assert str(error.value) == message
