"""How threads that compute together wait for one another in a server: libgomp says itself what it was told."""

import os
import re
import subprocess
import sys

import pytest

from modelwright.cli import serve

CODE = """
import sys
from modelwright.cli.serve import wait_briefly
assert "torch" not in sys.modules, "libgomp has read its variables already"
wait_briefly()
import torch
"""
SAYS = {"OMP_DISPLAY_ENV": "VERBOSE"}


def spins(**variables):
    known = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    ran = subprocess.run(
        [sys.executable, "-c", CODE], env=known | SAYS | variables, capture_output=True, text=True, check=True
    )
    return {int(found) for found in re.findall(r"GOMP_SPINCOUNT = '(\d+)'", ran.stderr)}


@pytest.mark.slow
def test_threads_sleep_soon_and_users_say_otherwise():
    assert spins() == {serve.SPINS}
    assert spins(GOMP_SPINCOUNT="77") == {77}
    assert spins(OMP_WAIT_POLICY="PASSIVE") == {0}


def test_a_server_waits_so_before_anything_is_loaded(monkeypatch):
    class Reached(Exception):
        pass

    def stop():
        raise Reached

    monkeypatch.setattr(serve, "wait_briefly", stop)
    options = type("Options", (), {"settings": None})()
    with pytest.raises(Reached):
        serve.run_serve(options)
