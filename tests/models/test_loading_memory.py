"""Loading needs the weights and one shard of memory at most: measured in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modelwright.configs import DeepseekV2Config
from modelwright.models import DeepseekV2ForCausalLM
from tests.fakes import MOE

SIZES = {
    "hidden_size": 512,
    "intermediate_size": 512,
    "moe_intermediate_size": 1024,
    "num_hidden_layers": 4,
    "n_routed_experts": 8,
    "vocab_size": 256,
    "max_position_embeddings": 64,
}
PROBE = """
import json, sys
from modelwright.models import DeepseekV2ForCausalLM
def peak(): return int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]) * 1024
DeepseekV2ForCausalLM.from_pretrained(sys.argv[1])  # everything that is imported late, imported
open('/proc/self/clear_refs', 'w').write('5')  # the peak starts over
before = peak()
model = DeepseekV2ForCausalLM.from_pretrained(sys.argv[2])
print(json.dumps({"grown": peak() - before, "weights": sum(p.nbytes for p in model.parameters())}))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux' peak memory")
def test_loading_needs_the_weights_and_one_shard(tmp_path):
    with torch.device("meta"):
        shapes = DeepseekV2ForCausalLM(DeepseekV2Config(**MOE | SIZES))
    model = shapes.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)  # pages that are really there
    model.save_pretrained(tmp_path / "large", max_shard_size="60MB")
    tiny = DeepseekV2ForCausalLM(DeepseekV2Config(**MOE))
    tiny.save_pretrained(tmp_path / "tiny")
    shards = [path.stat().st_size for path in (tmp_path / "large").glob("*.safetensors")]
    del model
    command = [sys.executable, "-c", PROBE, str(tmp_path / "tiny"), str(tmp_path / "large")]
    result = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert len(shards) >= 3
    assert result["weights"] > 150e6
    assert result["grown"] < result["weights"] + max(shards) + 16e6
