"""Captured decodes: tapes, and batches padded to the sizes of graphs, into a page that is nobody's: eager results.

Where there is no GPU, a graph's capture is a pass over the same tensors; that it reads and writes nothing else is
checked.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modelwright.engine.cache import make_pools
from modelwright.engine.engine import Engine
from modelwright.engine.engine_config import EngineConfig
from modelwright.engine.graphs import (
    DecodeGraphs,
    DecodeInputs,
    Forward,
    TapeCapture,
    graphs_of,
    is_decode,
    padded_batch,
    spare_pages,
)
from modelwright.engine.model_pass import ModelPass
from modelwright.engine.runner import Runner
from modelwright.engine.served_model import ServedModel
from modelwright.errors import ConfigError
from modelwright.families.llama.config import LlamaConfig
from modelwright.ops.backends import cpu as kernels
from modelwright.ops.dispatch import KernelAwareMode
from tests.engine.engines import check_equal, check_idle, engine_of, expected, greedy, record
from tests.fakes import VARIANTS, tiny_v2, tiny_vl2, tokens
from tests.imagegpts import tiny_imagegpt
from tests.llamas import EXPERTS, HUGGING_FACE, MINDFORMERS, ROPES, tiny_llama

PLAIN = MINDFORMERS | {"pad_token_id": None}
MODELS: dict[str, Callable[[], Any]] = {
    **{variant: lambda variant=variant: tiny_v2(base=VARIANTS[variant]) for variant in VARIANTS},
    "llama": lambda: tiny_llama(base=PLAIN),
    "llama, experts": lambda: tiny_llama(base=PLAIN | {"moe_config": EXPERTS}),
    "llama, dynamic": lambda: tiny_llama(
        base=HUGGING_FACE | {"max_position_embeddings": 12, "rope_scaling": ROPES["dynamic"]}
    ),
    "vl2": tiny_vl2,
    "imagegpt": tiny_imagegpt,
}
PROMPTS = [tokens(9).tolist(), [3, 1, 4], [2, 7, 1, 8, 2, 8], [5]]


class Replayed:
    """Stands for a captured graph: the same tensors in and out each time; counts its runs."""

    pads = True

    def __init__(self) -> None:
        self.captured, self.runs = 0, 0

    def __call__(self, forward: Forward) -> Forward:
        self.captured += 1
        result = forward().clone()

        def replay() -> Tensor:
            self.runs += 1
            return result.copy_(forward())

        return replay


def graphed(model: Any, capture: Replayed, **settings: Any) -> Engine:
    """An engine on the CPU whose decodes run as those of a GPU's graphs."""
    engine = engine_of(model, **settings)
    runner = engine._runner
    pools = make_pools(runner._served, engine.config, engine._pages + 1)
    graphs = DecodeGraphs(runner._served, pools, engine.context, capture)
    engine._runner = Runner(runner._served, pools, engine._pictures, graphs=graphs)
    return engine


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", MODELS)
def test_replayed_decodes_give_what_generate_gives(name):
    """Four requests of different lengths, so that batches of 4, 3, 2 and 1 run, three of them padded or not."""
    model, capture = MODELS[name](), Replayed()
    engine = graphed(model, capture)
    prompts = [[token % 17 for token in prompt] for prompt in PROMPTS] if name == "imagegpt" else PROMPTS
    recorded = record(engine)
    results = engine.generate(prompts, [greedy(3 + 2 * i) for i in range(4)])
    for i, (prompt, result) in enumerate(zip(prompts, results, strict=True)):
        wanted = expected(model, prompt, 3 + 2 * i)
        check_equal(result.completions[0].tokens, recorded.drawn[result.request], wanted, 1e-4)
    check_idle(engine)
    assert 1 <= capture.captured <= 3  # of 1, 2 and 4 rows
    assert capture.runs >= 6


