"""One optimizer step on drawn models of every family: however it is cut, kept and continued, it is the same step."""

import json
import math
import re
from collections import Counter

import pytest
import torch
import torch.utils.flop_counter
from torch.utils._python_dispatch import TorchDispatchMode

from modelwright.configs.run import layout
from modelwright.configs.run.layout import OPERATIONS
from modelwright.errors import CheckpointError, ConfigError
from modelwright.layers import Router
from modelwright.training import state
from modelwright.training.learner import NOT_FINITE
from modelwright.training.memory import KERNELS, MODULES, RECOMPUTED, layers_of
from modelwright.training.report.expert_loads import expert_loads
from tests.llamas import EXPERTS, tiny_llama
from tests.training.learners import MODELS, learner_of, padded, rows_of, step_batch, weights_of

close = torch.testing.assert_close


def quickly(*names):
    """All families, of which these are tried in the quick suite."""
    return pytest.mark.parametrize(
        "name", [n if n in names else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]
    )


def steps(learner, batches, first=1):
    return [learner.step_on(step, batch) for step, batch in enumerate(batches, first)]


def numbers(results):
    return [(r.loss, r.lm, r.balance, r.norm, dict(r.norms), dict(r.rates), r.counted, r.skipped) for r in results]


@quickly("mindformers", "steered", "vl2", "imagegpt")
def test_a_step_is_the_same_however_it_is_cut(name):
    """Losses to 1e-6, gradients of each parameter to 1e-5 of their norm; loads and biases exactly."""
    fields = {"attn_pdrop": 0, "resid_pdrop": 0, "embd_pdrop": 0} if name == "imagegpt" else {}
    found = {}
    for micro in (8, 4, 1):
        learner = learner_of(MODELS[name](**fields), optimizer={"name": "sgd", "lr": 1.0, "weight_decay": 0}, clip=None)
        before = weights_of(learner)
        result = learner.step_on(1, step_batch(rows_of(learner.model), micro))
        after = weights_of(learner)
        biases = [router.e_score_correction_bias.clone() for router in learner.routers]
        found[micro] = result, {name: before[name] - after[name] for name in before}, biases
    whole, gradients, biases = found[8]
    for micro in (4, 1):
        result, others, other_biases = found[micro]
        assert (result.counted, result.tokens) == (whole.counted, whole.tokens)
        close(result.lm, whole.lm, atol=1e-6, rtol=1e-6)
        close(result.norm, whole.norm, atol=1e-6, rtol=1e-5)
        if whole.loads is not None:
            assert torch.equal(result.loads, whole.loads)
        close(other_biases, biases, atol=0, rtol=0)
        close(result.loss, whole.loss, atol=1e-6, rtol=1e-6)
        for name_of, gradient in gradients.items():
            assert (others[name_of] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, name_of


def test_a_batch_balanced_in_parts_is_another_loss():
    """What ``micro_batch`` asks for is MindFormers' own: each micro-batch by its own choices."""
    losses = []
    for micro, scope in ((8, "global"), (4, "global"), (4, "micro_batch")):
        learner = learner_of(MODELS["mindformers"](), loss={"balance_scope": scope})
        losses.append(learner.step_on(1, step_batch(rows_of(learner.model), micro)).balance)
    close(losses[1], losses[0], atol=1e-6, rtol=1e-6)
    assert abs(losses[2] - losses[0]) > 1e-5


def test_each_micro_batch_may_weigh_alike():
    learner = learner_of(MODELS["llama"](), loss={"per_token": False})
    rows = rows_of(learner.model)
    means = [learner.model(**padded(rows[i : i + 4])).loss for i in (0, 4)]
    close(learner.step_on(1, step_batch(rows, 4)).lm, float(sum(means).detach() / 2), atol=1e-6, rtol=1e-6)


WAYS = {
    "full": {"recompute": "full"},
    "selective": {"recompute": "selective"},
    "one layer": {"recompute": {"layers": [1]}},
    "saving norms": {"recompute": {"save": ["norm", "topk"]}},
    "swap": {"swap": {}},
    "operations": {"recompute": {"operations": {"attention.core": [0], "attention_norm": [0, 1], "feed_forward": [1]}}},
    "swap of operations": {
        "swap": {"operations": {"attention_norm": [0, 1], "attention": [1], "feed_forward.product": [0]}}
    },
    "both": {"recompute": "selective", "swap": {"layers": [0]}},
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("how", WAYS)
@quickly("steered")
def test_what_is_kept_of_a_layer_changes_nothing(name, how):
    """Losses, gradients, loads and weights to the last bit, with dropout where the family has any."""
    found = []
    for parts in ({}, WAYS[how]):
        learner = learner_of(MODELS[name](), **parts)
        batches = [step_batch(rows_of(learner.model, 4, seed), 2) for seed in range(2)]
        found.append((numbers(steps(learner, batches)), weights_of(learner)))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(found[1][1][key], weight) for key, weight in found[0][1].items())


def test_recomputing_computes_again():
    """And what is to be saved is not: the products of a layer are counted."""
    counts = {}
    for how in ("none", "selective", {"operations": {"feed_forward": [0]}}, "full"):
        learner = learner_of(MODELS["llama"](), recompute=how)
        batch = step_batch(rows_of(learner.model, 2), 2)
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
            learner.step_on(1, batch)
        counts[str(how)] = counter.get_total_flops()
    none, selective, one, full = counts.values()
    assert none == selective < one < full


@pytest.mark.parametrize("how", [{"recompute": "full"}, {"recompute": {"layers": [2, 3]}}, {"swap": {"layers": [3]}}])
def test_blocks_of_a_tower_are_layers_after_those_of_the_stack(how):
    """They are recomputed or moved by their numbers, without a changed bit, and run as often as that takes."""
    found = []
    for parts in ({}, how):
        learner, calls = learner_of(MODELS["vl2"](), **parts), []
        layers = layers_of(learner.model)
        assert list(layers)[2:] == ["vision.blocks.0", "vision.blocks.1"]
        for name, layer in layers.items():
            layer.mlp.register_forward_pre_hook(lambda *_, name=name, calls=calls: calls.append(name))
        result = learner.step_on(1, step_batch(rows_of(learner.model, 4), 4))
        found.append((numbers([result]), weights_of(learner), [calls.count(name) for name in layers]))
    assert found[0][0] == found[1][0] and found[0][2] == [1, 1, 1, 1]
    assert all(torch.equal(found[1][1][key], weight) for key, weight in found[0][1].items())
    again = {0, 1, 2, 3} if how == {"recompute": "full"} else set(how.get("recompute", {}).get("layers", ()))
    assert found[1][2] == [2 if number in again else 1 for number in range(4)]


def test_a_layer_that_is_not_there_is_refused():
    for parts, words in (
        ({"recompute": {"layers": [2]}}, "layers 0 to 1"),
        ({"recompute": {"operations": {"attention": [5]}}}, "names layer 5"),
        ({"swap": {"layers": [7]}}, "names layer 7"),
        ({"swap": {"operations": {"attention": [3]}}}, "names layer 3"),
        ({"recompute": {"save": ["matmul", "norms"]}}, 'save must be one of "matmul"'),
    ):
        with pytest.raises(ConfigError, match=words):
            learner_of(MODELS["llama"](), **parts)
    with pytest.raises(ConfigError, match="layers 0 to 3, those from 2 on blocks of its tower"):
        learner_of(MODELS["vl2"](), recompute={"layers": [4]})


OPTIMIZERS = {
    "adamw": {"name": "adamw"},
    "adam": {"name": "adam"},
    "sgd": {"name": "sgd", "momentum": 0.9},
    "adagrad": {"name": "adagrad"},
    "adafactor": {"name": "adafactor"},
    "lion": {"name": "lion"},
    "muon": {"name": "muon"},
}


def round_trip(learner, other):
    """Everything that a checkpoint keeps, through JSON and copies."""
    kept = {key: tensor.clone() for key, tensor in state.tensors(learner).items()}
    said = json.loads(json.dumps(state.facts(learner)))
    into = state.tensors(other)
    assert into.keys() == kept.keys()
    with torch.no_grad():
        for key, tensor in into.items():
            tensor.copy_(kept[key])
    state.taken_over(other, said)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        *(pytest.param(name, {}, marks=[] if name == "imagegpt" else pytest.mark.slow) for name in MODELS),
        *(
            pytest.param("latent", {"optimizer": {"lr": 1e-2} | optimizer}, marks=pytest.mark.slow)
            for optimizer in OPTIMIZERS.values()
        ),
        ("steered", {"precision": {"compute": "bfloat16"}}),
        ("llama", {"precision": {"compute": "bfloat16", "autocast": True}}),
        ("llama", {"precision": {"compute": "float16", "scale": {"init": 1024, "window": 2}}}),
    ],
)
def test_a_run_goes_on_after_any_step(name, parts):
    """Bit for bit: losses, norms, weights, biases, moments."""
    whole = learner_of(MODELS[name](), **parts)
    batches = [step_batch(rows_of(whole.model, 4, seed), 2) for seed in range(4)]
    expected = numbers(steps(whole, batches))
    for after in (0, 1, 3):
        first = learner_of(MODELS[name](), **parts)
        found = numbers(steps(first, batches[:after]))
        second = learner_of(MODELS[name](seed=7), **parts)
        round_trip(first, second)
        found += numbers(steps(second, batches[after:], after + 1))
        assert found == expected
        ended = state.tensors(second)
        for key, tensor in state.tensors(whole).items():
            assert torch.equal(ended[key], tensor), key


