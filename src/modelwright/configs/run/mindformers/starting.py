"""What a MindFormers run starts from: its mode, seed and folder, its weights and its tokenizer."""

from pathlib import Path

from modelwright.configs.base import require_one_of
from modelwright.configs.run.mindformers.reader import Reader

MODES = ("train", "finetune", "eval")
PREDICTING = {"predict": "generate", "export": "export"}


def read_start(reader: Reader) -> None:
    """The mode, the seed, the output, initial weights and the tokenizer."""
    mode = reader.get("run_mode", str, "train")
    if mode in PREDICTING:
        reader.refuse(f'run_mode "{mode}" starts no training: use modelwright {PREDICTING[mode]}')
    else:
        require_one_of("run_mode", mode, MODES)
    reader.put("seed", reader.get("seed", int, 0))
    reader.put("output", reader.get("output_dir", str) or "./output")
    if reader.get("only_save_strategy", bool, False):
        reader.refuse("only_save_strategy (True) writes MindSpore's strategy files, of which torch has none")
    _read_weights(reader)
    _read_tokenizer(reader)


def _read_weights(reader: Reader) -> None:
    path = reader.get("load_checkpoint", str, "")
    kind = reader.get("load_ckpt_format", str, "")
    folder = reader.get("pretrained_model_dir", str, "")
    resumes = reader.get("resume_training", bool | str, False)
    if path and (path.endswith(".ckpt") or kind == "ckpt"):
        reader.refuse(
            f"load_checkpoint {path} is a MindSpore .ckpt, a pickle-like protobuf: save it with load_ckpt_format "
            "safetensors",
            "model.path",
            "model.config.checkpoint_name_or_path",
        )
    elif resumes and path and _is_our_checkpoint(Path(path)):
        reader.put("checkpoint.resume", path)
    elif path or folder:
        reader.put("model.weights", path or folder)
    if resumes and not path:
        reader.put("checkpoint.resume", "auto")
    elif "checkpoint.resume" not in reader.values:
        reader.put("checkpoint.resume", "none")
    if folder:
        reader.put("model.processor", folder)


def _is_our_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint of ours, or the output of a run that holds some."""
    return (folder / "MANIFEST.json").is_file() or (folder / "checkpoints").is_dir()


def _read_tokenizer(reader: Reader) -> None:
    kind = reader.get("processor.tokenizer.type", str, "a tokenizer")
    files = [reader.get(f"processor.tokenizer.{key}", str, "") for key in ("tokenizer_file", "vocab_file")]
    named = next((file for file in files if file), None)
    if named is None:
        return
    folder = Path(named) if Path(named).is_dir() else Path(named).parent
    if (folder / "tokenizer.json").is_file():
        reader.put("model.processor", str(folder))
    elif "model.processor" not in reader.values:
        reader.refuse(f"processor.tokenizer {kind} has no tokenizer.json in {folder}", "model.processor")
