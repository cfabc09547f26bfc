"""``modelwright bench``: what its numbers are, on times that are known and on a tiny model, and its refusals."""

import json
import time
from dataclasses import dataclass

import pytest

from modelwright.cli.bench_report import Spread, as_object, hit_rate, rates, times
from modelwright.cli.bench_round import Load, Record, Round, run_round
from modelwright.engine.params import SamplingParams
from modelwright.engine.results import EngineStatistics, Update
from modelwright.engine.step import StepStatistics
from modelwright.processing.batching import ProcessedPrompt

FAST = Record(prompt_tokens=4, arrived=1.0, tokens=[1.5, 1.6, 1.8])
SLOW = Record(prompt_tokens=6, arrived=2.0, tokens=[4.0])
ROUND = Round([FAST, SLOW], seconds=3.0, load=Load(steps=3, computed=8, pages_used=2, pages=9, preempted=1))


def test_the_times_of_a_request():
    assert (FAST.first, FAST.whole) == (0.5, pytest.approx(0.8))
    assert FAST.gaps == pytest.approx([0.1, 0.2])
    assert FAST.per_token == pytest.approx(0.15)
    assert (SLOW.first, SLOW.whole, SLOW.gaps, SLOW.per_token) == (2.0, 2.0, [], None)


def test_the_times_of_rounds_are_pooled_in_milliseconds():
    found = times([ROUND, Round([FAST], 1.0, Load())])
    assert found["ttft_ms"] == Spread(pytest.approx(1000.0), pytest.approx(500.0), pytest.approx(1970.0))
    assert found["tpot_ms"] == Spread(*[pytest.approx(150.0)] * 3)
    assert found["itl_ms"].mean == pytest.approx(150.0)
    assert found["itl_ms"].p50 == pytest.approx(150.0)
    assert times([Round([SLOW], 2.0, Load())])["tpot_ms"] is None


def test_rates_are_tokens_by_seconds():
    found = rates([ROUND, Round([FAST], 1.0, Load())])
    assert found == {"prompt": 14 / 4, "output": 7 / 4, "total": 21 / 4}


def test_what_no_step_computed_was_found():
    """10 prompt tokens and 2 decodes are 12; 8 were computed, so 4 of the 10 were found."""
    assert hit_rate([ROUND]) == 0.4
    again = Round([FAST], 1.0, Load(computed=50))  # after preemption
    assert hit_rate([again]) == 0.0
    assert as_object([ROUND])["kv_pages"] == {"max_used": 2, "all": 9}


@dataclass
class Clockwork:
    """An engine that draws a token of each request in a step."""

    length: int
    living: dict
    statistics: EngineStatistics | None = None
    asked: int = 0

    @property
    def has_work(self) -> bool:
        return bool(self.living)

    def add_request(self, prompt, params):
        assert prompt.input_ids.ndim == 1 and params.ignore_eos
        self.asked += 1
        self.living[f"r{self.asked}"] = self.length
        return f"r{self.asked}"

    def step(self):
        count = len(self.living)
        self.statistics = EngineStatistics(StepStatistics(count, 0, 1, count, 1, 7 - count, 0.0, count), 0.001)
        updates = [Update(name, 0, "", (5,)) for name in self.living]
        self.living = {name: left - 1 for name, left in self.living.items() if left > 1}
        return updates


PARAMS = SamplingParams(max_tokens=3, ignore_eos=True)


def test_a_round_times_every_token_of_every_request():
    done = run_round(Clockwork(3, {}), [ProcessedPrompt.of_tokens([1, 2])] * 2, [0.0, 0.0], PARAMS)
    assert [len(record.tokens) for record in done.records] == [3, 3]
    assert [record.prompt_tokens for record in done.records] == [2, 2]
    assert all(record.arrived <= min(record.tokens) for record in done.records)
    assert done.seconds == max(record.tokens[-1] for record in done.records) - done.records[0].arrived
    assert done.load == Load(steps=3, computed=6, pages_used=2, pages=8, preempted=3)


def test_requests_are_not_served_before_they_arrive():
    start = time.perf_counter()
    done = run_round(Clockwork(1, {}), [ProcessedPrompt.of_tokens([1])] * 2, [0.0, 0.05], PARAMS)
    first, second = done.records
    assert second.arrived - first.arrived == pytest.approx(0.05)
    assert second.tokens[0] >= second.arrived >= start + 0.05
    assert done.load.steps == 2


def bench(run, *args):
    ended = run("bench", *args, "--json", "--warmup", 1)
    assert (ended.code, ended.err) == (0, "")
    return json.loads(ended.out)


