"""FLOPs against torch's own formulas on models that run here, and the rule that picks latent attention's path.

The counter does not see torch's fused attention on CPU nor its grouped product. The models therefore write attention
out (`eager`) and are float64, which the grouped kernel refuses: each expert is then a product of its own.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from transformers import DynamicCache

from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.deepseek_v2.model import DeepseekV2ForCausalLM
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config
from modelwright.families.deepseek_vl2.model import DeepseekVLV2ForCausalLM
from modelwright.families.deepseek_vl2.processor import DeepseekVLV2Processor
from modelwright.families.deepseek_vl2.siglip import VisionTower
from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.families.imagegpt.model import ImageGPTForCausalImageModeling
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.model import LlamaForCausalLM
from modelwright.ops.latent import prefers_absorbing
from modelwright.planner.counting import count
from modelwright.planner.parts import ByPart
from modelwright.planner.shapes import LatentAttention
from tests.fakes import DENSE, GOLDEN, MHA, MOE, NOAUX, VARIANTS, tokens, vl2_inputs
from tests.planner.models import LLAMA_VARIATIONS, TINY_IMAGEGPT, tiny_vl2_config

PASSES = [(9, 0), (1, 0), (1, 23), (5, 23), (17, 3)]
"""(new tokens, cached tokens): a prefill, a first token, a decode, and two chunks of a longer prompt."""

LANGUAGE = VARIANTS | {
    "absorbs_early": DENSE | {"kv_lora_rank": 4, "qk_nope_head_dim": 12, "v_head_dim": 14},
    "ungated": MOE | {"gated_mlp": False, "n_shared_experts": 2},
    "query_direct": NOAUX | {"q_lora_rank": None},
    "one_key_head": MHA | {"num_key_value_heads": 1, "qkv_concat": True},
    "sliced": MOE | {"pretraining_tp": 2},
}


class Counting(TorchDispatchMode):
    """Adds up torch's formulas for the operations that run. `FlopCounterMode` does so too, and hooks every module: a
    module with a hook is called, so that latent attention would not absorb its projection."""

    def __init__(self):
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        self.flops += 0 if formula is None else formula(*args, **(kwargs or {}), out_val=out)
        return out


def exact(model_class, config):
    """A model whose every product the counter sees."""
    model = model_class(config).eval().double()
    model.set_attn_implementation("eager")
    return model


@torch.no_grad()
def measured(model, new: int, past: int, **arguments) -> int:
    """FLOPs of one pass of `new` tokens of one sequence after `past`."""
    cache = DynamicCache()
    if past:
        model(tokens(1, past, vocab=model.config.vocab_size), past_key_values=cache, use_cache=True)
    with Counting() as counting:
        model(tokens(1, new, vocab=model.config.vocab_size), past_key_values=cache, use_cache=True, **arguments)
    return counting.flops


@pytest.mark.one_in(4)
@pytest.mark.parametrize("fields", LANGUAGE.values(), ids=LANGUAGE)
def test_every_pass_of_deepseek_v2_is_counted_exactly(fields):
    config = DeepseekV2Config(**fields)
    model, counts = exact(DeepseekV2ForCausalLM, config), count(config)
    for new, past in PASSES:
        assert counts.flops(new, past).total == measured(model, new, past)


@pytest.mark.parametrize("fields", [MOE, MHA])
def test_a_prompt_has_the_logits_of_its_last_token_and_decoding_sees_the_context(fields):
    config = DeepseekV2Config(**fields)
    model, counts = exact(DeepseekV2ForCausalLM, config), count(config)
    assert counts.prefill(9).total == measured(model, 9, past=0, logits_to_keep=1)
    assert counts.decode(24).total == measured(model, 1, past=23)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"vision": {"class_token": True}},
        {"vision": {"patch_size": 3, "mlp_ratio": 2.7}, "projector_config": {"downsample_ratio": 1}},
        {"projector_config": {"projector_type": "mlp_gelu", "token_pooling": True}},
        {"tile_tag": "1D", "projector_config": {"token_pooling": True, "depth": 3, "mlp_ratio": 2}},
    ],
)
def test_a_prompt_with_a_picture_is_counted_exactly(fields):
    config = tiny_vl2_config(**fields)
    config.vision_config.deterministic = True  # attention written out in the tower too
    model, vision = exact(DeepseekVLV2ForCausalLM, config), count(config).vision
    size = (16, 8)
    rows = vision.image_tokens(size)
    inputs = vl2_inputs([[vision.grid(size)]], count=lambda _: rows)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs, logits_to_keep=1)
    new = inputs["input_ids"].shape[1]
    assert count(config).prefill(new, tiles=vision.tiles(size)).total == counter.get_total_flops()


@pytest.mark.parametrize(
    "head",
    [
        {"global_pool": "map", "num_classes": 5},
        {"global_pool": "map"},
        {"global_pool": "avg", "num_classes": 3, "class_token": True},
        {"global_pool": "token", "num_classes": 3, "class_token": True},
        {"global_pool": "", "num_classes": 3, "class_token": True},
    ],
)
def test_a_tower_that_pools_is_counted_exactly(head):
    config = tiny_vl2_config(vision=head | {"deterministic": True})
    config.vision_config.ignore_head = False  # of the tower alone: a DeepSeek-VL2 has no such head
    tower = VisionTower(config.vision_config).requires_grad_(False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tower(torch.zeros(1, 3, 8, 8))
    assert count(config).vision.flops.vision == counter.get_total_flops()


LLAMAS = {
    name: fields for name, fields in LLAMA_VARIATIONS.items() if name not in ("low_precision", "width_derived")
} | {"sliced_rope": LLAMA_VARIATIONS["mindformers"] | {"use_rope_slice": True}}


@pytest.mark.one_in(4)
@pytest.mark.parametrize("fields", LLAMAS.values(), ids=LLAMAS)
def test_every_pass_of_llama_is_counted_exactly(fields):
    config = LlamaConfig(**fields)
    model, counts = exact(LlamaForCausalLM, config), count(config)
    for new, past in PASSES:
        assert counts.flops(new, past).total == measured(model, new, past)


@pytest.mark.parametrize(
    "fields", [{}, {"n_inner": 7}, {"reorder_and_upcast_attn": True}, {"tie_word_embeddings": True}]
)
def test_every_pass_of_imagegpt_is_counted_exactly(fields):
    config = ImageGPTConfig(**TINY_IMAGEGPT | {"n_positions": 32} | fields)
    model = exact(ImageGPTForCausalImageModeling, config)
    for new, past in PASSES:
        assert count(config).flops(new, past).total == measured(model, new, past)


def test_a_pass_by_part():
    """One token after 3: `2 * m * n * k` of each product, written out."""
    found = count(DeepseekV2Config(**MHA)).flops(1, past=3)
    q_and_out, kv, products = 2 * 2 * 32 * 32, 2 * 2 * 32 * 16, 2 * 2 * 4 * 4 * 8
    assert found == ByPart(
        attention=2 * (q_and_out + kv + products),
        dense_ffn=2 * 3 * 32 * 48,
        routed_experts=2 * 2 * 3 * 32 * 16,
        shared_experts=2 * 3 * 32 * 16,
        router=2 * 32 * 8,
        head=2 * 32 * 64,
    )


def test_decoding_deepseek_v2_absorbs_and_costs_little_more_at_a_long_context():
    """21 billion activated parameters are 42 GFLOPs a token; a context of 4096 adds the products with its latents."""
    attention = LatentAttention(5120, 128, nope=128, rope=64, v_dim=128, kv_rank=512, q_rank=1536)
    assert attention.absorbs(1, 4096)
    assert not attention.absorbs(4096, 4096)
    grown = attention.flops(1, 4096) - attention.flops(1, 4095)
    assert grown == 2 * 128 * (512 + 64 + 512)


@given(
    tokens=st.integers(1, 200),
    past=st.integers(0, 4000),
    nope=st.integers(1, 128),
    v_dim=st.integers(1, 128),
    rank=st.integers(1, 512),
)
def test_the_rule_for_absorbing_is_the_attentions_own(tokens, past, nope, v_dim, rank):
    attention = LatentAttention(64, 4, nope=nope, rope=2, v_dim=v_dim, kv_rank=rank)
    assert attention.absorbs(tokens, past + tokens) == prefers_absorbing(tokens, past + tokens, nope, v_dim, rank)


@given(tokens=st.integers(1, 40), past=st.integers(0, 400), rank=st.integers(1, 64), width=st.integers(1, 64))
def test_with_a_past_the_path_taken_is_the_cheaper_one(tokens, past, rank, width):
    attention = LatentAttention(64, 4, nope=width, rope=2, v_dim=width, kv_rank=rank)
    keys, every_token = past + tokens, sum(linear.flops for linear in attention.linears[:-1])
    attending = attention.flops(tokens, keys) - tokens * every_token
    widths, kv_b = 2 * 4 * tokens * keys, attention.linears[-1].flops
    expanded, absorbed = keys * kv_b + widths * (2 * width + 2), tokens * kv_b + widths * (2 * rank + 2)
    assert attending == (min(expanded, absorbed) if past else expanded)


PROCESSOR = DeepseekVLV2Processor.from_pretrained(GOLDEN / "processor")
FITTING = DeepseekVLV2Config(
    vision_config={"image_size": PROCESSOR.image_size, "patch_size": PROCESSOR.patch_size},
    candidate_resolutions=PROCESSOR.candidate_resolutions,
)


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_a_picture_takes_the_tokens_that_the_processor_lays_out(width, height):
    vision = count(FITTING).vision
    assert vision is not None
    grid = vision.grid((width, height))
    assert vision.image_tokens((width, height)) == PROCESSOR.num_image_tokens(grid)


def test_a_tile_of_27_patches_a_side_becomes_14_rows_a_side():
    config = DeepseekVLV2Config(
        vision_config={"image_size": 384, "patch_size": 14}, candidate_resolutions=[[384, 384], [768, 384]]
    )
    vision = count(config).vision
    assert vision is not None and vision.side == 14
    assert (vision.tiles((1000, 500)), vision.image_tokens((1000, 500))) == (3, 14 * 15 + 1 + 14 * (2 * 14 + 1))
