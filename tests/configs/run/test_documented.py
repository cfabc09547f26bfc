"""docs/training.md names every key of a run."""

import re
from pathlib import Path

from modelwright.configs.run import RunConfig

DOCS = Path(__file__).parents[3] / "docs" / "training.md"


def test_every_key_of_a_run_is_documented():
    text = DOCS.read_text(encoding="utf-8").partition("## MindFormers")[0]
    whole = {"parallel", "recompute", "swap", "precision.scale", "log.profile", "limits.nonfinite"}
    sources = ("data.train.", "data.eval.")
    for path in RunConfig.paths():
        section, _, key = path.rpartition(".")
        if path.startswith(sources) or any(f"{path}.".startswith(f"{each}.") for each in whole):
            continue
        assert not key or not section or re.search(rf"[`{{ .]{key}\b", text), path
