"""FLOPs of training against torch's own formulas, forward and backward, on models that run here; see `test_flops`."""

import re

import pytest

from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.deepseek_v2.model import DeepseekV2ForCausalLM
from modelwright.families.deepseek_vl2.model import DeepseekVLV2ForCausalLM
from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.families.imagegpt.model import ImageGPTForCausalImageModeling
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.model import LlamaForCausalLM
from modelwright.planner.counting import count
from modelwright.planner.parts import ByPart
from modelwright.planner.training_flops import PARTS, training_flops
from tests.fakes import DENSE, MHA, MOE, tokens, vl2_inputs
from tests.llamas import EXPERTS, HUGGING_FACE, MINDFORMERS
from tests.planner.models import PARTS as NAMES
from tests.planner.models import TINY_IMAGEGPT, tiny_vl2_config
from tests.planner.test_flops import Counting, exact

FAMILIES = {
    "llama": (LlamaForCausalLM, lambda: LlamaConfig(**HUGGING_FACE)),
    "llama_turned": (LlamaForCausalLM, lambda: LlamaConfig(**MINDFORMERS)),
    "llama_experts": (LlamaForCausalLM, lambda: LlamaConfig(**MINDFORMERS | {"moe_config": EXPERTS})),
    "llama_tied": (LlamaForCausalLM, lambda: LlamaConfig(**HUGGING_FACE | {"tie_word_embeddings": True})),
    "v2_dense": (DeepseekV2ForCausalLM, lambda: DeepseekV2Config(**DENSE)),
    "v2_experts": (DeepseekV2ForCausalLM, lambda: DeepseekV2Config(**MOE)),
    "v2_heads": (DeepseekV2ForCausalLM, lambda: DeepseekV2Config(**MHA)),
    "imagegpt": (ImageGPTForCausalImageModeling, lambda: ImageGPTConfig(**TINY_IMAGEGPT | {"n_positions": 32})),
}


def part_of(name: str) -> str:
    return next(part for part, pattern in NAMES.items() if re.search(pattern, name))


def train(model, trained=PARTS):
    """The model in training, with the parts that are not trained frozen."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in trained)
    return model.train()


def measured(model, **inputs) -> int:
    with Counting() as counting:
        model(**inputs, use_cache=False).loss.backward()
    return counting.flops


def language_model_and_ids(name: str, n: int = 9):
    kind, make = FAMILIES[name]
    config = make()
    model = exact(kind, config)
    return config, model, tokens(2, n, vocab=config.vocab_size)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_of_every_family_is_counted_exactly(name):
    config, model, ids = language_model_and_ids(name)
    found = 2 * training_flops(count(config), 9).total
    assert found == measured(train(model), input_ids=ids, labels=ids)


@pytest.mark.parametrize("name", ["llama", "v2_experts"])
@pytest.mark.parametrize(
    "trained",
    [{"head"}, {"attention", "norms"}, {"routed_experts", "dense_ffn", "norms"}, {"embedding"}],
    ids=lambda parts: "-".join(sorted(parts)),
)
def test_what_is_frozen_costs_no_gradient_of_weights(name, trained):
    config, model, ids = language_model_and_ids(name)
    found = 2 * training_flops(count(config), 9, trained=trained).total
    seen = measured(train(model, trained), input_ids=ids, labels=ids)
    assert found == seen


@pytest.mark.parametrize("trained", [PARTS, PARTS - {"vision"}, PARTS - {"vision", "projector"}, {"projector"}])
def test_a_step_with_pictures_is_counted_exactly(trained):
    config = tiny_vl2_config()
    config.vision_config.deterministic = True
    model, vision = exact(DeepseekVLV2ForCausalLM, config), count(config).vision
    size = (16, 8)
    inputs = vl2_inputs([[vision.grid(size)]], count=lambda _: vision.image_tokens(size))
    inputs = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    n = inputs["input_ids"].shape[1]
    found = training_flops(count(config), n, vision.tiles(size), trained=trained).total
    assert found == measured(train(model, trained), **inputs, labels=inputs["input_ids"])


def test_a_whole_model_costs_three_forward_passes():
    counts = count(LlamaConfig(**HUGGING_FACE | {"use_rope_slice": True}))
    forward, trained = counts.flops(9), training_flops(counts, 9)
    assert trained == ByPart(**{part: 3 * flops for part, flops in forward.items().items()})


def test_the_head_counts_the_labels_that_are_learned():
    counts = count(LlamaConfig(**HUGGING_FACE))
    assert training_flops(counts, 9, learned=4).head == 4 * 3 * counts.head.flops
