"""Which rows a MindFormers run reads, and how: `train_dataset`, `eval_dataset` and what is skipped of them."""

from collections.abc import Mapping
from typing import Any

from modelwright.configs.base import require
from modelwright.configs.run.mindformers.reader import Reader

MEGATRON = "BlendedMegatronDatasetDataLoader"
COMMON = ("CommonDataLoader", "HFDataLoader")
FORMATS = {"json": "auto", "parquet": "auto", "csv": "auto", "text": "text"}


def read_rows(reader: Reader, model: Mapping[str, Any]) -> None:
    """The sources of the run and of what is held out, and what is skipped of them."""
    length = model.get("seq_length") or 2048
    reader.put("data.seq_length", length)
    reader.put("data.truncate", "end")
    reader.put("data.pack", "none")
    reader.put("data.continues", not reader.get("ignore_data_skip", bool, False))
    reader.put("data.skip", reader.get("data_skip_steps", int, 0) or 0)
    if reader.has("train_dataset"):
        reader.put("data.train", _sources(reader, "train_dataset", "data.train"))
        reader.put("data.shuffle", _shuffles(reader, "train_dataset"))
        reader.put("data.workers", reader.get("train_dataset.num_parallel_workers", int, 2))
        reader.put("data.drop_last", reader.get("train_dataset.drop_remainder", bool, True))
        repeats = reader.get("train_dataset.repeat", int, 1)
        if repeats > 1:
            reader.put("epochs", reader.values.get("epochs", 1) * repeats)
    if reader.get("do_eval", bool, False) or reader.get("run_mode", str, "train") == "eval":
        reader.put("data.eval", _sources(reader, "eval_dataset", "data.eval"))
    else:
        off = {path: "do_eval is False" for path in _inside(reader.run, "eval_dataset")}
        reader.idle |= off


def _inside(run: Mapping[str, Any], section: str) -> list[str]:
    """The paths of what a section holds."""
    found: list[str] = []

    def walk(value: Any, path: str) -> None:
        if isinstance(value, Mapping) and value:
            for key, inside in value.items():
                walk(inside, f"{path}.{key}")
        else:
            found.append(path)

    if run.get(section) is not None:
        walk(run[section], section)
    return found


def _shuffles(reader: Reader, section: str) -> bool:
    inner = reader.get(f"{section}.data_loader.shuffle", bool)
    outer = reader.get(f"{section}.shuffle", bool)
    return next((value for value in (inner, outer) if value is not None), True)


def _sources(reader: Reader, section: str, key: str) -> list[dict[str, Any]]:
    loader = f"{section}.data_loader"
    kind = reader.get(f"{loader}.type", str)
    if kind is None:
        return []
    if kind == MEGATRON:
        return _megatron(reader, loader)
    if kind in COMMON:
        return _common(reader, loader, key)
    where = reader.get(f"{loader}.dataset_dir", str) or reader.get(f"{loader}.dataset_files", str | list)
    reader.refuse(
        f'data_loader.type "{kind}" reads files that only MindSpore reads: convert {where or "its files"} to JSONL, '
        "parquet or Megatron .bin/.idx",
        key,
    )
    return []


def _megatron(reader: Reader, loader: str) -> list[dict[str, Any]]:
    """The files of Megatron's blend: a path, paths, or weights before paths."""
    path = f"{loader}.config.data_path"
    said = reader.get(path, str | list) or reader.get(f"{loader}.data_path", str | list) or []
    listed = [said] if isinstance(said, str) else list(said)
    if any(_is_weight(each) for each in listed[::2]):
        pairs = list(zip(listed[::2], listed[1::2], strict=False))
        whole = len(listed) % 2 == 0 and all(_is_weight(weight) for weight, _ in pairs)
        require(whole, f"{path} must name files, or a weight before each of them; got {listed}")
        weighted = [(float(weight), str(file)) for weight, file in pairs]
    else:
        weighted = [(1.0, str(file)) for file in listed]
    return [{"path": file, "format": "megatron", "weight": weight} for weight, file in weighted]


def _is_weight(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _common(reader: Reader, loader: str, key: str) -> list[dict[str, Any]]:
    """Files that the `datasets` library would read: `data_files` of a format, or a folder of them."""
    kind = reader.get(f"{loader}.path", str, "json")
    files = reader.get(f"{loader}.data_files", str | list | dict)
    folder = reader.get(f"{loader}.data_dir", str) or reader.get(f"{loader}.dataset_dir", str)
    split = reader.get(f"{loader}.split", str)
    if isinstance(files, dict):
        asked = split or "train"
        if asked not in files:
            reader.refuse(
                f"{loader}.split must be one of data_files' ({', '.join(map(str, files))}), got {asked!r}", key
            )
            return []
        files = files[asked]
    elif split not in (None, "train"):
        reader.refuse(f"{loader}.split must be train where data_files names no split, got {split!r}", key)
        return []
    listed = [files] if isinstance(files, str) else list(files or [])
    listed = listed or ([folder] if folder else [] if kind in FORMATS else [kind])
    return [{"path": str(each), "format": FORMATS.get(kind, "auto")} for each in listed]
