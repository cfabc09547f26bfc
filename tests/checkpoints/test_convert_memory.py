"""Converting needs the memory of one new shard, whatever the size of the checkpoint: measured in its own process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.mindformers.names import mindformers_tensors, packing_of
from tests.fakes import write_mindformers
from tests.llamas import MINDFORMERS

SIZES = {"hidden_size": 512, "intermediate_size": 2048, "num_layers": 10, "qkv_concat": True}
SHARD = 20_000_000
PROBE = """
import json, sys
from modelwright.checkpoints.convert import convert
def peak(): return int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]) * 1024
tiny, large, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
for to in ("hf", "mindformers"):
    convert(tiny, f"{tiny}-{to}", to=to)  # everything that is imported late, imported
    open('/proc/self/clear_refs', 'w').write('5')  # the peak starts over
    before = peak()
    report = convert(large, f"{large}-{to}", to=to, qkv_concat=False, max_shard_size=limit)
    print(json.dumps({"grown": peak() - before, "bytes": report.bytes, "shards": report.shards}))
"""


def write(folder: Path, **fields) -> Path:
    """Weights that take no time to make, and whose pages are really there."""
    values = MINDFORMERS | fields
    config = LlamaConfig(**values)
    tensors = mindformers_tensors(config, packing_of(config))
    return write_mindformers(folder, values, {t.name: torch.full(t.shape, 0.5) for t in tensors}, shards=2)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux' peak memory")
def test_converting_needs_one_shard(tmp_path):
    command = [sys.executable, "-c", PROBE, str(write(tmp_path / "tiny")), str(write(tmp_path / "large", **SIZES))]
    lines = subprocess.run([*command, str(SHARD)], capture_output=True, check=True, text=True).stdout.splitlines()
    assert len(lines) == 2
    for result in map(json.loads, lines):
        assert result["bytes"] > 150e6 and result["shards"] > 8
        assert result["grown"] < 1.5 * SHARD + 16e6
