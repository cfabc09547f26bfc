"""The decode benchmark at a toy size: it compares equal models and counts what the cache holds; no time is asserted."""

import pytest
import torch

from benchmarks import decode

TOY = decode.Shape(
    hidden=32, heads=2, rank=16, rope=4, nope=8, v_dim=8, feed_forward=16, vocabulary=40, layers=2, context=24
)


def test_both_models_agree_and_ours_caches_latents():
    fp32, bf16 = decode.run(TOY, rounds=2, tokens=1, device=torch.device("cpu"))
    assert (fp32.dtype, bf16.dtype) == ("float32", "bfloat16")
    assert fp32.worst_logit_difference < 1e-4
    assert fp32.ours_cache_numbers == bf16.ours_cache_numbers == 16 + 4
    for result in (fp32, bf16):
        assert result.ours_ms > 0
        assert result.ratio == pytest.approx(result.transformers_ms / result.ours_ms, rel=0.2)


def test_the_default_shape_is_v2_lites_attention():
    shape = decode.Shape()
    assert (shape.hidden, shape.heads, shape.rank, shape.rope, shape.nope, shape.v_dim) == (2048, 16, 512, 64, 128, 128)
    assert shape.rank + shape.rope == 576
    assert shape.context == 4096


def test_models_that_disagree_are_not_timed(monkeypatch):
    monkeypatch.setitem(decode.TOLERANCE, torch.float32, 0.0)
    with pytest.raises(SystemExit, match="the two models disagree by"):
        decode.run(TOY, rounds=1, tokens=1, device=torch.device("cpu"))


def test_the_table_and_the_machine_say_what_was_measured():
    result = decode.Result("float32", 1.5, 30.0, 20.0, 576, 576, 1e-6)
    assert (
        decode.table(decode.Shape(), [result]).splitlines()[-1]
        == "| float32 | 1.50 | 30.00 | 20.0 x | 576 against 576 |"
    )
    assert set(decode.machine(torch.device("cpu"))) == {"cpu", "threads", "python", "torch", "transformers"}
