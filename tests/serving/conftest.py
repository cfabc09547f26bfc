"""The tiny checkpoints of ``tiny.py``, written once; tests that damage one work on a copy."""

import pytest

from tests.checkpoints.tiny import write_v2, write_vl2


@pytest.fixture(scope="session")
def vl2(tmp_path_factory):
    return write_vl2(tmp_path_factory.mktemp("vl2"))


@pytest.fixture(scope="session")
def v2(tmp_path_factory):
    return write_v2(tmp_path_factory.mktemp("v2"))
