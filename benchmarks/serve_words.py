"""What servers need beside the weights of `benchmarks.engine`: a tokenizer whose every token is a word, and a GGUF."""

import os
import subprocess
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

ENDS = ("<unk>", "<s>", "</s>")
"""The first ids, of which the models' configs name the second and the third."""


def write_words(folder: Path, count: int) -> None:
    """A byte-level tokenizer of so many tokens in `folder`: no token is empty or half a character.

    So whatever a model of random weights draws is text, and each token can be told in a frame of its own. One merge
    there must be for llama.cpp.
    """
    letters = [chr(code) for code in range(33, 127)]
    words = [*ENDS, *letters, "Ġ", "Ċ", "w0"]
    words += [f"Ġw{place}" for place in range(len(words), count)]
    backend = Tokenizer(models.BPE(vocab={word: place for place, word in enumerate(words)}, merges=[("w", "0")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    unknown, first, last = ENDS
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token=unknown, bos_token=first, eos_token=last, clean_up_tokenization_spaces=False
    ).save_pretrained(folder)


def write_gguf(folder: Path, out: Path, dtype: str) -> None:
    """The checkpoint and its tokenizer as llama.cpp reads them, unless the file is there; renamed when it is whole."""
    if out.exists():
        return
    part = out.with_name(f"part-{out.name}")
    part.unlink(missing_ok=True)
    command = [sys.executable, "-m", "modelwright", "convert", str(folder), str(part), "--dtype", dtype]
    subprocess.run(command, check=True)
    os.replace(part, out)