@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_padding_writes_to_the_scratch_page_alone(kv_dtype):
    capture = Replayed()
    engine = graphed(tiny_v2(), capture, num_pages=8, token_budget=32, kv_dtype=kv_dtype)
    engine.generate(PROMPTS[:3], greedy(2))
    pools = engine._runner._pools
    assert capture.runs == 1 and len(pools[0].keys.rows) == 9
    for pool in pools:
        written = pool.values.rows.flatten(1).any(dim=1)
        assert written[8]  # by the fourth row of a batch of three
        assert written.sum() == 1 + sum(-(-(len(prompt) + 1) // 4) for prompt in PROMPTS[:3])


def test_inputs_are_filled_in_place_and_padded():
    inputs = DecodeInputs.of(4, pages=3, page_size=2, scratch=9, device=torch.device("cpu"))
    held = [tensor.data_ptr() for tensor in (inputs.tokens, inputs.batch.tables, inputs.batch.slots)]
    full = ModelPass([1, 2, 3, 4], [4, 4, 4, 4], [1] * 4, [5] * 4, [[0, 1, 2], [3, 4, 5]] * 2, [0, 1, 2, 3], ())
    inputs.fill(full)
    assert inputs.batch.slots.tolist() == [4, 10, 4, 10]
    inputs.fill(ModelPass([7, 8], [2, 0], [1, 1], [3, 1], [[6, 7], [8]], [0, 1], ()))
    assert inputs.tokens.tolist() == [[7, 8, 0, 0]]
    assert inputs.positions.tolist() == [[2, 0, 0, 0]]
    assert inputs.batch.contexts.tolist() == [3, 1, 1, 1]
    assert inputs.batch.tables[:, 0].tolist() == [6, 8, 9, 9] and inputs.batch.tables[0, 1] == 7
    assert inputs.batch.slots.tolist() == [14, 16, 18, 18]
    assert held == [tensor.data_ptr() for tensor in (inputs.tokens, inputs.batch.tables, inputs.batch.slots)]


@pytest.mark.parametrize(
    ("sequences", "rows"), [(1, 1), (2, 2), (3, 4), (8, 8), (9, 16), (16, 16), (17, 32), (33, 48), (64, 64)]
)
def test_batches_are_padded_to_few_sizes(sequences, rows):
    assert padded_batch(sequences) == rows


def test_passes_with_prompts_or_pictures_are_no_decodes():
    decode = ModelPass([1, 2], [4, 4], [1, 1], [5, 5], [[0], [1]], [0, 1], ())
    assert is_decode(decode)
    assert not is_decode(ModelPass([1, 2], [3, 4], [2], [5], [[0]], [1], ()))  # two tokens of one
    assert not is_decode(ModelPass([1, 2], [4, 4], [1, 1], [5, 5], [[0], [1]], [0], ()))  # one without logits
    embeds = torch.zeros(1, 2, 8)
    assert not is_decode(ModelPass([1, 2], [4, 4], [1, 1], [5, 5], [[0], [1]], [0, 1], (), embeds))


def test_a_cpu_has_no_graphs():
    with pytest.raises(ConfigError, match='backend "cudagraph" needs a model on a cuda device, got one on "cpu"'):
        Engine(tiny_llama(), EngineConfig(backend="cudagraph"))


def test_a_config_that_asks_for_graphs_is_heard():
    settings = LlamaConfig(**{**MINDFORMERS, "use_past": True, "llm_backend": "cudagraph"}).engine
    assert EngineConfig.from_settings(settings).backend == "cudagraph"


needs_kernels = pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")


@pytest.mark.one_in(4)
@needs_kernels
@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_tapes_give_what_eager_passes_give(name, kv_dtype):
    """To the bit: four requests, of which fewer and fewer go on; the second time all tapes are there already."""
    model = MODELS[name]()
    params = [greedy(3 + 2 * i, logprobs=4) for i in range(4)]
    eager = engine_of(model, backend="eager", kv_dtype=kv_dtype)
    taped = engine_of(model, backend="record", kv_dtype=kv_dtype)
    own = [[token % 17 for token in prompt] for prompt in PROMPTS] if name == "imagegpt" else PROMPTS
    for prompts in (own, own[::-1]):
        wanted, found = eager.generate(prompts, params), taped.generate(prompts, params)
        assert [result.completions for result in found] == [result.completions for result in wanted]
    graphs = taped._runner._graphs
    assert graphs is not None and sorted(graphs._captured) == [1, 2, 3, 4]
    check_idle(taped)


@needs_kernels
def test_a_model_that_asks_for_numbers_is_not_recorded(monkeypatch):
    """A product that looks at its numbers. Who asked for records is told; by default the passes run as they are."""
    product = F.linear
    monkeypatch.setattr(F, "linear", lambda x, *weights: product(x, *weights) * float(x.isfinite().all()))
    model = tiny_imagegpt()
    with pytest.raises(ConfigError, match=r'"record" cannot record the passes of this model: .* asks for'):
        engine_of(model, backend="record").generate([[1, 2]], greedy(3))
    engine = engine_of(model)
    (result,) = engine.generate([[1, 2]], greedy(3))
    assert result.completions[0].tokens == expected(model, [1, 2], 3).tokens
    assert engine._runner._graphs is not None and engine._runner._graphs._captured == {}


@needs_kernels
def test_tapes_see_that_a_model_has_changed():
    """A weight in its place, a weight in another, a layer, a hook: the next token is by the model of then."""
    model = tiny_llama(base=PLAIN)
    engine = engine_of(model, reuse_prefixes=False)

    def check() -> None:
        (result,) = engine.generate([[3, 1, 4]], greedy(6))
        assert result.completions[0].tokens == expected(model, [3, 1, 4], 6).tokens

    layer = model.model.layers[0]
    check()
    with torch.no_grad():
        layer.mlp.up_proj.weight.mul_(-3)
    check()
    layer.mlp.down_proj.weight.data = layer.mlp.down_proj.weight.data.clone() * -2
    check()
    layer.mlp.gate_proj = torch.nn.Linear(*reversed(layer.mlp.gate_proj.weight.shape), bias=False)
    check()
    handle = layer.self_attn.register_forward_hook(lambda module, args, out: -out)
    check()
    handle.remove()
    check()


@pytest.mark.parametrize(
    ("settings", "kind"),
    [({}, TapeCapture), ({"backend": "record"}, TapeCapture), ({"backend": "eager"}, None)],
)
@needs_kernels
def test_who_captures(settings, kind):
    served = ServedModel.of(tiny_llama())
    graphs = graphs_of(served, EngineConfig(**settings), [], 64)
    assert graphs is None if kind is None else graphs is not None and isinstance(graphs._capture, kind)


def test_without_kernels_passes_are_eager(monkeypatch):
    monkeypatch.setattr(kernels, "available", lambda: False)
    monkeypatch.setattr(kernels, "reason", lambda: "no compiler")
    served = ServedModel.of(tiny_llama())
    assert graphs_of(served, EngineConfig(), [], 64) is None and spare_pages(served, EngineConfig()) == 0
    with pytest.raises(ConfigError, match='"record" records compiled kernels, and there are none: no compiler'):
        spare_pages(served, EngineConfig(backend="record"))


@pytest.mark.parametrize("backend", ["record", "cudagraph"])
def test_captures_are_of_one_rank(backend, monkeypatch):
    served = replace(ServedModel.of(tiny_llama()), ranks=2, device=torch.device("cuda" if "cuda" in backend else "cpu"))
    assert graphs_of(replace(served, device=torch.device("cpu")), EngineConfig(), [], 64) is None
    with pytest.raises(ConfigError, match=f'backend "{backend}" serves a model on one rank, got 2 ranks'):
        spare_pages(served, EngineConfig(backend=backend))


def test_eager_engines_need_no_spare_page():
    assert spare_pages(ServedModel.of(tiny_llama()), EngineConfig()) == 0


class Waits(KernelAwareMode):
    """Refuses what lets Python wait for numbers, which a graph cannot capture."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aten = torch.ops.aten
        waits = (aten._local_scalar_dense, aten.nonzero, aten.is_nonzero, aten.masked_select, aten.unique_dim)
        assert func.overloadpacket not in waits, f"{func} waits for numbers"
        return func(*args, **(kwargs or {}))


@needs_kernels
@pytest.mark.parametrize("name", MODELS)
def test_decodes_wait_for_no_number(name, monkeypatch):
    """The kernels of the CPU are handed pointers, as those of a GPU are, so that what is left is what both run."""

    class Watched(Replayed):
        def __call__(self, forward: Forward) -> Forward:
            def watched() -> Tensor:
                with Waits(), monkeypatch.context() as patch:
                    patch.setattr(Tensor, "tolist", lambda self: pytest.fail("tolist waits for numbers"))
                    return forward()

            return super().__call__(watched)

    capture = Watched()
    prompts = [[token % 17 for token in prompt] for prompt in PROMPTS] if name == "imagegpt" else PROMPTS
    graphed(MODELS[name](), capture).generate(prompts, greedy(2))
    assert capture.runs >= 1


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@needs_cuda
@pytest.mark.parametrize("name", MODELS)
def test_graphs_of_a_gpu_give_what_its_eager_passes_give(name):
    model = MODELS[name]().to("cuda")
    prompts = [[token % 17 for token in prompt] for prompt in PROMPTS]
    params = [greedy(3 + 2 * i) for i in range(4)]
    eager, captured = (
        engine_of(model, backend=backend).generate(prompts, params) for backend in ("eager", "cudagraph")
    )
    assert [result.completions for result in captured] == [result.completions for result in eager]
