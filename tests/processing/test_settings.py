"""Impossible settings are refused, with the rule and the values."""

import json

import pytest

from modelwright.errors import ConfigError
from modelwright.families.deepseek_vl2.processor import DeepseekVLV2Processor


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"sft_format": "chatml"}, "sft_format 'chatml' is unknown: it must be one of deepseek, plain, alignment"),
        ({"candidate_resolutions": [[384, 384], [384, 500]]}, r"holds \[384, 500\]: .* multiples of the tile \(384\)"),
        ({"candidate_resolutions": []}, "the tile of 0 pixels"),
        ({"patch_size": 400}, r"the tile of 384 pixels .* patch_size \(400\)"),
        ({"image_mean": [0.5]}, r"image_mean \(\[0.5\]\) must have 3 values"),
        ({"image_std": [0.5, 0, 0.5]}, "must not hold 0"),
        ({"tile_tag": "3D"}, r"tile_tag \('3D'\) must be one of 2D, 1D"),
        ({"global_view_pos": "middle"}, r"global_view_pos \('middle'\) must be one of head, tail"),
        ({"patchsize": 14}, "no setting 'patchsize': did you mean patch_size"),
    ],
)
def test_settings(processor, setting, message):
    with pytest.raises(ConfigError, match=message):
        DeepseekVLV2Processor(processor.tokenizer, **setting)


def test_the_keys_of_hub_files_are_accepted(golden, processor):
    settings = json.loads((golden / "processor_config.json").read_text("utf-8"))
    built = DeepseekVLV2Processor(processor.tokenizer, **settings, processor_class="DeepseekVLV2Processor")
    assert built.candidate_resolutions == settings["candidate_resolutions"]
