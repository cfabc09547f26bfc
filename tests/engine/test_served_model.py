"""What the engine sees of a model, and which it does not serve."""

import pytest
import torch

from modelwright.engine.served_model import ServedModel
from modelwright.errors import ConfigError
from modelwright.families.deepseek_v2.model import DeepseekV2Model
from tests.fakes import tiny_v2, tiny_vl2
from tests.imagegpts import tiny_imagegpt
from tests.llamas import HUGGING_FACE, MINDFORMERS, ROPES, tiny_llama


def test_a_model_that_sees_is_served_by_its_decoder():
    model = tiny_vl2()
    served = ServedModel.of(model)
    assert served.sees and served.decoder is model.language and served.config is model.config.language_config
    assert (served.context, served.reads, served.draws, served.ends) == (128, 64, 64, (1,))
    assert not ServedModel.of(tiny_v2()).sees


def test_the_last_pixel_needs_no_position_and_the_start_token_is_never_drawn():
    served = ServedModel.of(tiny_imagegpt())
    assert (served.context, served.reads, served.draws, served.ends) == (25, 17, 16, ())


def test_keys_have_the_type_that_projections_compute_in():
    stored = {"param_init_type": "bfloat16", "embedding_init_type": "float16", "layernorm_compute_type": "float32"}
    assert ServedModel.of(tiny_llama(**stored)).dtype == torch.float32
    assert ServedModel.of(tiny_llama(compute_dtype="bfloat16")).dtype == torch.bfloat16
    assert ServedModel.of(tiny_llama().half()).dtype == torch.float16
    assert ServedModel.of(tiny_v2().bfloat16()).dtype == torch.bfloat16


def test_dynamic_rotations_reach_beyond_the_trained_length():
    dynamic = tiny_llama(base=HUGGING_FACE, rope_scaling=ROPES["dynamic"])
    assert (ServedModel.of(dynamic).context, ServedModel.of(dynamic).trained_length) == (128, 64)
    stepped = tiny_llama(extend_method="DYNAMIC_NTK", is_dynamic=True, max_position_embedding=16)
    assert (ServedModel.of(stepped).context, ServedModel.of(stepped).trained_length) == (64, 16)
    assert ServedModel.of(tiny_llama(base=HUGGING_FACE, rope_scaling=ROPES["yarn"])).trained_length is None


def test_padding_is_a_token_where_it_ends_sentences_or_is_attended_to():
    assert ServedModel.of(tiny_llama()).padding == 0
    assert ServedModel.of(tiny_llama(pad_token_id=2)).padding is None
    assert ServedModel.of(tiny_llama(use_attn_mask_compression=True)).padding is None
    assert ServedModel.of(tiny_llama(base=HUGGING_FACE)).padding is None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: tiny_v2(DeepseekV2Model), "the engine serves DeepseekV2ForCausalLM, .*; got DeepseekV2Model"),
        (
            lambda: torch.nn.Sequential(tiny_vl2()),  # as peft's PeftModel and torch.compile wrap it
            "got Sequential around a DeepseekVLV2ForCausalLM: give that",
        ),
        (lambda: torch.nn.Linear(2, 2), "got Linear$"),
        (lambda: tiny_v2().train(), r"the engine needs a model in evaluation mode: call model.eval\(\) first"),
        (
            lambda: tiny_llama(use_eod_attn_mask_compression=True),
            "use_eod_attn_mask_compression must be False for the engine: its prompts are not packed",
        ),
        (
            lambda: tiny_llama(softmax_compute_type="float16"),
            'softmax_compute_type must be "float32" for the engine, .*; got "float16" and use_flash_attention=False',
        ),
    ],
)
def test_what_is_not_served_is_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        ServedModel.of(build())


def test_a_model_over_several_devices_is_refused():
    model = tiny_v2()
    model.lm_head.to("meta")
    with pytest.raises(ConfigError, match="the engine needs all weights on one device, got cpu, meta"):
        ServedModel.of(model)


def test_flash_attention_leaves_the_softmax_to_the_kernel():
    fields = {"use_flash_attention": True, "softmax_compute_type": "float16"}
    assert ServedModel.of(tiny_llama(base=MINDFORMERS, **fields)).context == 64