def test_latency_of_requests_that_start_together(run, v2):
    told = bench(run, "latency", v2, "--input-len", 20, "--output-len", 5, "--batch", 3, "--repeats", 2)
    assert (told["benchmark"], told["requests"], told["rounds"]) == ("latency", 3, 2)
    assert (told["prompt_tokens"], told["output_tokens"]) == (60, 15)
    assert (told["engine"]["max_batch"], told["engine"]["reuse_prefixes"]) == (3, False)
    assert told["kv_pages"]["max_used"] == 6  # 2 of 16 tokens for each of 3 sequences
    assert (told["hit_rate"], told["preempted"], told["steps"]) == (0.0, 0, 10)
    for name in ("ttft_ms", "tpot_ms", "itl_ms", "request_ms"):
        assert 0 < told[name]["p50"] <= told[name]["p99"]
    assert told["ttft_ms"]["mean"] < told["request_ms"]["mean"]
    speed = told["tokens_per_second"]
    assert speed["total"] == pytest.approx(speed["prompt"] + speed["output"], abs=0.001)
    assert speed["prompt"] == pytest.approx(120 / sum(told["seconds"]), rel=0.01)
    assert told["peak_memory_bytes"]["process"] > 2**20


@pytest.mark.slow
def test_the_backend_is_the_one_that_was_asked_for(run, v2):
    told = [bench(run, "latency", v2, *args) for args in ((), ("--backend", "eager"))]
    assert [one["engine"]["backend"] for one in told] == ["auto", "eager"]


def test_preempted_requests_wait_in_host_memory_where_there_is_room(run, v2):
    args = ("--requests", 3, "--input-len", 30, "--output-len", 30, "--num-pages", 7)
    without, told = (bench(run, "throughput", v2, *args, "--host-pages", pages) for pages in (0, 12))
    assert (without["engine"]["host_pages"], told["engine"]["host_pages"]) == (0, 12)
    assert min(without["preempted"], told["preempted"]) > 0
    assert without["host_pages"] == {"max_used": 0}
    assert 0 < told["host_pages"]["max_used"] <= 12


def test_throughput_of_prompts_that_begin_alike(run, v2, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"prompt_token_ids": [7] * 33}) + "\n")
    args = ("--requests", 4, "--output-len", 2, "--max-batch", 1, "--request-rate", 1000)
    told = bench(run, "throughput", v2, "--input", source, *args)
    assert (told["prompt_tokens"], told["output_tokens"], told["request_rate"]) == (132, 8, 1000)
    assert told["hit_rate"] == round(3 * 32 / 132, 4)  # the warm-up reads other prompts
    assert told["kv_pages"]["max_used"] == 3


def test_a_table_for_people(run, v2):
    ended = run("bench", "throughput", v2, "--input-len", 8, "--output-len", 1, "--requests", 1, "--warmup", 0)
    assert ended.code == 0
    head, *rows = ended.out.splitlines()
    assert head == f"{v2}: throughput, 1 request a round, 8 tokens in and 1 out"
    words = "\n".join(rows)
    for name in ("(TTFT)", "(TPOT)", "(ITL)", "prompt tokens/s", "peak memory, process", "pages of the cache in use"):
        assert name in words
    assert [row.split()[-3:] for row in rows if "(ITL)" in row] == [["-", "-", "-"]]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("latency", "--batch", 0), "--batch must be at least 1, got 0"),
        (("latency", "--requests", 0), "--requests must be at least 1, got 0"),
        (("throughput", "--requests", 0), "--requests must be at least 1, got 0"),
        (("throughput", "--request-rate", 0), "--request-rate must be above 0, got 0.0"),
        (("throughput", "--request-rate", "nan"), "--request-rate must be above 0, got nan"),
        (("latency", "--input-len", 0), "--input-len must be at least 1, got 0"),
        (("latency", "--output-len", 0), "--output-len must be at least 1, got 0"),
        (("latency", "--warmup", -1), "--warmup must be at least 0, got -1"),
        (("latency", "--repeats", 0), "--repeats must be at least 1, got 0"),
        (("latency", "--input", "gone.jsonl"), "--input gone.jsonl: there is no such file"),
        (("latency", "--max-batch", 0), "--max-batch must be at least 1, got 0"),
        (
            ("latency", "--input-len", 500, "--output-len", 20),
            "a prompt of 500 tokens and --output-len (20) must be at most the context (512 tokens) together",
        ),
    ],
)
def test_options_that_cannot_be_served(run, v2, args, sentence):
    kind, *rest = args
    ended = run("bench", kind, v2, *rest)
    assert (ended.code, ended.out, ended.err) == (2, "", f"modelwright: {sentence}\n")


@pytest.mark.parametrize(("text", "words"), [("\n", "there is no line in it"), ("?\n", "line 1: the line is not JSON")])
def test_an_input_that_asks_nothing(run, v2, tmp_path, text, words):
    (tmp_path / "in.jsonl").write_text(text)
    ended = run("bench", "latency", v2, "--input", tmp_path / "in.jsonl")
    assert ended.code == 2
    assert words in ended.err
