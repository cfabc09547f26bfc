"""DeepseekVLV2Config and its two own parts: defaults that fit, every rule's message, hub files, Auto classes."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from modelwright.errors import ConfigError
from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config, MlpProjectorConfig, VisionEncoderConfig

HUB = Path(__file__).parents[2] / "data" / "hub_configs"
HUB_VL2 = ["deepseek-vl2-tiny", "deepseek-vl2-small", "deepseek-vl2"]
VISION = {"image_size": 28, "patch_size": 7, "width": 24, "layers": 2, "heads": 3, "mlp_ratio": 2.5}


def make(**values) -> DeepseekVLV2Config:
    return DeepseekVLV2Config(**values)


def widths(config: DeepseekVLV2Config) -> tuple[int, int, int, int]:
    projector = config.projector_config
    return config.vision_config.width, projector.input_dim, projector.n_embed, config.language_config.hidden_size


def test_the_parts_defaults():
    vision, projector = VisionEncoderConfig(), MlpProjectorConfig()
    assert (vision.image_size, vision.patch_size, vision.width, vision.layers, vision.heads) == (384, 16, 1024, 24, 16)
    assert (vision.mlp_ratio, vision.global_pool, vision.ignore_head, vision.class_token) == (4, "map", True, False)
    assert (projector.projector_type, projector.input_dim, projector.n_embed) == ("downsample_mlp_gelu", 1152, 2048)
    assert (projector.depth, projector.mlp_ratio, projector.downsample_ratio) == (2, 1, 2)
    assert (projector.token_pooling, projector.use_bias) == (False, True)


def test_the_default_fits_itself():
    config = make()
    assert widths(config) == (1024, 1024, 4096, 4096)
    assert (config.tile_tag, config.global_view_pos, config.vision_batch_size) == ("2D", "head", 32)
    assert (config.candidate_resolutions, config.tile_size) == (((384, 384),), 384)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"vision_config": VISION}, (24, 24, 4096, 4096)),
        ({"language_config": {"hidden_size": 64}}, (1024, 1024, 64, 64)),
        ({"projector_config": {"n_embed": 64, "input_dim": 32}}, (32, 32, 64, 64)),
        ({"projector_config": MlpProjectorConfig(n_embed=64, input_dim=32)}, (32, 32, 64, 64)),
        ({"projector_config": {"depth": 3}, "vision_config": VISION}, (24, 24, 4096, 4096)),
        ({"vision_config": VisionEncoderConfig(width=32), "language_config": None}, (32, 32, 4096, 4096)),
    ],
)
def test_what_is_left_out_is_derived_to_fit(values, expected):
    assert widths(make(**values)) == expected


def test_left_out_resolutions_are_one_tile_of_the_vision_tower():
    assert make(vision_config=VISION).candidate_resolutions == ((28, 28),)


def test_parts_may_be_objects_and_are_copied():
    language = DeepseekV2Config(hidden_size=64)
    config = make(language_config=language)
    assert config.language_config == language
    config.language_config.num_hidden_layers = 1
    assert language.num_hidden_layers == 30
    assert config.get_text_config() is config.get_text_config(decoder=True) is config.language_config


def test_transformers_own_language_config_is_accepted():
    from transformers import DeepseekV2Config as Theirs

    theirs = Theirs(hidden_size=64, n_routed_experts=8, num_experts_per_tok=2, rope_theta=77.0)
    language = make(language_config=theirs).language_config
    assert type(language) is DeepseekV2Config
    assert (language.hidden_size, language.rope_theta) == (64, 77.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 8, "patch_size": 16}, r"image_size \(8\) must be at least patch_size \(16\)"),
        ({"width": 100}, r"width \(100\) must be divisible by heads \(16\)"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"num_classes": -1}, "num_classes must be at least 0, got -1"),
        ({"mlp_ratio": 0}, r"width \(1024\) x mlp_ratio \(0.0\) must be at least 1, got 0"),
        ({"global_pool": "max"}, 'global_pool must be one of "map", "avg", "token", ""; got "max"'),
        ({"weight_init": "xavier"}, 'weight_init must be one of "skip", "jax", "jax_nlhb", "moco", ""; got "xavier"'),
        ({"global_pool": "token"}, 'global_pool "token" needs class_token=True, got class_token=False'),
        ({"num_recomputing_layers": 25}, r"num_recomputing_layers \(25\) must not exceed layers \(24\)"),
        ({"head": 16}, 'unknown key "head"; did you mean "heads"'),
    ],
)
def test_vision_rules(values, message):
    with pytest.raises(ConfigError, match=message):
        VisionEncoderConfig(**values)
    with pytest.raises(ConfigError, match=f"^vision_config: .*{message}"):
        make(vision_config=values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"projector_type": "mlp"},
            'must be one of "identity", "linear", "mlp_gelu", "downsample_mlp_gelu"; got "mlp"',
        ),
        ({"depth": 1}, '"downsample_mlp_gelu" needs depth of at least 2, got 1'),
        ({"downsample_ratio": 0}, "downsample_ratio must be at least 1, got 0"),
        ({"mlp_ratio": 0.5}, r"mlp_ratio must be int, got 0.5 \(float\)"),
        ({"use_bias": None}, r"use_bias must be bool, got None \(NoneType\)"),
    ],
)
def test_projector_rules(values, message):
    with pytest.raises(ConfigError, match=message):
        MlpProjectorConfig(**values)


def test_projectors_that_pass():
    assert MlpProjectorConfig(projector_type="identity", input_dim=24, n_embed=32).n_embed == 32  # alone it passes
    assert MlpProjectorConfig(projector_type="mlp_gelu", depth=1).depth == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"vision_config": VISION, "projector_config": {"input_dim": 25}},
            r"projector_config.input_dim \(25\) must equal vision_config.width \(24\)",
        ),
        (
            {"language_config": {"hidden_size": 64}, "projector_config": {"n_embed": 32}},
            r"projector_config.n_embed \(32\) must equal language_config.hidden_size \(64\)",
        ),
        (
            {"vision_config": VISION, "projector_config": {"projector_type": "identity"}},
            r'"identity" needs input_dim \(24\) equal to n_embed \(4096\)',
        ),
        ({"tile_tag": "tile_tag"}, 'tile_tag must be one of "2D", "1D"; got "tile_tag"'),
        ({"global_view_pos": "middle"}, 'global_view_pos must be one of "head", "tail"; got "middle"'),
        ({"vision_batch_size": 0}, "vision_batch_size must be at least 1, got 0"),
        ({"candidate_resolutions": []}, r"must hold at least one \(width, height\), got none"),
        (
            {"candidate_resolutions": [[384, 384], [384, 500]]},
            r"\(384, 500\): each side must be a positive multiple of the tile side \(384\)",
        ),
        (
            {"candidate_resolutions": [[0, 0]]},
            r"\(0, 0\): each side must be a positive multiple of the tile side \(0\)",
        ),
        ({"candidate_resolutions": [384, 384]}, r"candidate_resolutions must be tuple\[tuple\[int, int\], ...\], got"),
        ({"candidate_resolutions": None}, "candidate_resolutions must be tuple"),
        ({"language_config": 3}, "language_config must be a dict or a DeepseekV2Config, got 3"),
        (
            {"language_config": {"model_type": "llama"}},
            'language_config: model_type must be "deepseek_v2" here, got "lla',
        ),
        (
            {"architectures": ["DeepseekOCRForCausalLM"], "vision_config": {"width": {"clip-l-14": 1}}},
            r'"deepseek_vl_v2" is read here for architectures \["DeepseekVLV2ForCausalLM"\], '
            r"got \['DeepseekOCRForCausalLM'\]",
        ),
    ],
)
def test_a_broken_rule_is_named_with_both_values(values, message):
    with pytest.raises(ConfigError, match=message):
        make(**values)


def test_a_part_changed_later_is_checked_again():
    config = make()
    config.language_config.hidden_size = 64
    with pytest.raises(ConfigError, match=r"n_embed \(4096\) must equal language_config.hidden_size \(64\)"):
        config.check()
    config.language_config.vocab_size = 0
    with pytest.raises(ConfigError, match="language_config: vocab_size must be at least 1, got 0"):
        config.check()


@pytest.mark.parametrize("name", HUB_VL2)
def test_hub_files_load_unchanged(name, tmp_path):
    raw = json.loads((HUB / name / "config.json").read_text())
    config = DeepseekVLV2Config.from_pretrained(HUB / name)
    for part in ("vision_config", "projector_config", "language_config"):
        stated = {key: value for key, value in raw[part].items() if key not in ("torch_dtype", "model_type")}
        assert {key: getattr(getattr(config, part), key) for key in stated} == stated
    assert [list(pair) for pair in config.candidate_resolutions] == raw["candidate_resolutions"]
    vision = config.vision_config
    assert (vision.grid, vision.heads, vision.head_dim, vision.mlp_width, vision.image_size) == (27, 16, 72, 4304, 384)
    assert config.projector_config.input_dim == 1152
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["candidate_resolutions"] == raw["candidate_resolutions"]
    assert saved["language_config"]["rm_head"] is False
    assert DeepseekVLV2Config.from_pretrained(tmp_path) == config


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("deepseek-vl2-tiny", (129280, 1280, 10, 12, 64, False, "greedy", "softmax", 2560)),
        ("deepseek-vl2-small", (102400, 2048, 16, 27, 64, True, "greedy", "softmax", 576)),
        ("deepseek-vl2", (129280, 2560, 32, 30, 72, True, "noaux_tc", "sigmoid", 576)),
    ],
)
def test_the_three_hub_models_have_three_decoders(name, language):
    config = DeepseekVLV2Config.from_pretrained(HUB / name).language_config
    assert language == (
        config.vocab_size,
        config.hidden_size,
        config.num_attention_heads,
        config.num_hidden_layers,
        config.n_routed_experts,
        config.use_mla,
        config.topk_method,
        config.scoring_func,
        config.kv_numbers_per_token,
    )
    assert config.rope.scaling is None


def test_a_part_is_read_from_the_whole_models_file():
    assert DeepseekV2Config.from_pretrained(HUB / "deepseek-vl2-tiny").hidden_size == 1280
    assert VisionEncoderConfig.from_pretrained(HUB / "deepseek-vl2-tiny").width == 1152


def test_an_attention_choice_reaches_the_parts():
    config = make(attn_implementation="sdpa")
    assert config.language_config._attn_implementation == config.vision_config._attn_implementation == "sdpa"


def test_auto_config_reads_it_once_registered(tmp_path):
    AutoConfig.register("deepseek_vl_v2", DeepseekVLV2Config, exist_ok=True)
    make(vision_config=VISION).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path, vision_batch_size=4)
    assert type(config) is DeepseekVLV2Config
    assert (config.vision_batch_size, config.vision_config.width) == (4, 24)
    with pytest.raises(ConfigError, match='did you mean "tile_tag"'):
        AutoConfig.from_pretrained(tmp_path, tile_tags="1D")
