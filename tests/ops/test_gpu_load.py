"""Whether there are GPU kernels, and why not; and that they compile for GPUs that are not here."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from modelwright.ops.backends.triton import load
from tests.ops.gpu import needs_triton


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    load.reason.cache_clear()
    yield
    load.reason.cache_clear()


def test_without_triton_there_are_none(monkeypatch):
    monkeypatch.setattr(load, "find_spec", lambda name: None)
    assert load.reason() == "triton is not installed"
    assert not load.available()


def test_the_switch_of_the_cpu_kernels_is_theirs_too(monkeypatch):
    monkeypatch.setenv("MODELWRIGHT_KERNELS", "0")
    assert load.reason() == "MODELWRIGHT_KERNELS=0"


def test_launchers_need_a_compiler_unless_interpreted(monkeypatch):
    monkeypatch.setattr(load, "find_spec", lambda name: object())
    monkeypatch.setattr(load.shutil, "which", lambda name: None)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert load.reason() == "Triton needs a C compiler (CC, gcc or clang) on the PATH"
    load.reason.cache_clear()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert load.available()


@pytest.mark.slow
def test_triton_is_not_imported_before_a_tensor_asks():
    code = "import sys, modelwright.ops.paged, modelwright.ops.experts; print('triton' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"


COMPILE = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from modelwright.ops.backends.triton.load import programs

cases, capability = json.loads(sys.argv[1])
target, shared = GPUTarget("cuda", capability, 32), {}
for case, (module, name, pointers, constants) in cases.items():
    program = getattr(programs(module), name)
    known = {arg: f"*{kind}" for arg, kind in pointers.items()} | dict.fromkeys(constants, "constexpr")
    kinds = {arg: ({"scale": "fp32"} | known).get(arg, "i32") for arg in program.arg_names}
    source = ASTSource(program, kinds, constants)
    shared[case] = triton.compile(source, target=target, options={"num_stages": 2}).metadata.shared
print(json.dumps(shared))
"""
LATENT = {
    **{"PAGE": 16, "K_WIDTH": 64, "K_BLOCK": 64, "V_WIDTH": 512, "V_BLOCK": 512},
    **{"ROWS": 16, "HEADS": 16, "KEYS": 32, "SPLIT": True, "starts": None, "tile_sequences": None, "tile_tokens": None},
}
GROUPED = {
    **{"PAGE": 16, "K_WIDTH": 192, "K_BLOCK": 256, "V_WIDTH": 128, "V_BLOCK": 128, "ROWS": 64, "HEADS": 1, "KEYS": 32},
    **{"SPLIT": False, "q_inner": None, "sums": None, "key_scales": None, "value_scales": None, "group": 1},
}
ROWS = {"contexts": "i32", "tables": "i32", "starts": "i32", "tile_sequences": "i32", "tile_tokens": "i32"}
INT8 = {"keys": "i8", "values": "i8", "key_scales": "fp32", "value_scales": "fp32"}
BF16 = {name: "bf16" for name in ("q", "q_inner", "keys", "values", "out", "x", "w_in", "w_out", "hidden", "said")}
TILES = {"order": "i64", "tile_experts": "i64", "tile_rows": "i64", "ends": "i64"}
BLOCKS = {"ROWS": 64, "COLUMNS": 64, "DEPTH": 64}
PROGRAMS = {
    "latent int8": ("attention_programs", "attend", BF16 | ROWS | INT8 | {"out": "fp32", "sums": "fp32"}, LATENT),
    "grouped": ("attention_programs", "attend", BF16 | ROWS, GROUPED),
    "shares": (
        "attention_programs",
        "add_shares",
        {"parts": "fp32", "sums": "fp32", "out": "bf16"},
        {"SHARES": 64, "WIDTH": 512, "BLOCK": 512},
    ),
    "gate and up": ("expert_programs", "gate_and_up", BF16 | TILES, BLOCKS | {"top_k": 1}),
    "down": ("expert_programs", "down", BF16 | TILES, BLOCKS),
    "weigh": ("expert_programs", "weigh", BF16 | {"weights": "fp32"}, {"COLUMNS": 256}),
}
SHARED_MEMORY = 99 * 1024
"""Bytes that a program may have on GPUs of compute capability 8.6 and 8.9, the least of those since 8.0."""


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_the_programs_compile_for_gpus(capability, tmp_path):
    """The interpreter forgives what the compiler does not: types, sides of products, shared memory."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILE, json.dumps([PROGRAMS, capability])]
    said = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert said.returncode == 0, said.stderr
    shared = json.loads(said.stdout)
    assert set(shared) == set(PROGRAMS)
    assert all(size <= SHARED_MEMORY for size in shared.values()), shared
