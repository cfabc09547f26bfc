"""Whether the tokenizer that a GGUF file describes makes the tokens that the folder's does, asked before it is written.

llama.cpp knows a vocabulary, its merges and the name of a way to split, and nothing else: a tokenizer that besides
lowercases, writes characters in another form or splits digits off would become another one without a word.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer

from modelwright.checkpoints.gguf.file import GgufFile
from modelwright.checkpoints.gguf.tokenizer import read_tokenizer
from modelwright.checkpoints.gguf.tokenizer_metadata import FILE, tokenizer_content
from modelwright.errors import CheckpointError

SAMPLES = (
    "Hello World, it's I'LL: fine (1234567 and 1,000.50); x2y3z!",
    "two  blanks, three   and\ttabs\n\nlines\n",
    "na\u00efve caf\u00e9, \u00dcbergr\u00f6\u00dfen \u00c9TAT \u0391\u03b2\u03b3 \u0416\u0438\u0437\u043d\u044c",
    "\ufb01 \u2167 \u00bd \u2026 \uff21\uff22\uff11\uff12 \u2460",  # each has another form, which NFKC writes
    "\u6f22\u5b57\u304b\u306a\u4ea4\u3058\u308a\u6587 \ud55c\uad6d\uc5b4\u3001\u300c\u5f15\u7528\u300d \U0001f642",
)
"""None begins with a blank, before which SentencePiece puts another one and transformers may not, and none holds a mark
that can be joined with its letter, as Qwen2's tokenizer does (NFC) and llama.cpp does not."""
REACHES = ("lstrip", "rstrip", "single_word")


def check_same_tokens(folder: Path, file: GgufFile) -> None:
    """Compare the tokenizer in `folder` with the one that is read of `file`'s metadata.

    Raises:
        CheckpointError: a text becomes other tokens, or an added token depends on what stands beside it.
    """
    content, place = tokenizer_content(folder)
    for entry in content.get("added_tokens", []):
        for name in REACHES:
            if entry.get(name):
                raise CheckpointError(
                    f"{place / FILE} finds {entry['content']!r} with {name}, for which a GGUF file has no word: set it "
                    "to false there if the model's texts do without"
                )
    given, read = Tokenizer.from_str(json.dumps(content)), read_tokenizer(file)[0]
    given.no_truncation()
    given.no_padding()
    for text in SAMPLES:
        ours, theirs = (each.encode(text, add_special_tokens=False).tokens for each in (given, read))
        if ours != theirs:
            first = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), 0)
            raise CheckpointError(
                f"{place / FILE} makes {ours[first : first + 4]} where llama.cpp would make "
                f"{theirs[first : first + 4]} of {text!r}: a GGUF file has no word for a normalizer, nor for other "
                "ways to split and merge than the published ones"
            )
