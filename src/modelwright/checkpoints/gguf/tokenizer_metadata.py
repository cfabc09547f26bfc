"""A folder's tokenizer as a GGUF file's metadata: the way back of ``tokenizer.py``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelwright.checkpoints.gguf.splitting import SPLITS
from modelwright.checkpoints.gguf.tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    SPECIAL,
    TURN_ENDS,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
)
from modelwright.checkpoints.source import read_json
from modelwright.errors import CheckpointError


def tokenizer_metadata(folder: Path, vocabulary: int, ends: list[int]) -> dict[str, Any]:
    """The ``tokenizer.*`` keys of a file for the tokenizer in ``folder`` and a model with so many tokens.

    Args:
        ends: the tokens that end a text or a turn.

    Raises:
        CheckpointError: the tokenizer is of a kind, or splits text in a way, that llama.cpp has no name for.
    """
    if not (folder / "tokenizer.json").is_file() and (folder / "tokenizer" / "tokenizer.json").is_file():
        folder = folder / "tokenizer"
    content = read_json(folder / "tokenizer.json")
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    model = content["model"]
    if model.get("type") != "BPE":
        raise CheckpointError(f"{folder}: llama.cpp has tokenizers of the kind BPE, not {model.get('type')}")
    bytes_fall_back = bool(model.get("byte_fallback"))
    tokens, kinds = _tokens(content, vocabulary, bytes_fall_back)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    told: dict[str, Any] = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    if bytes_fall_back:
        prefix = "Prepend" in json.dumps(content.get("normalizer")) or _begins_with_blank(content.get("pre_tokenizer"))
        told |= {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": _scores(tokens, merges)}
        told |= {"tokenizer.ggml.pre": "default", "tokenizer.ggml.add_space_prefix": prefix}
    else:
        told |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": merges}
        told["tokenizer.ggml.pre"] = _splitting_name(folder, content)
    told |= _settings(folder, content, settings, tokens)
    return _turn_ends(told, [end for end in ends if end < len(tokens)]) | told


def _tokens(content: Mapping[str, Any], vocabulary: int, bytes_fall_back: bool) -> tuple[list[str], list[int]]:
    by_id = {place: (token, NORMAL) for token, place in content["model"]["vocab"].items()}
    unknown = content["model"].get("unk_token")
    for entry in content.get("added_tokens", []):
        by_id[entry["id"]] = (entry["content"], CONTROL if entry["special"] else USER_DEFINED)
    tokens, kinds = [], []
    for place in range(max(vocabulary, 1 + max(by_id))):
        token, kind = by_id.get(place, (f"[PAD{place}]", UNUSED))
        if bytes_fall_back and len(token) == 6 and token.startswith("<0x"):
            kind = BYTE
        tokens.append(token)
        kinds.append(UNKNOWN if token == unknown else kind)
    return tokens, kinds


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """The pieces' scores: what merges first has the highest; pieces that nothing merges into have the lowest."""
    rank: dict[str, int] = {}
    for i, pair in enumerate(merges):
        rank.setdefault(pair.replace(" ", "", 1), i)
    return [-float(rank.get(token, len(merges))) for token in tokens]


def _splitting_name(folder: Path, content: Mapping[str, Any]) -> str:
    given = content.get("pre_tokenizer") or {}
    parts = given.get("pretokenizers", [given])
    expressions, as_gpt2 = [], False
    for part in parts:
        if part.get("type") == "Digits" and part.get("individual_digits"):
            expressions.append(r"\p{N}")
        elif part.get("type") == "Split" and part.get("behavior") == "Isolated" and not part.get("invert"):
            expressions.append(part["pattern"].get("Regex", ""))
        elif part.get("type") == "ByteLevel" and not part.get("add_prefix_space"):
            as_gpt2 = bool(part.get("use_regex", True))
        else:
            raise CheckpointError(f"{folder} splits text by {part.get('type')}, which llama.cpp has no name for")
    for name, known in SPLITS.items():
        if known.expressions == tuple(expressions) and known.then_as_gpt2 == as_gpt2:
            return name
    raise CheckpointError(f"{folder} splits text by {expressions}, which llama.cpp has no name for")


def _turn_ends(told: Mapping[str, Any], ends: list[int]) -> dict[str, int]:
    """Where a text may end beside its tokenizer's end of sentence: at a turn's end, and at a message's."""
    own = told.get("tokenizer.ggml.eos_token_id")
    others = ends if own is None else [end for end in ends if end != own]
    keys = ("eos", *TURN_ENDS) if own is None else TURN_ENDS
    return {f"tokenizer.ggml.{key}_token_id": end for key, end in zip(keys, others, strict=False)}


def _begins_with_blank(part: Mapping[str, Any] | None) -> bool:
    """Whether a pre-tokenizer puts a blank before a text, as SentencePiece does."""
    if part is None:
        return False
    if part.get("type") == "Metaspace":
        return part.get("prepend_scheme", "always" if part.get("add_prefix_space", True) else "never") != "never"
    return any(map(_begins_with_blank, part.get("pretokenizers", ())))


def _settings(
    folder: Path, content: Mapping[str, Any], settings: Mapping[str, Any], tokens: list[str]
) -> dict[str, Any]:
    told: dict[str, Any] = {}
    marks = folder / "special_tokens_map.json"
    named = read_json(marks) if marks.is_file() else {}
    for ours, theirs in SPECIAL.items():
        token = settings.get(theirs) or named.get(theirs)
        token = token.get("content") if isinstance(token, dict) else token
        if token in tokens:
            told[f"tokenizer.ggml.{ours}_token_id"] = tokens.index(token)
    last = content.get("post_processor") or {}
    added = json.dumps([part.get("single", []) for part in (last, *last.get("processors", ()))])
    for end in ("bos", "eos"):
        place = told.get(f"tokenizer.ggml.{end}_token_id")
        stated = settings.get(f"add_{end}_token")
        adds = place is not None and json.dumps(tokens[place]) in added
        told[f"tokenizer.ggml.add_{end}_token"] = place is not None and (bool(stated) if stated is not None else adds)
    template = settings.get("chat_template")
    if isinstance(template, list):  # several by name
        several = {each["name"]: each["template"] for each in template}
        template = several.pop("default", None)
        told |= {f"tokenizer.chat_template.{name}": each for name, each in several.items()}
        told |= {"tokenizer.chat_templates": sorted(several)} if several else {}
    beside = folder / "chat_template.jinja"
    if beside.is_file():
        template = beside.read_text("utf-8")
    return told | ({"tokenizer.chat_template": template} if isinstance(template, str) else {})
