"""Loading needs memory for the weights and one tensor, whatever their types; a model lets go of it again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.deepseek_v2.model import DeepseekV2ForCausalLM
from tests.fakes import MOE

SIZES = {
    "hidden_size": 512,
    "intermediate_size": 512,
    "moe_intermediate_size": 1024,
    "num_hidden_layers": 4,
    "n_routed_experts": 8,
    "vocab_size": 4096,
    "max_position_embeddings": 64,
}
LARGEST = SIZES["vocab_size"] * SIZES["hidden_size"] * 4
"""Bytes of the largest tensor in a file of fp32."""
ROOM = 12 << 20
"""What else comes and goes: modules and names, memory that is freed and not given back."""
PROBE = """
import gc, json, sys
from modelwright.families.deepseek_v2.model import DeepseekV2ForCausalLM
from modelwright.ops import host_memory
def kept(word): return int(next(l for l in open('/proc/self/status') if l.startswith(word)).split()[1]) * 1024
tiny, large, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
DeepseekV2ForCausalLM.from_pretrained(tiny, **settings)  # everything that is imported late, imported
gc.collect()
open('/proc/self/clear_refs', 'w').write('5')  # the peak starts over
before = kept('VmHWM')
model = DeepseekV2ForCausalLM.from_pretrained(large, **settings)
grown, weights = kept('VmHWM') - before, [t for t in model.state_dict().values()]
mapped = sum(t.nbytes for t in weights if not t.untyped_storage().resizable())
nbytes = sum(t.nbytes for t in weights)
del model, weights
gc.collect()
print(json.dumps({"grown": grown, "weights": nbytes, "mapped": mapped, "left": kept('VmRSS') - before,
                  "on_request": host_memory.ON_REQUEST}))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    with torch.device("meta"):
        shapes = DeepseekV2ForCausalLM(DeepseekV2Config(**MOE | SIZES))
    model = shapes.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)  # pages that are really there
    model.save_pretrained(folder / "large", max_shard_size="150MB")
    DeepseekV2ForCausalLM(DeepseekV2Config(**MOE)).save_pretrained(folder / "tiny")
    assert len(list((folder / "large").glob("*.safetensors"))) == 2
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux' peak memory")
@pytest.mark.parametrize(
    ("settings", "least", "work"),
    [
        pytest.param({}, 190e6, 0, marks=pytest.mark.slow),
        pytest.param({"dtype": "bfloat16"}, 95e6, 0, marks=pytest.mark.slow),
        ({"quantization_config": {"quant_method": "int8_weight_only"}}, 60e6, 2 * LARGEST),  # and parts of a stack
    ],
    ids=["as stored", "narrowed", "rounded"],
)
def test_loading_needs_the_weights_and_one_tensor(settings, least, work, folders):
    command = [sys.executable, "-c", PROBE, str(folders / "tiny"), str(folders / "large"), json.dumps(settings)]
    result = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert result["weights"] > least
    assert result["grown"] < result["weights"] + LARGEST + work + ROOM
    assert result["left"] < LARGEST + work + ROOM  # memory of the work may stay with the process
    if result["on_request"]:
        assert result["mapped"] > 0.8 * result["weights"]  # adopted, not copied
