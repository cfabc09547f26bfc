"""The tokenizer in a GGUF file, rebuilt as ``tokenizer.json`` and ``tokenizer_config.json``."""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from modelwright.checkpoints.gguf.file import GgufFile
from modelwright.checkpoints.gguf.splitting import SPLITS, Splitting
from modelwright.errors import CheckpointError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""llama.cpp's kinds of tokens."""
SPECIAL = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
TURN_ENDS = ("eot", "eom")
"""llama.cpp's names of what ends a turn and a message, beside the end of a text."""
TEMPLATE, DEFAULT_TEMPLATE = "tokenizer.chat_template", "default"
"""The key of the template of conversations, and what it is called among several."""
SPACE = "\u2581"
"""What stands for a space in SentencePiece's pieces."""


def read_tokenizer(file: GgufFile) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer of ``file`` and the contents of its ``tokenizer_config.json``.

    Raises:
        CheckpointError: a kind of tokenizer or a way of splitting that is not known here, or the rebuilt tokenizer has
            other tokens than the file lists.
    """
    kind = file.metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise CheckpointError(f"{file.path}: a tokenizer of the kind {kind!r} is not read here; gpt2 and llama are")
    listed = _listed(file, "tokens", str)
    kinds = _listed(file, "token_type", int, len(listed))
    tokens = _without_padding(listed, kinds)
    try:
        tokenizer = _byte_level(file, tokens) if kind == "gpt2" else _sentence_piece(file, tokens, kinds)
        config = _config(file, tokens, default_bos=kind == "llama" or _splitting(file).adds_bos)
        tokenizer.add_tokens(_added(tokens, kinds))
        _add_ends(tokenizer, config)
    except CheckpointError:
        raise
    except Exception as error:  # the tokenizers library raises bare exceptions on merges of what is no token
        raise CheckpointError(f"{file.path}: no tokenizer can be made of its tokens: {error}") from error
    _check_tokens(file, tokenizer, tokens)
    return tokenizer, config


def _byte_level(file: GgufFile, tokens: list[str]) -> Tokenizer:
    splitting = _splitting(file)
    merges = [tuple(pair.split(" ", 1)) for pair in _listed(file, "merges", str)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=splitting.ignores_merges))
    parts: list[Any] = [pre_tokenizers.Split(Regex(each), "isolated") for each in splitting.expressions]
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splitting.then_as_gpt2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer


def _sentence_piece(file: GgufFile, tokens: list[str], kinds: list[int]) -> Tokenizer:
    """SentencePiece's BPE: pieces that merge into a better one do, the best first; what has no piece becomes bytes."""
    scores = _listed(file, "scores", float, len(kinds))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(vocabulary, scores),
            unk_token=_token(file, tokens, "unknown") or tokens[0],
            fuse_unk=True,
            byte_fallback=BYTE in kinds,
        )
    )
    prefix = bool(file.metadata.get("tokenizer.ggml.add_space_prefix", True))
    before = [normalizers.Prepend(SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [*before, normalizers.Replace(" ", SPACE)]
    )
    after = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *after]
    )
    return tokenizer


