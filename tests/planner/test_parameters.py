"""Parameters by part against models built on the meta device, and against the sizes that the papers state."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright.configs import CheckedConfig
from modelwright.errors import ConfigError
from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config
from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.families.llama.config import LlamaConfig
from modelwright.planner.counting import count
from modelwright.planner.parts import ByPart
from tests.fakes import MHA, MOE
from tests.planner.models import IMAGEGPT_SIZES, LLAMA_SIZES, build, configs, parameters_by_part, read_hub

CASES = list(configs())


@pytest.mark.one_in(4)
@pytest.mark.parametrize("make", [make for _, make in CASES], ids=[name for name, _ in CASES])
def test_every_part_is_what_the_built_model_holds(make):
    config, model = make(), build(make())
    counted = count(config).parameters
    assert counted == parameters_by_part(model)
    assert counted.total == sum(parameter.numel() for parameter in model.parameters())


def test_there_are_at_least_forty_configs_and_every_family_is_among_them():
    assert len(CASES) >= 40
    assert {name.split("/")[0] for name, _ in CASES} >= {"v2", "vl2", "llama", "imagegpt", "golden", "hub"}


@settings(max_examples=20, deadline=None)
@given(
    latent=st.booleans(),
    heads=st.sampled_from([1, 2, 4]),
    q_rank=st.sampled_from([None, 3, 8]),
    widths=st.tuples(*[st.integers(1, 9)] * 3),
    experts=st.sampled_from([None, 1, 6]),
    shared=st.sampled_from([None, 1, 2]),
    dense=st.integers(0, 3),
    switches=st.tuples(*[st.booleans()] * 3),
)
def test_any_deepseek_v2_is_counted_as_built(latent, heads, q_rank, widths, experts, shared, dense, switches):
    nope, v_dim, width = widths
    tied, bias, gated = switches
    config = DeepseekV2Config(
        **(MOE if latent else MHA)
        | {"num_attention_heads": heads, "num_key_value_heads": 1, "q_lora_rank": q_rank if latent else None}
        | {"qk_nope_head_dim": nope, "v_head_dim": v_dim, "moe_intermediate_size": width, "num_hidden_layers": 3}
        | {"n_routed_experts": experts, "num_experts_per_tok": 1, "n_shared_experts": shared}
        | {"first_k_dense_replace": dense, "tie_word_embeddings": tied, "attention_bias": bias, "gated_mlp": gated}
    )
    assert count(config).parameters == parameters_by_part(build(config))


@pytest.mark.parametrize(
    ("name", "total", "activated"),
    [("deepseek-v2", 236e9, 21e9), ("deepseek-v2-lite", 15.7e9, 2.4e9), ("deepseek-coder-v2-instruct", 236e9, 21e9)],
)
def test_published_sizes_of_deepseek_v2(name, total, activated):
    """Activated: one row of the embedding, all of the head (arXiv:2405.04434, which rounds 2.45 down to 2.4)."""
    counts = count(DeepseekV2Config(**read_hub(name)))
    assert counts.parameters.total == pytest.approx(total, rel=0.002)
    assert counts.activated.total == pytest.approx(activated, rel=0.025)


@pytest.mark.parametrize(
    ("name", "language", "activated"),
    [("deepseek-vl2-tiny", 0.57, 1.0), ("deepseek-vl2-small", 2.4, 2.8), ("deepseek-vl2", 4.1, 4.5)],
)
def test_published_activated_sizes_of_deepseek_vl2(name, language, activated):
    """The paper adds the vision part (0.41 billion and the projector) to the activated part of the language model.

    arXiv:2412.10302, table 2, gives the language part 0.57, 2.4 and 4.1 billion, cut after their last digit.
    """
    counts = count(DeepseekVLV2Config(**read_hub(name)))
    found = counts.activated
    decoder = (found.total - found.vision - found.projector) / 1e9
    assert 0 <= decoder - language < 0.06
    assert found.total / 1e9 == pytest.approx(activated, abs=0.08)
    assert found.vision == 412_987_248  # SigLIP-SO400M without its pooling head


@pytest.mark.parametrize(
    ("name", "total", "activated"),
    [
        ("llama-2-7b", 6_738_415_616, 6_607_343_616 + 4096),
        ("llama-2-70b", 68_976_648_192, 68_714_504_192 + 8192),
        ("llama-3.1-8b", 8_030_261_248, 7_504_924_672 + 4096),
        ("llama-3.2-1b", 1_235_814_400, 1_235_814_400 + 2048),
        ("mixtral-8x7b", 46_702_792_704, 12_748_853_248 + 4096),
    ],
)
def test_published_sizes_of_llama(name, total, activated):
    """The totals on the models' pages; activated, all but the embedding, of which a token reads one row."""
    counts = count(LlamaConfig(**LLAMA_SIZES[name]))
    assert (counts.parameters.total, counts.activated.total) == (total, activated)


