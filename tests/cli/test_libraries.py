"""What commands tell the libraries under torch: libgomp says itself what it heard, of oneDNN the memory is seen."""

import os
import re
import subprocess
import sys

import pytest

from modelwright.cli import libraries

TOLD = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
ENV = """
import sys
from modelwright.cli.main import main
assert "torch" not in sys.modules, "what it loads has read its variables already"
sys.argv = ["modelwright", "env"]
main()
"""
PRODUCTS = """
import sys
from modelwright.cli.libraries import tell_libraries
if sys.argv[1] == "told":
    tell_libraries()
import torch
def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 // 2**20
torch.set_num_threads(1)
weight = torch.randn(192, 512, dtype=torch.bfloat16)
before = held()
for rows in range(64, 864):
    torch.randn(rows, 192, dtype=torch.bfloat16) @ weight
print(held() - before)
"""


def ran(*command, **variables):
    known = {name: value for name, value in os.environ.items() if name not in TOLD}
    return subprocess.run(
        [sys.executable, "-c", *command], env=known | variables, capture_output=True, text=True, check=True
    )


def spins(**variables):
    said = ran(ENV, OMP_DISPLAY_ENV="VERBOSE", **variables).stderr
    return {int(found) for found in re.findall(r"GOMP_SPINCOUNT = '(\d+)'", said)}


@pytest.mark.slow
def test_threads_of_every_command_sleep_soon_and_users_say_otherwise():
    assert spins() == {libraries.SPINS}
    assert spins(GOMP_SPINCOUNT="77") == {77}
    assert spins(OMP_WAIT_POLICY="PASSIVE") == {0}


@pytest.mark.slow
def test_products_of_many_lengths_keep_little():
    assert int(ran(PRODUCTS, "told").stdout) < 330  # 570 megabytes by themselves


def test_what_the_user_said_stands(monkeypatch):
    monkeypatch.setattr(os, "environ", {"OMP_WAIT_POLICY": "ACTIVE", "LRU_CACHE_CAPACITY": "7"})
    libraries.tell_libraries()
    assert [os.environ.get(name) for name in TOLD] == ["ACTIVE", None, "7", str(libraries.PRODUCTS)]
