"""What a training run is planned to hold, against its real model and, slowly, against the memory of real steps."""

import copy

import pytest
import torch

from benchmarks.train_memory import compare, run_of
from benchmarks.train_memory_cases import MODELS, RUNS
from modelwright.checkpoints.quantized_model import quantize_model
from modelwright.cli.train_plan import planned
from modelwright.families.read import config_of
from modelwright.ops.products import PIECE
from modelwright.training.build import model_of_config
from modelwright.training.learner import Learner
from modelwright.training.precision import held_by
from modelwright.training.tuning import settle


def learner_of(run, model=None):
    model = model_of_config(run.model, 0) if model is None else model
    tuned = settle(model, run.tune)
    held = held_by(model, getattr(torch, run.precision.compute or run.model.dtype), run.precision.autocast)
    return held, Learner(model, run, tuned.groups, 2, tuned.trains("gate"))


@pytest.mark.one_in(4)
@pytest.mark.parametrize("case", RUNS)
@pytest.mark.parametrize("name", MODELS)
def test_a_plan_holds_what_the_learner_holds(name, case):
    """Adapters, copies in a shorter type, frozen weights: every tensor counted in the learner itself."""
    run = run_of(name, "tiny", case)
    held, learner = learner_of(run)
    weights = sum(each.nbytes for each in (*learner.model.parameters(), *learner.model.buffers()))
    own = {id(parameter) for parameter in learner.model.parameters()}
    masters = sum(each.nbytes for each in learner.weights.masters.values() if id(each) not in own)
    trained = sum(each.weight.numel() for each in learner.steered)
    assert (held.weights, held.masters, held.trained) == (weights, masters, trained)
    memory = planned(run, config_of(run.model.config, "model")).memory
    assert memory.weights == pytest.approx(weights, abs=2)
    assert memory.gradients == pytest.approx(4 * trained, abs=2)
    learner.optimizers.begin()
    moments = sum(tensor.nbytes for name, tensor in learner.optimizers.tensors().items() if not name.endswith(".step"))
    vectors = sum(each.weight.numel() for each in learner.steered if each.weight.dim() < 2)
    kept = 8 * vectors * (run.optimizer.state == "int8")  # vectors keep their moments in float32, which is not planned
    assert memory.optimizer - 2 <= moments + masters <= 1.01 * (memory.optimizer + kept)


def test_a_frozen_base_in_integers_is_counted_as_it_is_stored():
    run = run_of("llama", "tiny", "float32, LoRA")
    stored = quantize_model(model_of_config(run.model, 0), "int8")
    config = copy.deepcopy(stored.config)
    held, learner = learner_of(run, stored)
    weights = sum(each.nbytes for each in (*learner.model.parameters(), *learner.model.buffers()))
    assert held.weights == weights
    memory = planned(run, config).memory
    assert memory.weights == pytest.approx(weights, rel=1e-3)
    assert memory.weights < 0.6 * planned(run, config_of(run.model.config, "model")).memory.weights


@pytest.mark.one_in(3)
@pytest.mark.parametrize("case", RUNS)
@pytest.mark.parametrize(
    "name", [each if each == "llama" else pytest.param(each, marks=pytest.mark.slow) for each in MODELS]
)
def test_a_plan_is_within_15_percent_of_what_steps_take(name, case):
    found = compare(name, "tiny", case)
    assert abs(found.error) <= 0.15, found


@pytest.mark.slow
@pytest.mark.parametrize("case", ["bfloat16", "bfloat16, LoRA"])
def test_copies_of_large_weights_for_one_product_are_planned(case):
    """On a processor without products of bf16 the head's copy in fp32 is a fifth of what the adapters' run takes."""
    assert abs(compare("llama", "small", case).error) <= 0.15


def test_only_where_products_are_made_in_fp32_copies_are_planned(monkeypatch):
    run = run_of("llama", "small", "bfloat16")
    config = config_of(run.model.config, "model")
    found = []
    for lacking in (False, True):
        monkeypatch.setattr("modelwright.training.precision.kernels.torch_lacks", lambda dtype, lacks=lacking: lacks)
        found.append(planned(run, config).memory)
    more = found[1].workspace - found[0].workspace
    assert more == 4 * min(config.vocab_size * config.hidden_size, PIECE) > 2**23
    assert found[0].weights == found[1].weights
