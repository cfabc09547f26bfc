"""Layers that are compiled: the same steps, names and checkpoints, and no more graphs for many layers and rows.

Most tests run the compiler up to its graphs (``aot_eager``), whose kernels are torch's own; the slow ones make them.
"""

import pytest
import torch
from torch._dynamo.utils import counters

from modelwright.data.documents import StepBatch
from modelwright.errors import ConfigError
from modelwright.ops.attention import attention
from modelwright.ops.documents import attention_by_document
from modelwright.training import compiled
from modelwright.training.compiled_attention import ATTENTION
from tests.fakes import tokens
from tests.training.learners import MODELS, learner_of, rows_of, step_batch, weights_of
from tests.training.test_learner import numbers, round_trip, steps
from tests.training.test_trainer import losses, trainer_of

close = torch.testing.assert_close
slow = pytest.mark.slow
pytestmark = pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # of the compiler's own
PLAIN = {"optimizer": {"name": "sgd", "lr": 1.0, "weight_decay": 0}, "clip": None, "schedule": {"name": "constant"}}
"""A step that moves each weight by its gradient."""


@pytest.fixture
def quick(monkeypatch):
    """Graphs alone, no kernels."""
    torch.compiler.reset()
    counters.clear()
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")


def packed(seed, length=32, rows=1):
    """A step of rows in each of which some documents follow each other, nowhere ending as in another."""
    generator = torch.Generator().manual_seed(seed)
    micro = []
    for part in range(2):
        ids, ends = tokens(rows, length, seed=10 * seed + part), torch.zeros(rows, length, dtype=torch.long)
        for row in ends:
            row[torch.randperm(length - 1, generator=generator)[: 2 + seed % 3] + 1] = 1
        numbers_of = ends.cumsum(dim=1)
        starts = [(numbers_of == numbers_of[:, place : place + 1]).long().argmax(dim=1) for place in range(length)]
        positions = torch.arange(length) - torch.stack(starts, dim=1)
        micro.append({"input_ids": ids, "labels": ids, "seq_idx": numbers_of.int(), "position_ids": positions})
    return StepBatch(tuple(micro), 0, 0, 2 * rows, (), 0)


def unequal(model, seed):
    return step_batch(rows_of(model, 4, seed), 2)


def gradients_of(name, batches, **parts):
    """Of each of these steps: what is said of it, and each weight's gradient."""
    learner, found = learner_of(MODELS[name](), **PLAIN, **parts), []
    before = weights_of(learner)
    for step, batch in enumerate(batches, 1):
        result = learner.step_on(step, batch)
        found.append((result.loss, {key: before[key] - weight for key, weight in weights_of(learner).items()}))
        with torch.no_grad():
            for key, weight in learner.weights.masters.items():
                weight.copy_(before[key])
        learner.weights.refresh()
    return found


def check_same(name, batches, most=1e-5, **parts):
    exact = gradients_of(name, batches, **parts)
    found = gradients_of(name, batches, compile="layers", **parts)
    assert counters["stats"]["unique_graphs"] > 0
    for (loss, gradients), (other, others) in zip(exact, found, strict=True):
        close(other, loss, atol=most, rtol=most)
        for key, gradient in gradients.items():
            assert (others[key] - gradient).norm() <= most * gradient.norm() + most / 10, key


def check_as_near(name, batches, **parts):
    """Layers that are compiled round otherwise than those that are not: neither is to be further from fp32."""
    exact = gradients_of(name, batches, **parts)
    off = {False: 0.0, "layers": 0.0}
    for how in off:
        found = gradients_of(name, batches, precision={"compute": "bfloat16"}, compile=how, **parts)
        for (loss, gradients), (true, trues) in zip(found, exact, strict=True):
            close(loss, true, atol=3e-2, rtol=3e-2)
            shares = [(gradients[key] - true).norm() / true.norm().clamp(min=1e-3) for key, true in trues.items()]
            off[how] += float(torch.stack(shares).mean())
    assert counters["stats"]["unique_graphs"] > 0
    assert 0 < off["layers"] <= 1.2 * off[False]


