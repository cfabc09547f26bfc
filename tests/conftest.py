"""What every test shares: no network, no time limit per hypothesis example, which a busy machine would break, GPU
kernels that run under Triton's interpreter where there is no GPU, and no call that transformers logs as deprecated."""

import logging
import os
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a test that reaches for the hub fails at once

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported, which transformers may do

import pytest
import transformers
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError
from hypothesis import settings
from PIL import Image

from modelwright.families.deepseek_vl2.processor import DeepseekVLV2Processor

GOLDEN = Path(__file__).parent / "golden" / "processor"


class DeprecationsFail(logging.Handler):
    """Makes an error of a record that says "deprecated": transformers logs some of what it could warn of."""

    def emit(self, record: logging.LogRecord) -> None:
        if "deprecated" in record.getMessage():
            raise DeprecationWarning(record.getMessage())


settings.register_profile("modelwright", deadline=None)
settings.load_profile("modelwright")


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the cases of a test that is marked `one_in(n)`, every n-th stays quick and the others become slow. They are
    counted in the order of a hash of their names, so that those left are of all kinds, and the same in each process."""
    tests = defaultdict[str, list[pytest.Item]](list)
    for item in items:
        if item.get_closest_marker("one_in") and not item.get_closest_marker("slow"):
            tests[item.nodeid.partition("[")[0]].append(item)
    for cases in tests.values():
        (step,) = cases[0].get_closest_marker("one_in").args  # pyright: ignore[reportOptionalMemberAccess]
        for number, item in enumerate(sorted(cases, key=lambda item: zlib.crc32(item.nodeid.encode()))):
            if number % step:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def deprecations_fail() -> Iterator[None]:
    """Warnings are errors by pyproject.toml; this is for those that are logged."""
    handler, logger = DeprecationsFail(), logging.getLogger("transformers")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A command that runs in this process lets the loggers say less: not for the tests after it."""
    loggers = [logging.getLogger(name) for name in ("modelwright", "transformers")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    transformers.logging.enable_progress_bar()


@pytest.fixture
def generate_may_warn(monkeypatch) -> None:
    """transformers itself hands a model that drafts, and in releases such as 5.17 one in a pipeline, both a generation
    config and arguments, and calls that deprecated."""
    monkeypatch.setattr(logging.getLogger("transformers.generation.utils"), "disabled", True)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of the official processor's files and results."""
    return GOLDEN


@pytest.fixture(scope="session")
def processor() -> DeepseekVLV2Processor:
    return DeepseekVLV2Processor.from_pretrained(GOLDEN)


@pytest.fixture
def red() -> Image.Image:
    return Image.new("RGB", (100, 50), "red")


@pytest.fixture
def hub(monkeypatch):
    """What reaches the hub: the repositories, and the files of each commit by name, read."""
    repositories, commits = [], []

    def create_repo(self, repo_id, **options):
        repositories.append((repo_id, {name: value for name, value in options.items() if name != "exist_ok"}))
        return SimpleNamespace(repo_id=repo_id)

    def no_card(*_, **__):
        raise LocalEntryNotFoundError("no card")

    def commit(self, repo_id, operations, **_):
        commits.append({each.path_in_repo: Path(each.path_or_fileobj).read_bytes() for each in operations})

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "create_commit", commit)
    monkeypatch.setattr(ModelCard, "load", no_card)
    return repositories, commits
