"""Impossible settings are refused, with the rule and the values."""

import json
import shutil

import pytest

from modelwright.errors import ConfigError
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config
from modelwright.families.deepseek_vl2.processor import DeepseekVLV2Processor
from modelwright.families.deepseek_vl2.prompts import read_prompts


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


def test_what_another_program_wrote_into_a_file_is_kept_and_listed(golden, tmp_path):
    """As is what resembles a setting; a name that a person types is refused."""
    folder = shutil.copytree(golden, tmp_path / "model")
    path = folder / "processor_config.json"
    others = {"patchsize": 16, "image_seq_length": 576, "crop_size": None}
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | others), "utf-8")
    read = DeepseekVLV2Processor.from_pretrained(folder)
    assert read.patch_size == 14
    none = "no setting of this processor"
    assert read.fields_without_effect() == {
        "patchsize": f'{none}; did you mean "patch_size"?',
        "image_seq_length": none,
    }
    read.save_pretrained(tmp_path / "saved")
    assert others.items() <= json.loads((tmp_path / "saved" / "processor_config.json").read_text("utf-8")).items()
    assert read_prompts(folder, DeepseekVLV2Config(tile_tag="1D")).settings.tile_tag == "1D"
    with pytest.raises(ConfigError, match=r"no setting 'patchsiz': did you mean patch_size"):
        DeepseekVLV2Processor.from_pretrained(folder, patchsiz=14)