def test_a_checkpoint_of_another_run_is_refused():
    first, second = learner_of(MODELS["llama"]()), learner_of(MODELS["llama"](), seed=3)
    with pytest.raises(CheckpointError, match="seed 0, and this one has 3"):
        state.taken_over(second, state.facts(first))


def test_dropout_is_drawn_for_the_step_and_nothing_else_is_touched():
    batches = None
    losses = []
    for noise in (0, 5):
        learner = learner_of(MODELS["imagegpt"](resid_pdrop=0.5))
        batches = batches or [step_batch(rows_of(learner.model, 4, seed), 2) for seed in range(2)]
        torch.manual_seed(1)
        torch.rand(noise)
        before = torch.get_rng_state()
        losses.append([r.loss for r in steps(learner, batches)])
        assert torch.equal(torch.get_rng_state(), before)
    assert losses[0] == losses[1]
    other = learner_of(MODELS["imagegpt"](resid_pdrop=0.5), seed=1)
    assert other.step_on(1, batches[0]).loss != losses[0][0]


# Limits


@quickly("steered")
def test_a_step_without_a_number_is_not_taken(name):
    learner = learner_of(MODELS[name]())
    batch = step_batch(rows_of(learner.model, 4), 2)
    next(iter(learner.weights.masters.values())).data.fill_(torch.nan)
    before = state.tensors(learner)
    before = {key: tensor.clone() for key, tensor in before.items()}
    result = learner.step_on(1, batch)
    assert result.skipped is not None and result.skipped.startswith(NOT_FINITE)
    for key, tensor in state.tensors(learner).items():
        assert torch.equal(tensor.nan_to_num(), before[key].nan_to_num()), key
    assert all(router.load.sum() == 0 for router in learner.routers)


