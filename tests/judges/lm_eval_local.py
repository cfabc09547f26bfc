"""lm-eval's ``local-completions`` on a task of its own: log-likelihoods over HTTP equal those of the engine.

    python -m venv JUDGE && JUDGE/bin/pip install "lm-eval[api]" transformers
    JUDGE/bin/python -m tests.judges.lm_eval_local

The task is made on the spot: sentences with two endings each. lm-eval asks for echo and log-probabilities with nothing
drawn, and picks the likelier ending; the same sums are made here by the server's own ``prompt_logprobs``.
"""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.judges.lm_eval_task import ENDINGS
from tests.judges.server import KEY, ROOT, Checks, server

CASES = [
    {"context": f"There are {word} shapes. The picture shows {word}", "right": " shapes", "wrong": " <|ref|>x"}
    for word in ("two", "three", "four", "five", "six")
]


def told(url: str, text: str) -> list[dict[str, Any] | None]:
    """What the server thinks of each token of a text, in vLLM's form."""
    body = {"model": "vl2-nano", "prompt": text, "max_tokens": 1, "prompt_logprobs": 0}
    request = urllib.request.Request(
        f"{url}/v1/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json", "authorization": f"Bearer {KEY}"},
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)["choices"][0]["prompt_logprobs"]


def main() -> int:
    checks = Checks()
    with TemporaryDirectory() as name, server("vl2-nano") as url:
        folder = Path(name)
        (folder / "data.jsonl").write_text("\n".join(map(json.dumps, CASES)))
        (folder / "endings.yaml").write_text(ENDINGS.format(data=folder / "data.jsonl"))
        arguments = f"model=vl2-nano,base_url={url}/v1/completions,tokenizer_backend=huggingface,num_concurrent=2"
        arguments += f",tokenizer={ROOT / 'src/modelwright/zoo/vl2-nano'},max_length=2048"
        command = [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", arguments]
        command += ["--tasks", "endings", "--include_path", name, "--output_path", f"{name}/out", "--log_samples"]
        done = subprocess.run(command, env=os.environ | {"OPENAI_API_KEY": KEY, "HF_HUB_OFFLINE": "1"})
        checks.holds("lm-eval runs", done.returncode == 0)
        for path in (folder / "out").rglob("samples_*.jsonl"):
            for line in path.read_text().splitlines():
                sample = json.loads(line)
                document = sample["doc"]
                for at, ending in enumerate(("right", "wrong")):
                    whole = told(url, document["context"] + document[ending])
                    count = len(whole) - len(told(url, document["context"]))
                    own = sum(next(iter(row.values()))["logprob"] for row in whole[-count:] if row)
                    found = float(sample["resps"][at][0][0])
                    checks.holds(
                        f"{document['context']!r} + {document[ending]!r}: {found} = {own}", abs(found - own) < 1e-3
                    )
        checks.holds("all were judged", checks.passed >= 2 * len(CASES))
    return checks.report()


if __name__ == "__main__":
    sys.exit(main())
