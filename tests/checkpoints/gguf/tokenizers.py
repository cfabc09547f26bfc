"""Small tokenizers as models publish them, trained on a few texts, with each way to split that llama.cpp can name."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from modelwright.checkpoints.gguf.splitting import SPLITS

TEXTS = [
    "Hello world, it's fine; I'LL go.",
    "  two  spaces and\ttabs\n\n\nlines \r\n end   ",
    "1234567 and 1,000.50 or x2y3z",
    "Übergrößen naïve façade Straße ǅ ⅷ",
    "漢字かな交じり文と한국어、全角。「引用」",
    "emoji 🙂👩‍👩‍👧 and ½ ² ٣٤",
    "def f(x):\n    return x**2  # comment\n",
    "<|im_start|>user\nhi<|im_end|>\nbye <|im_start|>",
    "¡Qué! ‘quoted’ “text” — dash… _under_score_ CamelCase",
    "one</s>two <s> three<unk>!",
    "",
    " ",
    "\u0301combining e\u0301 \u200d zero\u00a0width",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
DEEPSEEK_LLM = SPLITS["deepseek-llm"].expressions
"""As the module has it: the list of cased letters is too long to be written twice, and llama.cpp has its own."""
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLIT_AS = {
    "gpt-2": [],
    "smollm": [pre_tokenizers.Digits(individual_digits=True)],
    "llama-bpe": [pre_tokenizers.Split(Regex(_LLAMA3), "isolated")],
    "qwen2": [pre_tokenizers.Split(Regex(_LLAMA3.replace("{1,3}", "")), "isolated")],
    "deepseek-llm": [pre_tokenizers.Split(Regex(each), "isolated") for each in DEEPSEEK_LLM],
    "deepseek-v3": [pre_tokenizers.Split(Regex(each), "isolated") for each in SPLITS["deepseek-v3"].expressions],
    "tekken": [pre_tokenizers.Split(Regex(each), "isolated") for each in SPLITS["tekken"].expressions],
    "deepseek-coder": [
        pre_tokenizers.Split(Regex(each), "isolated")
        for each in ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+")
    ]
    + [pre_tokenizers.Digits(individual_digits=True)],
}
"""What stands before the byte level in the published tokenizers, by llama.cpp's name."""


def write_byte_level(folder: Path, split: str, vocabulary: int = 600) -> int:
    """A byte-level tokenizer that splits so; returns how many tokens it has at most."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=split in ("llama-bpe", "tekken")))
    as_gpt2 = split in ("gpt-2", "smollm")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=as_gpt2)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*SPLIT_AS[split], byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    _save(tokenizer, folder, add_bos=SPLITS[split].adds_bos)
    return vocabulary


def write_sentence_piece(folder: Path) -> int:
    """A tokenizer as Llama 2's: pieces of SentencePiece, merges in the order of their scores, bytes for the rest."""
    spaced = [text.replace(" ", "\u2581") for text in TEXTS]
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Split(Regex("\u2581?[^\u2581\n]+|\n"), "isolated")
    learned.train_from_iterator(spaced * 3, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    content = json.loads(learned.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    pieces += [piece for piece in sorted(content["vocab"], key=content["vocab"].get) if piece not in pieces]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = [tuple(pair) for pair in content["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    _save(tokenizer, folder, add_bos=True, names={"bos": "<s>", "eos": "</s>", "unk": "<unk>"})
    return len(pieces)


def _save(tokenizer: Tokenizer, folder: Path, add_bos: bool, names: dict[str, str] | None = None) -> None:
    names = names or {"bos": SPECIAL[1], "eos": SPECIAL[2], "pad": SPECIAL[0]}
    if add_bos:
        bos = names["bos"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {f"{name}_token": token for name, token in names.items()} | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": add_bos,
        "chat_template": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
