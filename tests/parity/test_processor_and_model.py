"""The processor's token counts are the model's, from real pictures to tokens, in either layout and order."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from modelwright.families.deepseek_vl2.processor import DeepseekVLV2Processor
from tests.fakes import tiny_vl2

PROCESSOR = Path(__file__).parents[1] / "golden" / "processor"
SIZES = [(90, 60), (40, 200), (64, 64)]


@pytest.mark.parametrize("global_view_pos", ["head", "tail"])
@pytest.mark.parametrize("tile_tag", ["2D", "1D"])
def test_a_batch_of_conversations_runs_through(tile_tag, global_view_pos):
    processor = DeepseekVLV2Processor.from_pretrained(PROCESSOR, tile_tag=tile_tag, global_view_pos=global_view_pos)
    model = tiny_vl2(
        language={"vocab_size": len(processor.tokenizer)},
        vision={"image_size": processor.image_size, "patch_size": processor.patch_size},
        tile_tag=tile_tag,
        global_view_pos=global_view_pos,
        candidate_resolutions=processor.candidate_resolutions,
    )
    pictures = [Image.new("RGB", size, (40 * i, 90, 200)) for i, size in enumerate(SIZES)]
    rows = [pictures[:1], pictures[:2], [], pictures]  # three pictures are not cut into tiles
    conversations = [
        [{"role": "<|User|>", "content": "<image>\n" * len(row) + "Hi"}, {"role": "<|Assistant|>", "content": ""}]
        for row in rows
    ]
    inputs = processor(conversations=conversations, images=rows)
    prompt = {name: inputs[name] for name in inputs if name not in ("labels",)}
    found = model.generate(**prompt, max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=None)
    for i, (conversation, row) in enumerate(zip(conversations, rows, strict=True)):
        alone = processor(conversations=[conversation], images=[row])
        alone = {name: alone[name] for name in prompt}
        single = model.generate(**alone, max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=None)
        assert torch.equal(found[i, -3:], single[0, -3:])
