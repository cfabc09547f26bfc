"""lm-eval on our models as objects and on the exported folder by transformers' own classes: the same numbers.

    python -m venv JUDGE && JUDGE/bin/pip install -e ".[eval]"
    JUDGE/bin/python -m tests.judges.lm_eval_objects

Two tasks are made on the spot: endings to choose between, and the perplexity of texts. ``modelwright evaluate`` asks
both of a Llama with random weights and of vl2-nano; lm-eval's ``hf`` reads that Llama's exported folder through
transformers' class, and log-likelihoods of vl2-nano are summed anew from its logits.
"""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoTokenizer

from modelwright import LlamaConfig, LlamaForCausalLM, load, zoo
from tests.judges.lm_eval_task import ENDINGS
from tests.judges.server import ROOT, Checks

CASES = [
    {"context": f"There are {word} shapes. The picture shows {word}", "right": " shapes", "wrong": " letters"}
    for word in ("two", "three", "four", "five")
]
TEXTS = ["There are two shapes and one card.", "The card shows the letters A and B. There are two of them."]
WORDS = """\
task: words
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: word_perplexity
"""


def make_tasks(folder: Path) -> None:
    """Both tasks and their rows."""
    (folder / "endings.jsonl").write_text("\n".join(map(json.dumps, CASES)))
    (folder / "words.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    (folder / "endings.yaml").write_text(ENDINGS.format(data=folder / "endings.jsonl"))
    (folder / "words.yaml").write_text(WORDS.format(data=folder / "words.jsonl"))


def make_llama(folder: Path) -> Path:
    """A Llama of random weights, as transformers reads it, with vl2-nano's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(zoo.path("vl2-nano"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, initializer_range=0.2, **sizes, **ends)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def ours(model: str | Path, tasks: Path, out: Path) -> dict[str, Any]:
    """What ``modelwright evaluate`` writes."""
    command = [sys.executable, "-m", "modelwright", "evaluate", str(model), "--tasks", "endings,words"]
    command += ["--include-path", str(tasks), "-o", str(out), "--dtype", "float32", "--device", "cpu"]
    subprocess.run(command, check=True, cwd=ROOT)
    return json.loads(out.read_text())


def theirs(folder: Path, tasks: Path) -> dict[str, Any]:
    """What lm-eval finds with transformers' classes."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    arguments = f"pretrained={folder},dtype=float32,max_length=512"
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args=arguments,
        tasks=["endings", "words"],
        task_manager=TaskManager(include_path=str(tasks)),
        device="cpu",
        batch_size=4,
        bootstrap_iters=0,
    )
    assert found is not None
    return found


def scores(found: dict[str, Any]) -> list[float]:
    """The log-likelihoods of both tasks in order."""
    values = []
    for task in ("endings", "words"):
        for sample in sorted(found["samples"][task], key=lambda each: each["doc_id"]):
            for reply in sample["resps"]:
                value = reply[0]
                values.append(float(value[0] if isinstance(value, list | tuple) else value))
    return values


@torch.no_grad()
def by_hand(model: Any, tokenizer: Any, context: str, ending: str) -> float:
    """The summed log-likelihood of an ending, from logits."""
    before, whole = tokenizer.encode(context), tokenizer.encode(context + ending)
    logits = model(torch.tensor([whole], device=model.device)).logits[0].double().log_softmax(-1)
    return sum(float(logits[place - 1, whole[place]]) for place in range(len(before), len(whole)))


def main() -> int:
    checks = Checks()
    with TemporaryDirectory() as name:
        folder = Path(name)
        tasks = folder / "tasks"
        tasks.mkdir()
        make_tasks(tasks)
        llama = make_llama(folder / "llama")
        own, other = ours(llama, tasks, folder / "ours.json"), theirs(llama, tasks)
        pairs = list(zip(scores(own), scores(other), strict=True))
        worst = max(abs(a - b) for a, b in pairs)
        checks.holds(f"{len(pairs)} log-likelihoods are transformers' within {worst:.1e}", worst < 1e-3)
        for task, metric in (("endings", "acc,none"), ("words", "word_perplexity,none")):
            a, b = own["results"][task][metric], other["results"][task][metric]
            checks.holds(f"{task}: {metric} {a} = {b}", abs(a - b) <= 1e-4 * abs(b))
        nano = ours("vl2-nano", tasks, folder / "nano.json")
        loaded = load(zoo.path("vl2-nano"), device="cpu", dtype="float32")
        found = scores(nano)
        for number, case in enumerate(CASES):
            for place, ending in enumerate((case["right"], case["wrong"])):
                wanted = by_hand(loaded.model, loaded.tokenizer, case["context"], ending)
                seen = found[2 * number + place]
                checks.holds(
                    f"vl2-nano {case['context']!r} + {ending!r}: {seen:.4f} = {wanted:.4f}", abs(seen - wanted) < 1e-3
                )
    return checks.report()


if __name__ == "__main__":
    sys.exit(main())
