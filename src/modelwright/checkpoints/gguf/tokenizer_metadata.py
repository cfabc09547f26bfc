"""A folder's tokenizer as a GGUF file's metadata: the way back of ``tokenizer.py``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelwright.checkpoints.gguf.splitting import SPLITS
from modelwright.checkpoints.gguf.templates import template_metadata
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

FILE, SETTINGS, MARKS = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"


def tokenizer_metadata(folder: Path, config: Mapping[str, Any], ends: list[int]) -> dict[str, Any]:
    """The ``tokenizer.*`` keys of a file for the tokenizer in ``folder`` and a model of ``config``.

    Args:
        config: the model has rows for its ``vocab_size``; ``bos_token_id`` and ``pad_token_id`` name tokens where the
            tokenizer has no settings.
        ends: the tokens that end a text or a turn.

    Raises:
        CheckpointError: there is no tokenizer, it has more tokens than the model, it is of a kind, or splits text in a
            way, that llama.cpp has no name for, or a text ends at more tokens than a file can name.
    """
    content, folder = tokenizer_content(folder)
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    model = content["model"]
    if model.get("type") != "BPE":
        raise CheckpointError(f"{folder}: llama.cpp has tokenizers of the kind BPE, not {model.get('type')}")
    bytes_fall_back = bool(model.get("byte_fallback"))
    tokens, kinds = _tokens(folder, content, config["vocab_size"], bytes_fall_back)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    told: dict[str, Any] = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    if bytes_fall_back:
        prefix = "Prepend" in json.dumps(content.get("normalizer")) or _begins_with_blank(content.get("pre_tokenizer"))
        told |= {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": _scores(tokens, merges)}
        told |= {"tokenizer.ggml.pre": "default", "tokenizer.ggml.add_space_prefix": prefix}
    elif merges:
        told |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": merges}
        told["tokenizer.ggml.pre"] = _splitting_name(folder, content)
    else:
        raise CheckpointError(f"{folder / FILE} has no merges, and llama.cpp reads no byte-level tokenizer without any")
    named = _named(folder, content, config)
    told |= {f"tokenizer.ggml.{ours}_token_id": tokens.index(token) for ours, token in named.items() if token in tokens}
    told |= _turn_ends(told, [end for end in ends if end < len(tokens)])
    return told | _marks_around(content, settings, told) | template_metadata(folder, settings)


def tokenizer_content(folder: Path) -> tuple[dict[str, Any], Path]:
    """The contents of the tokenizer's file, and the folder that it is in; a CheckpointError where there is none."""
    for place in (folder, folder / "tokenizer"):
        if (place / FILE).is_file():
            return read_json(place / FILE), place
    raise CheckpointError(
        f"{folder} holds no {FILE}, of which a GGUF file's tokenizer is made: of one of another kind transformers' "
        f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r}) writes it"
    )


def _tokens(
    folder: Path, content: Mapping[str, Any], vocabulary: int, bytes_fall_back: bool
) -> tuple[list[str], list[int]]:
    by_id = {place: (token, NORMAL) for token, place in content["model"]["vocab"].items()}
    unknown = content["model"].get("unk_token")
    for entry in content.get("added_tokens", []):
        by_id[entry["id"]] = (entry["content"], CONTROL if entry["special"] else USER_DEFINED)
    if (last := max(by_id)) >= vocabulary:
        raise CheckpointError(
            f"{folder / FILE} has the token {by_id[last][0]!r} of id {last}, and the model has rows for {vocabulary} "
            "(vocab_size): give it more by resize_token_embeddings, or take the added tokens out of the tokenizer"
        )
    tokens, kinds = [], []
    for place in range(vocabulary):
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
    if len(others) > len(keys):
        every = others if own is None else [own, *others]
        raise CheckpointError(
            f"a text ends at the tokens {every}, and a GGUF file names {1 + len(TURN_ENDS)} at most: leave out others "
            "in the eos_token_id of generation_config.json and config.json"
        )
    return {f"tokenizer.ggml.{key}_token_id": end for key, end in zip(keys, others, strict=False)}


def _begins_with_blank(part: Mapping[str, Any] | None) -> bool:
    """Whether a pre-tokenizer puts a blank before a text, as SentencePiece does."""
    if part is None:
        return False
    if part.get("type") == "Metaspace":
        return part.get("prepend_scheme", "always" if part.get("add_prefix_space", True) else "never") != "never"
    return any(map(_begins_with_blank, part.get("pretokenizers", ())))


def _named(folder: Path, content: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    """The tokens that a tokenizer's settings name by what they are for, by a file's words for that.

    Where there are no settings the tokenizer itself and the model's config tell.
    """
    beside = [folder / name for name in (MARKS, SETTINGS) if (folder / name).is_file()]
    if not beside:
        return _by_config(content, config)
    named: dict[str, str] = {}
    for said in map(read_json, beside):
        for ours, theirs in SPECIAL.items():
            token = said.get(theirs)
            token = token.get("content") if isinstance(token, dict) else token
            named |= {ours: token} if token else {}
    return named


def _by_config(content: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    """The unknown token of the tokenizer, and special ones that the config names; not the ends, which come apart."""
    special = {entry["id"]: entry["content"] for entry in content.get("added_tokens", []) if entry["special"]}
    ids = {"bos": config.get("bos_token_id"), "padding": config.get("pad_token_id")}
    unknown = content["model"].get("unk_token")
    named = {name: special[place] for name, place in ids.items() if place in special}
    return named | ({"unknown": unknown} if unknown is not None else {})


def _marks_around(content: Mapping[str, Any], settings: Mapping[str, Any], marks: Mapping[str, Any]) -> dict[str, bool]:
    """Whether the beginning and the end are added around a text; ``marks`` holds their ids."""
    told: dict[str, bool] = {}
    tokens = marks["tokenizer.ggml.tokens"]
    last = content.get("post_processor") or {}
    added = json.dumps([part.get("single", []) for part in (last, *last.get("processors", ()))])
    for end in ("bos", "eos"):
        place = marks.get(f"tokenizer.ggml.{end}_token_id")
        stated = settings.get(f"add_{end}_token")
        adds = place is not None and json.dumps(tokens[place]) in added
        told[f"tokenizer.ggml.add_{end}_token"] = place is not None and (bool(stated) if stated is not None else adds)
    return told
