"""The engine's benchmark: its models have the sizes that it names, and its ways and tables hold together."""

import pytest
import torch

from benchmarks import engine as benchmark


@pytest.mark.parametrize(
    ("model", "layers", "millions"), [("L", None, 1100), ("D", None, 762), ("L", 4, 307), ("V", 2, 238)]
)
def test_models_have_their_sizes(model, layers, millions):
    with torch.device("meta"):
        built = benchmark.FAMILIES[model][1](benchmark.config_of(model, layers))
    assert sum(each.numel() for each in built.parameters()) / 1e6 == pytest.approx(millions, abs=1)


def test_prompts_differ_from_round_to_round():
    case = benchmark.Case("small", 2, 5, True)
    first, second = benchmark.prompts_of(case, 0), benchmark.prompts_of(case, 1)
    assert [len(row) for row in first] == [5, 5] and first != second and first == benchmark.prompts_of(case, 0)


def test_the_table_shows_the_ratio_to_the_best_of_the_others(capsys):
    benchmark.report([benchmark.Rate("L", "decode", {"engine": 12.0, "generate": 4.0, "transformers": 8.0})])
    assert capsys.readouterr().out.splitlines()[-1].split() == ["L", "decode", "12.0", "4.0", "8.0", "1.50"]


def test_every_way_takes_a_small_model(tmp_path, monkeypatch):
    small = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    monkeypatch.setattr(benchmark, "LLAMA", benchmark.LLAMA | small)
    ways = {name: make() for name, make in benchmark.ways_of("L", benchmark.make_checkpoint("L", 1, tmp_path)).items()}
    assert list(ways) == ["engine", "generate", "transformers"]
    case, limits = benchmark.Case("small", 2, 5, True), benchmark.Limits()
    monkeypatch.setattr(benchmark, "STEPS", 2)
    (rate,) = benchmark.rates("L", ways, (case,), 1, limits)
    assert rate.tokens_per_second.keys() == ways.keys() and all(each > 0 for each in rate.tokens_per_second.values())
    assert limits.machine().read > 0
