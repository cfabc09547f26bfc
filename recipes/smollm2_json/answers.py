"""What a model answers to questions, greedily: by our engine, and by transformers on what a run exported."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.smollm2_json.rows import question

MOST_TOKENS = 96
_AT_ONCE = 16


def answers_of(model: str | Path, texts: Sequence[str]) -> list[str]:
    """The answers of a model, a folder or a GGUF file, by our engine in float32."""
    from modelwright import Engine, EngineConfig, SamplingParams, load
    from modelwright.serving.prompts import encode_messages

    loaded = load(model, dtype="float32", device="cpu")
    engine = Engine(loaded.model, EngineConfig(max_batch=_AT_ONCE), loaded.tokenizer)
    how = SamplingParams(temperature=0, max_tokens=MOST_TOKENS, eos_token_ids=engine.ends)
    results = engine.generate([encode_messages(loaded, question(text)) for text in texts], how)
    return [result.text for result in results]


def answers_of_merged(folder: Path, texts: Sequence[str]) -> list[str]:
    """The answers of transformers' own model and tokenizer, read from a merged export."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    return _by_transformers(model, transformers.AutoTokenizer.from_pretrained(folder), texts)


def answers_with_adapter(base: Path, adapter: Path, tokenizer: Path, texts: Sequence[str]) -> list[str]:
    """The answers of transformers' own model of the base, a folder or a GGUF file, under peft's of an adapter."""
    import transformers
    from peft import PeftModel

    place = (base, {}) if base.is_dir() else (base.parent, {"gguf_file": base.name})
    model = transformers.AutoModelForCausalLM.from_pretrained(place[0], dtype="float32", **place[1])
    adapted = PeftModel.from_pretrained(model, str(adapter))
    return _by_transformers(adapted, transformers.AutoTokenizer.from_pretrained(tokenizer), texts)


def _by_transformers(model: Any, tokenizer: Any, texts: Sequence[str]) -> list[str]:
    said = []
    for text in texts:
        ids = tokenizer.apply_chat_template(
            question(text), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        drawn = model.eval().generate(**ids, do_sample=False, max_new_tokens=MOST_TOKENS)
        said.append(tokenizer.decode(drawn[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    return said
