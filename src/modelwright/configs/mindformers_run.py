"""The keys of a MindFormers run file that say nothing of the model, each with what it is about; nothing is run here."""

import copy
import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from modelwright.configs.base import MISSPELT

MODEL = "model"
ACTING = frozenset(
    {
        "calculate_per_token_loss",
        "moe_config",
        "parallel.enable_parallel_optimizer",
        "parallel.parallel_optimizer_config.gradient_accumulation_shard",
        "parallel_config",
        "recompute_config",
        "runner_config.batch_size",
        "runner_config.gradient_accumulation_steps",
        "runner_config.mini_batch_size",
        "swap_config",
    }
)
"""What `merge_run` takes into the model's config, whole sections and single keys."""

TRAINER = "only the trainer reads it"
DATA = "only the trainer reads it: rows and how they are read"
REPORTS = "only the trainer reads it: what a run writes and measures"
RUNTIME = "it is about MindSpore's runtime"
CHECKPOINTS = "it is about the layout of MindSpore's checkpoints, and ours are read whatever the layout"
SERVICE = "it is about a service of MindFormers' vendor"
TUNING = "it is about MindFormers' own tuning of layouts"
PICTURES = "MindFormers scales rates by layers for towers of pictures, and resets it for the rest"
TOKENIZER = "the tokenizer's own files say it"

ABOUT: Mapping[str, str] = {
    "auto_trans_ckpt": CHECKPOINTS,
    "auto_tune": TUNING,
    "autotune_per_step": TUNING,
    "callbacks": REPORTS,
    "context": RUNTIME,
    "data_skip_steps": DATA,
    "do_eval": TRAINER,
    "eval_callbacks": REPORTS,
    "eval_dataset": DATA,
    "eval_dataset_task": DATA,
    "eval_epoch_interval": TRAINER,
    "eval_step_interval": TRAINER,
    "exclude_cann_cpu": RUNTIME,
    "filepath_prefix": TUNING,
    "ignore_data_skip": DATA,
    "infer_precision_sync": RUNTIME,
    "init_start_profile": REPORTS,
    "input_data": "it is what a prediction is asked, and no part of a model",
    "layer_decay": PICTURES,
    "layer_scale": PICTURES,
    "load_checkpoint": "no weights are looked for where another machine had them",
    "load_ckpt_async": CHECKPOINTS,
    "load_ckpt_format": CHECKPOINTS,
    "lr_scale": PICTURES,
    "lr_scale_factor": PICTURES,
    "lr_schedule": TRAINER,
    "max_device_memory": RUNTIME,
    "metric": REPORTS,
    "micro_batch_interleave_num": TRAINER,
    "model.arch": "it names a class of MindFormers' own, whose model is taken for a Llama's",
    "model.model_config.auto_map": "nothing is imported because of it",
    "monitor_config": REPORTS,
    "mstx": REPORTS,
    "only_save_strategy": CHECKPOINTS,
    "optimizer": TRAINER,
    "output_dir": TRAINER,
    "parallel.auto_pipeline": RUNTIME,
    "parallel.dataset_strategy": RUNTIME,
    "parallel.enable_alltoall": RUNTIME,
    "parallel.full_batch": RUNTIME,
    "parallel.gradients_mean": RUNTIME,
    "parallel.loss_repeated_mean": RUNTIME,
    "parallel.parallel_mode": "the degrees of parallel_config decide",
    "parallel.parallel_optimizer_config.optimizer_weight_shard_size": TRAINER,
    "parallel.parallel_optimizer_config.parallel_optimizer_threshold": RUNTIME,
    "parallel.pipeline_config": TRAINER,
    "parallel.search_mode": RUNTIME,
    "parallel.strategy_ckpt_config": CHECKPOINTS,
    "parallel.strategy_ckpt_load_file": CHECKPOINTS,
    "parallel.strategy_ckpt_save_file": CHECKPOINTS,
    "pretrained_model_dir": "no weights are looked for where another machine had them",
    "processor": TOKENIZER,
    "profile": REPORTS,
    "profile_communication": REPORTS,
    "profile_memory": REPORTS,
    "profile_start_step": REPORTS,
    "profile_stop_step": REPORTS,
    "profiler_level": REPORTS,
    "remote_save_url": SERVICE,
    "resume_training": TRAINER,
    "run_mode": "the command that is typed decides",
    "runner_config": TRAINER,
    "runner_wrapper": TRAINER,
    "seed": TRAINER,
    "src_strategy_path_or_dir": CHECKPOINTS,
    "train_dataset": DATA,
    "train_dataset_task": DATA,
    "train_precision_sync": RUNTIME,
    "trainer": "it names the class that MindFormers builds",
    "transform_process_num": CHECKPOINTS,
    "use_graceful_exit": TRAINER,
    "use_legacy": "it names a generation of MindFormers' code",
    "use_parallel": "the degrees of parallel_config decide",
}
"""What a key or section of a run that changes nothing on torch is about, by its path; the longest path counts."""
LLAMAS = ("LlamaForCausalLM", "ParallelLlamaForCausalLM")
"""The classes of MindFormers that are a Llama and nothing else."""
MISPRINTS: Mapping[str, str] = {"CheckpointMointor": "CheckpointMonitor"}
"""Names that MindFormers' own files misspell, and what they mean."""


def keys_without_effect(run: Mapping[str, Any]) -> dict[str, str]:
    """Each key of a run that is no part of its model's config, by its path with dots, and why it changes nothing.

    Entries of a list of callbacks go by their type. A key that no run of MindFormers is known to have is listed too,
    with the key that it resembles.
    """
    found = {}
    for path, value in _paths(run):
        if path == "model.arch.type" and value in LLAMAS:
            continue
        if not _within(path, ACTING) and (not path.startswith("model.model_config.") or _within(path, ABOUT)):
            found[path] = _about(path)
    return found


def rest_of_run(run: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the run without the sections that `merge_run` takes whole, for the way back."""
    taken = {MODEL, *(name for name in ACTING if "." not in name)}
    return copy.deepcopy({name: section for name, section in run.items() if name not in taken})


def as_meant(name: Any) -> Any:
    """The name that a misprint of MindFormers' means; any other as it is."""
    return MISPRINTS.get(name, name) if isinstance(name, str) else name


def _paths(section: Any, within: str = "") -> Iterator[tuple[str, Any]]:
    """The path of every value that is no section, and the value."""
    if isinstance(section, Mapping) and section:
        for name, inside in section.items():
            yield from _paths(inside, f"{within}{name}.")
    elif (
        isinstance(section, list) and section and all(isinstance(each, Mapping) and "type" in each for each in section)
    ):
        for each in section:
            yield from _paths(each, f"{within}{as_meant(each['type'])}.")
    else:
        yield within[:-1], section


def _within(path: str, names: Any) -> str | None:
    """The longest of `names` that is the path or a section around it."""
    parts = path.split(".")
    return next((name for end in range(len(parts), 0, -1) if (name := ".".join(parts[:end])) in names), None)


def _about(path: str) -> str:
    if (known := _within(path, ABOUT)) is not None:
        return ABOUT[known]
    known, first = [*ABOUT, *ACTING], path.partition(".")[0]
    near = [match for name in (path, first) for match in difflib.get_close_matches(name, known, n=1, cutoff=MISSPELT)]
    return "no key of a run that is known here" + (f'; did you mean "{near[0]}"?' if near else "")