def test_a_spike_is_skipped():
    learner = learner_of(MODELS["llama"](), limits={"spike": 3.0}, optimizer={"lr": 1e-6}, clip=None)
    batch = step_batch(rows_of(learner.model, 2), 2)
    usual = [learner.step_on(step, batch) for step in range(1, 17)]
    assert all(result.skipped is None for result in usual)
    with torch.no_grad():
        learner.model.lm_head.weight *= 40
    result = learner.step_on(17, batch)
    assert "times the usual one" in result.skipped and result.norm > 3 * usual[-1].norm
    fixed = learner_of(MODELS["llama"](), limits={"spike": 1e-3, "spike_of": "norm"})
    assert "is above 0.001" in fixed.step_on(1, batch).skipped


# Precision


@quickly()
def test_bf16_learns_what_fp32_learns(name):
    learners = [learner_of(MODELS[name](), precision={"compute": compute}) for compute in ("float32", "bfloat16")]
    batches = [step_batch(rows_of(learners[0].model, 4, seed % 2), 2) for seed in range(8)]
    exact, low = ([r.lm for r in steps(learner, batches)] for learner in learners)
    assert exact[-1] < 0.9 * exact[0]
    close(sum(low), sum(exact), atol=0, rtol=0.03)
    kinds = {parameter.dtype for parameter in learners[1].model.parameters()}
    assert kinds == {torch.float32, torch.bfloat16}
    assert {master.dtype for master in learners[1].weights.masters.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("asked", "holds"), [({}, True), ({"deterministic": True}, True), ({"deterministic": False}, False)]
)
def test_a_step_takes_operations_that_repeat_where_that_is_asked_for_and_leaves_torch_as_it_was(asked, holds):
    learner, seen = learner_of(MODELS["llama"](), **asked), []
    learner.model.base_model.register_forward_hook(lambda *_: seen.append(torch.are_deterministic_algorithms_enabled()))
    learner.step_on(1, step_batch(rows_of(learner.model, 2), 2))
    assert seen and set(seen) == {holds} and not torch.are_deterministic_algorithms_enabled()


def test_autocast_casts_at_every_use_and_keeps_no_copies():
    found = []
    for precision in ({"compute": "bfloat16", "autocast": True}, {"compute": "bfloat16"}, {"compute": "float32"}):
        learner = learner_of(MODELS["llama"](), precision=precision)
        kinds = {parameter.dtype for parameter in learner.model.parameters()}
        found.append((torch.bfloat16 in kinds, learner.step_on(1, step_batch(rows_of(learner.model, 4), 2)).lm))
    (cast, copied, exact) = found
    assert not cast[0] and copied[0] and cast[1] != exact[1]
    close(cast[1], copied[1], atol=0, rtol=5e-3)


