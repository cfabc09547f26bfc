"""Trains the byte-level tokenizer of vl2-nano on the questions and answers themselves and writes it as a hub folder.

Every byte has a token, so any text survives the way there and back. Digits, and capitals that no small letter follows,
are always tokens of their own: the text of a card is one token a character wherever it stands, and so is a coordinate.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from recipes.vl2_nano.questions import make_example

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
MARKS = ("<image>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>", "<|User|>", "<|Assistant|>")
_PIECES = "|".join(
    (
        r"[0-9]",
        r"[A-Z](?![a-z])",
        r", (?=[0-9])",  # between coordinates
        r"\], \[",  # between boxes
        r" ?[A-Z]?[a-z]+",
        r" ?(?:(?![A-Za-z])\p{L})+",
        r" ?[^\s\p{L}\p{N}]+",
        r"\s+",
    )
)
_CONFIG = {
    "bos_token": BOS,
    "eos_token": EOS,
    "pad_token": PAD,
    "model_max_length": 2048,
    "tokenizer_class": "PreTrainedTokenizerFast",
    "add_bos_token": False,
    "add_eos_token": False,
    "clean_up_tokenization_spaces": False,
}


def build_tokenizer(folder: Path | str, vocab_size: int = 1000, examples: int = 4000, seed: int = 0) -> Tokenizer:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` into ``folder``; at most ``vocab_size`` tokens in all.

    The same arguments give the same files on machines with the same fonts (see ``fonts``: the cards that the questions
    are about are drawn on the way).
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(MARKS),
        min_frequency=20,
        special_tokens=[_special(token) for token in (BOS, EOS, PAD)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(examples, seed), trainer)
    tokenizer.add_special_tokens([_special(mark) for mark in MARKS])
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(target / "tokenizer.json"))
    config = json.dumps(_CONFIG, ensure_ascii=False, indent=2)
    (target / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")
    return tokenizer


def _special(text: str) -> AddedToken:
    return AddedToken(text, special=True, normalized=False)


def _texts(examples: int, seed: int) -> Iterator[str]:
    """Questions and answers as they stand in a conversation, without the marks, which are never split."""
    rng = np.random.default_rng(seed)
    for _ in range(examples):
        for dialogue in make_example(rng).dialogues:
            for question, answer in dialogue:
                text = f": \n{question}\n\n: {answer}"
                for mark in MARKS:
                    text = text.replace(mark, "\n")
                yield text