def _merges(vocabulary: dict[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every pair of pieces whose whole is a piece, the whole of the highest score first."""
    found = []
    for piece, place in vocabulary.items():
        pairs = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        known = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
        known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found += [(-scores[place], pair) for pair in known]
    found.sort(key=lambda scored: scored[0])  # stable: of equal scores the earlier piece
    return [pair for _, pair in found]


def _added(tokens: list[str], kinds: list[int]) -> list[AddedToken]:
    """Tokens that are found in a text before it is split: the file's control tokens, and what users defined."""
    return [
        AddedToken(token, special=kind != USER_DEFINED, normalized=False)
        for token, kind in zip(tokens, kinds, strict=False)  # kinds of padding too
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]


def _config(file: GgufFile, tokens: list[str], default_bos: bool) -> dict[str, Any]:
    told = file.metadata
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bool(told.get("tokenizer.ggml.add_bos_token", default_bos)),
        "add_eos_token": bool(told.get("tokenizer.ggml.add_eos_token", False)),
        "clean_up_tokenization_spaces": False,
        "model_max_length": file.integer("context_length"),
    }
    config |= {theirs: token for ours, theirs in SPECIAL.items() if (token := _token(file, tokens, ours)) is not None}
    return config | _templates(told)


def _templates(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What a ``tokenizer_config.json`` says of the templates in a file: one text, or several by their names."""
    names = metadata.get(f"{TEMPLATE}s")
    keys = {name: f"{TEMPLATE}.{name}" for name in names} if isinstance(names, list) else {}
    found = {name: metadata.get(key) for name, key in ({DEFAULT_TEMPLATE: TEMPLATE} | keys).items()}
    templates = {name: str(text) for name, text in found.items() if text}
    if templates.keys() <= {DEFAULT_TEMPLATE}:
        return {"chat_template": templates[DEFAULT_TEMPLATE]} if templates else {}
    return {"chat_template": [{"name": name, "template": text} for name, text in templates.items()]}


def _add_ends(tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    """Put the beginning and the end around a text where the file says so, as llama.cpp does."""
    first = [config["bos_token"]] if config["add_bos_token"] and "bos_token" in config else []
    last = [config["eos_token"]] if config["add_eos_token"] and "eos_token" in config else []
    if not first and not last:
        return
    ids = [(token, tokenizer.token_to_id(token)) for token in {*first, *last}]
    template = processors.TemplateProcessing(
        single=[*first, "$A", *last],
        pair=[*first, "$A", *last, *[f"{token}:1" for token in first], "$B:1", *[f"{token}:1" for token in last]],
        special_tokens=ids,
    )
    tokenizer.post_processor = template  # pyright: ignore[reportAttributeAccessIssue]


def _splitting(file: GgufFile) -> Splitting:
    name = file.metadata.get("tokenizer.ggml.pre", "default")
    if name not in SPLITS:
        raise CheckpointError(
            f"{file.path} splits text in the way {name!r}, which is not known here; known are {', '.join(SPLITS)}"
        )
    return SPLITS[name]


def _token(file: GgufFile, tokens: list[str], name: str) -> str | None:
    """The token that the file says is its beginning, its end, ...; None where it says none."""
    place = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
    if place is not None and place not in range(len(tokens)):
        raise CheckpointError(f"{file.path}: tokenizer.ggml.{name}_token_id is {place}, of {len(tokens)} tokens")
    return None if place is None else tokens[place]


def _listed(file: GgufFile, name: str, kind: type, count: int | None = None) -> list[Any]:
    values = file.metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise CheckpointError(f"{file.path}: tokenizer.ggml.{name} must be a list of {kind.__name__}")
    if not values or count not in (None, len(values)):
        raise CheckpointError(f"{file.path}: tokenizer.ggml.{name} has {len(values)} items, not one for each token")
    return values


def _without_padding(tokens: list[str], kinds: list[int]) -> list[str]:
    """Without what stands at the end for ids that a wider embedding has and no text."""
    count = len(tokens)
    while count and kinds[count - 1] == UNUSED and tokens[count - 1] == f"[PAD{count - 1}]":
        count -= 1
    return tokens[:count]


def _check_tokens(file: GgufFile, tokenizer: Tokenizer, tokens: list[str]) -> None:
    if tokenizer.get_vocab_size() != len(tokens):
        raise CheckpointError(
            f"{file.path} lists {len(tokens)} tokens, and {tokenizer.get_vocab_size()} of them are different texts"
        )
    for i, token in enumerate(tokens):
        if tokenizer.id_to_token(i) != token:
            raise CheckpointError(f"{file.path}: token {i} is {token!r}, and the rebuilt tokenizer has another there")
