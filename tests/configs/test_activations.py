"""The names of activation functions against transformers' own table, and that no config imports the functions."""

import subprocess
import sys

from transformers.activations import ACT2FN

from modelwright.configs.activations import ACTIVATION_NAMES


def test_the_names_are_those_transformers_has():
    assert list(ACTIVATION_NAMES) == list(ACT2FN)


def test_reading_configs_imports_no_activation_function():
    code = "import sys, modelwright.configs; print('transformers.activations' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