QUICK = ("llama", {"recompute": "selective", "swap": {}})
SLOW = [
    *[("llama", parts) for parts in ({}, {"recompute": "full"}, {"swap": {}})],
    ("imagegpt", {}),
    *[(name, {}) for name in ("mindformers", "latent", "steered", "vl2")],
    *[(name, {"recompute": how}) for name in ("steered", "vl2", "imagegpt") for how in ("full", "selective")],
    *[(name, {"tune": {"lora": {"rank": 4}}}) for name in MODELS],
    ("steered", {"tune": {"lora": {"rank": 4}}, "recompute": "full"}),
    ("llama", {"recompute": {"operations": {"attention": [0], "feed_forward": [1]}}}),
    ("llama", {"swap": {"operations": {"attention": [0], "feed_forward": [1]}}}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parts"), [QUICK, *(pytest.param(*each, marks=slow) for each in SLOW)], ids=str)
def test_a_step_is_that_of_layers_that_are_not_compiled(quick, name, parts):
    model = MODELS[name]()
    rows = [unequal(model, seed) for seed in range(2)]
    check_same(name, rows + ([packed(3)] if name not in ("vl2", "imagegpt") else []), **parts)


@pytest.mark.parametrize(
    ("name", "how", "compute"),
    [
        (name, how, compute)
        for name in ("llama", "steered", "vl2", "imagegpt")
        for how, compute in (("none", "float32"), ("selective", "float32"), ("full", "bfloat16"))
    ],
)
@slow
def test_the_kernels_compute_the_same(name, how, compute):
    """By the compiler's own: gradients of each weight to 1e-5 in fp32, and in bf16 as near to those as without it."""
    torch.compiler.reset()
    counters.clear()
    seed = 1 if compute == "float32" else 5  # of no scores so close that rounding changes an expert
    batches = [packed(seed)] if name in ("llama", "steered") else [unequal(MODELS[name](), 0)]
    if compute == "float32":
        check_same(name, batches, recompute=how)
    else:
        check_as_near(name, batches, recompute=how)


@pytest.mark.parametrize("name", ["llama", "latent"])
@slow
def test_neither_layers_nor_rows_add_graphs(quick, name):
    """Of twice the layers, and after rows of two lengths, nothing is compiled any more."""
    found = []
    for layers in (3, 6):
        torch.compiler.reset()
        counters.clear()
        learner = learner_of(MODELS[name](num_hidden_layers=layers), compile="layers")
        seen = []
        for seed in range(8):
            learner.step_on(seed + 1, packed(seed, length=24 + seed // 2 * 4))
            seen.append(counters["stats"]["unique_graphs"])
        assert not counters["graph_break"] and seen[2] == seen[-1], seen
        found.append(seen[-1])
    assert found[0] == found[1] <= 6


@slow
def test_a_compiled_run_keeps_plain_names_and_goes_on_bit_for_bit(quick, tmp_path):
    parts = {"compile": "layers", "recompute": "selective"}
    whole, stopped = trainer_of(tmp_path / "whole", **parts), trainer_of(tmp_path / "cut", limits={"stop": 3}, **parts)
    whole.fit()
    stopped.fit()
    rest = trainer_of(tmp_path / "cut", **parts)
    rest.fit()
    assert losses(stopped) | losses(rest) == losses(whole)
    plain = trainer_of(tmp_path / "plain")
    assert whole.learner.weights.masters.keys() == plain.learner.weights.masters.keys()
    read = type(whole.model).from_pretrained(tmp_path / "whole" / "export")
    for name, tensor in read.state_dict().items():
        assert torch.equal(tensor, rest.model.state_dict()[name]), name


@slow
def test_a_compiled_learner_goes_on(quick):
    parts = {"compile": "layers", "tune": {"lora": {"rank": 2, "dropout": 0.3}}}
    whole = learner_of(MODELS["llama"](), **parts)
    batches = [packed(seed) for seed in range(4)]
    expected = numbers(steps(whole, batches))
    first, second = learner_of(MODELS["llama"](), **parts), learner_of(MODELS["llama"](), **parts)
    found = numbers(steps(first, batches[:2]))
    round_trip(first, second)
    assert found + numbers(steps(second, batches[2:], 3)) == expected


@slow
def test_only_training_passes_are_compiled(quick):
    learner = learner_of(MODELS["llama"](), compile="layers")
    batch = unequal(learner.model, 0)
    with torch.no_grad():
        learner.model(**batch.micro[0])
        learner.model.eval()(**batch.micro[0])
    assert not counters["stats"]
    learner.model.train()
    learner.step_on(1, batch)
    assert counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("softmax", [None, torch.float32])
def test_attention_of_documents_is_one_operation(softmax):
    """Its values, and its gradients against torch's own of the same documents; with dropout, against its values."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, heads, 10, width, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads, width in ((4, 6), (2, 6), (2, 5))
    )
    spans, bounds = [[(0, 3), (3, 10)], [(0, 10)]], torch.tensor([0, 3, 10, 20])
    wanted = attention_by_document(attention, spans, q, k, v, None, 0.3)
    found = ATTENTION(q, k, v, bounds, None, 0.3, 0.0, softmax)
    close(found, wanted, atol=1e-6, rtol=1e-6)
    along = torch.randn(wanted.shape, generator=generator, dtype=torch.float64)
    for own, other in zip(
        torch.autograd.grad(found, (q, k, v), along), torch.autograd.grad(wanted, (q, k, v), along), strict=True
    ):
        close(own, other, atol=1e-6, rtol=1e-6)
    seed = torch.tensor(5)
    assert torch.autograd.gradcheck(
        lambda *parts: ATTENTION(*parts, bounds, seed, 0.3, 0.5, torch.float64), (q, k, v), fast_mode=True
    )
    torch.library.opcheck(ATTENTION.default, (q, k, v, bounds, None, 0.3, 0.0, softmax))


def test_a_machine_without_a_compiler_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    with pytest.raises(ConfigError, match=r'compile "layers" needs a C\+\+ compiler, and none runs here'):
        trainer_of(tmp_path / "run", compile="layers")
    assert not (tmp_path / "run").exists()