def test_copies_are_the_weights_that_are_stepped():
    learner = learner_of(MODELS["latent"](), precision={"compute": "bfloat16"})
    steps(learner, [step_batch(rows_of(learner.model, 4), 2)])
    for name_of, parameter in learner.model.named_parameters():
        assert torch.equal(parameter, learner.weights.masters[name_of].to(parameter.dtype)), name_of
        assert parameter.grad is None


def test_a_loss_scale_moves_as_its_numbers_say():
    scale = {"init": 2.0**40, "factor": 4.0, "window": 2}
    learner = learner_of(MODELS["llama"](), precision={"compute": "float16", "scale": scale})
    batch = step_batch(rows_of(learner.model, 2), 2)
    results = [learner.step_on(step, batch) for step in range(1, 22)]
    overflows = [result.skipped is not None for result in results]
    first = overflows.index(False)
    assert first > 4 and all(overflows[:first])
    assert [r.scale for r in results[: first + 1]] == [2.0**40 / 4**i for i in range(first + 1)]
    assert results[first + 2].scale == 4 * results[first].scale


def test_the_loss_scale_takes_nothing_from_the_step():
    found = []
    for scale in (None, {"init": 1024, "fixed": True}):
        learner = learner_of(MODELS["llama"](), precision={"compute": "float16", "scale": scale})
        found.append(learner.step_on(1, step_batch(rows_of(learner.model, 4), 2)).norm)
    close(found[1], found[0], atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("name", MODELS)
def test_every_operation_that_may_wait_in_host_memory_is_a_module_of_each_layer(name):
    layers = layers_of(MODELS[name]()).values()
    for operation in OPERATIONS:
        for layer in layers:
            found = [child for child, _ in layer.named_children() if re.fullmatch(MODULES[operation], child)]
            assert len(found) == 1, (operation, found)
    assert RECOMPUTED.keys() == MODULES.keys() == set(OPERATIONS)
    assert tuple(KERNELS) == layout.KERNELS


# What a step tells


def test_choices_beyond_a_capacity_are_counted():
    """By hand: of each pass, what an expert was chosen beyond the room that it has; among real tokens."""
    fields = EXPERTS | {"use_gmm": False, "capacity_factor": 0.6}
    model, chosen = tiny_llama(moe_config=fields), []
    learner = learner_of(model, loss={"balance_scope": "micro_batch"})
    routers = [module for module in learner.model.modules() if isinstance(module, Router)]
    for number, router in enumerate(routers):
        router.register_forward_hook(lambda _router, _x, made, number=number: chosen.append((number, made.chosen)))
    batch = step_batch(rows_of(learner.model, 4), 1)
    result = learner.step_on(1, batch)
    wanted = [0] * len(routers)
    for number, experts_of in chosen:
        room = math.ceil(experts_of.numel() * 0.6 / fields["expert_num"])
        wanted[number] += sum(max(count - room, 0) for count in Counter(experts_of.flatten().tolist()).values())
    assert len(chosen) == 4 * len(routers) and sum(wanted) > 0
    assert result.dropped.tolist() == wanted
    said = expert_loads(result.loads, result.dropped)["dropped"]
    close(
        said, [count / float(load.sum()) for count, load in zip(wanted, result.loads, strict=True)], atol=1e-6, rtol=0
    )
    assert learner_of(MODELS["mindformers"]()).step_on(1, batch).dropped is None


@pytest.mark.parametrize("name", MODELS)
def test_a_step_waits_for_the_device_once_at_its_end(name, monkeypatch):
    """For one list of numbers; reading a tensor otherwise is counted too."""
    learner, read = learner_of(MODELS[name]()), []
    tolist, finish = torch.Tensor.tolist, learner._finish

    class Reading(TorchDispatchMode):
        def __torch_dispatch__(self, operation, kinds, given=(), named=None):
            if operation in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
                read.append(str(operation))
            return operation(*given, **(named or {}))

    def finishing(*given):
        with Reading(), monkeypatch.context() as patched:
            patched.setattr(torch.Tensor, "tolist", lambda tensor: read.append("tolist") or tolist(tensor))
            return finish(*given)

    learner._finish = finishing
    learner.optimizers.begin()  # the fused ones count their steps on the device
    result = learner.step_on(1, step_batch(rows_of(learner.model, 4), 2))
    assert read == ["tolist"] and result.norms