@pytest.mark.parametrize(("size", "millions"), [("small", 76), ("medium", 455), ("large", 1362)])
def test_published_sizes_of_imagegpt(size, millions):
    """Chen et al., ICML 2020, section 3.3: 76M, 455M and 1.4B (1362M)."""
    assert count(ImageGPTConfig(**IMAGEGPT_SIZES[size])).parameters.total // 10**6 == millions


def test_activated_counts_chosen_experts_one_row_and_a_tied_head():
    counts = count(DeepseekV2Config(**MOE | {"tie_word_embeddings": True}))
    whole, met = counts.parameters, counts.activated
    assert (whole.embedding, met.embedding) == (64 * 32, 32)
    assert (whole.head, met.head) == (0, 64 * 32)
    assert whole.routed_experts == 4 * met.routed_experts == 8 * 3 * 32 * 16
    same = ("attention", "dense_ffn", "shared_experts", "router", "norms")
    assert all(getattr(whole, part) == getattr(met, part) for part in same)


def test_learned_positions_are_a_second_row_that_a_token_reads():
    counts = count(ImageGPTConfig(vocab_size=17, n_positions=12, n_embd=24, n_layer=1, n_head=3))
    assert counts.embedding == counts.parameters.embedding == (17 + 12) * 24
    assert counts.activated.embedding == 2 * 24


@pytest.mark.parametrize("tensor", [1, 2, 4])
@pytest.mark.parametrize("expert", [1, 2, 8])
def test_ranks_together_hold_the_model_and_what_is_not_cut_on_each(tensor, expert):
    layer = count(DeepseekV2Config(**MOE | {"attention_bias": True})).layers[1]
    held, whole = layer.held(tensor, expert), layer.parameters
    assert held.routed_experts * tensor * expert == whole.routed_experts
    assert held.shared_experts * tensor == whole.shared_experts
    assert (held.router, held.norms) == (whole.router, whole.norms)
    latents = 32 * 16 + 16 + 32 * (16 + 8) + (16 + 8)  # projections into the latents, with their biases
    out_bias = 32
    assert (held.attention - latents - out_bias) * tensor == whole.attention - latents - out_bias


@pytest.mark.parametrize(("tensor", "numbers"), [(1, 32), (2, 16), (4, 16)])
def test_key_heads_are_divided_down_to_one_a_rank(tensor, numbers):
    attention = count(DeepseekV2Config(**MHA)).layers[0].attention
    assert attention.held_kv_numbers(tensor) == numbers


def test_the_latent_is_not_divided():
    assert count(DeepseekV2Config(**MOE)).layers[0].attention.held_kv_numbers(4) == 16 + 8


def test_cached_numbers_beside_multi_head_attention():
    """DeepSeek-V2 caches 512 + 64 numbers a layer where 128 heads of 192 and 128 would take 40960."""
    counts = count(DeepseekV2Config(**read_hub("deepseek-v2")))
    assert counts.kv_numbers == 60 * (512 + 64)
    assert counts.mha_kv_numbers == 60 * 128 * (192 + 128)


@pytest.mark.parametrize("fields", [MOE, MHA])
def test_cached_numbers_are_the_configs_own(fields):
    config = DeepseekV2Config(**fields)
    assert count(config).kv_numbers == config.num_hidden_layers * config.kv_numbers_per_token


def test_counts_add_part_by_part():
    first, second = ByPart(attention=1, head=2), ByPart(attention=10, vision=5)
    assert first + second == ByPart(attention=11, head=2, vision=5)
    assert (first + second).total == 18


def test_a_config_of_no_family_is_refused():
    class OtherConfig(CheckedConfig):
        model_type = "other"

    with pytest.raises(ConfigError, match='to be counted; got "other"'):
        count(OtherConfig())
