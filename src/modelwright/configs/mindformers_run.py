"""The keys of a MindFormers run file: which act in the model and in the trainer, and what the others are about."""

import copy
import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from modelwright.configs.base import MISSPELT

MODEL = "model"
IN_THE_MODEL = frozenset(
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
_MONITOR = "callbacks.CheckpointMonitor"
_LOADER = tuple(
    f"data_loader.{name}"
    for name in (
        "config.data_path",
        "data_dir",
        "data_files",
        "data_path",
        "dataset_dir",
        "dataset_files",
        "path",
        "split",
        "type",
    )
)
IN_THE_TRAINER = frozenset(
    {
        "callbacks.EvalCallBack.epoch_interval",
        "callbacks.EvalCallBack.step_interval",
        "callbacks.EvalCallBack.type",
        "callbacks.MFLossMonitor.per_print_times",
        "callbacks.MFLossMonitor.type",
        "callbacks.MoEDropRateCallback",
        "callbacks.ProfileMonitor.profile_memory",
        "callbacks.ProfileMonitor.start_step",
        "callbacks.ProfileMonitor.stop_step",
        "callbacks.ProfileMonitor.type",
        "callbacks.TopkBiasBalanceCallback",
        "callbacks.TrainCallBack.stop_step",
        "callbacks.TrainCallBack.type",
        f"{_MONITOR}.async_save",
        f"{_MONITOR}.enc_key",
        f"{_MONITOR}.keep_checkpoint_max",
        f"{_MONITOR}.save_checkpoint_seconds",
        f"{_MONITOR}.save_checkpoint_steps",
        f"{_MONITOR}.type",
        "data_skip_steps",
        "do_eval",
        "eval_epoch_interval",
        "eval_step_interval",
        "ignore_data_skip",
        "load_checkpoint",
        "load_ckpt_format",
        "lr_schedule.base_lr",
        "lr_schedule.decay_ratio",
        "lr_schedule.decay_start_ratio",
        "lr_schedule.decay_start_steps",
        "lr_schedule.decay_steps",
        "lr_schedule.eta_min",
        "lr_schedule.keep_steps",
        "lr_schedule.learning_rate",
        "lr_schedule.lr_end",
        "lr_schedule.lr_end1",
        "lr_schedule.lr_end2",
        "lr_schedule.num_cycles",
        "lr_schedule.power",
        "lr_schedule.t_0",
        "lr_schedule.t_max",
        "lr_schedule.t_mult",
        "lr_schedule.total_steps",
        "lr_schedule.type",
        "lr_schedule.warmup_lr_init",
        "lr_schedule.warmup_ratio",
        "lr_schedule.warmup_steps",
        "metric.type",
        "micro_batch_interleave_num",
        "only_save_strategy",
        "optimizer.beta1",
        "optimizer.beta2",
        "optimizer.betas",
        "optimizer.eps",
        "optimizer.learning_rate",
        "optimizer.momentum",
        "optimizer.type",
        "optimizer.weight_decay",
        "output_dir",
        "parallel.parallel_optimizer_config.optimizer_weight_shard_size",
        "parallel.pipeline_config.pipeline_interleave",
        "parallel.pipeline_config.pipeline_scheduler",
        "pretrained_model_dir",
        "processor.tokenizer.tokenizer_file",
        "processor.tokenizer.vocab_file",
        "profile",
        "profile_memory",
        "profile_start_step",
        "profile_stop_step",
        "resume_training",
        "run_mode",
        "runner_config.epochs",
        "runner_config.stop_step",
        "runner_wrapper.global_norm_spike_threshold",
        "runner_wrapper.max_grad_norm",
        "runner_wrapper.scale_sense",
        "runner_wrapper.use_clip_grad",
        "runner_wrapper.use_skip_data_by_global_norm",
        "seed",
        "use_parallel",
        *(f"train_dataset.{name}" for name in ("data_loader.shuffle", "drop_remainder", "shuffle")),
        *(f"train_dataset.{name}" for name in ("num_parallel_workers", "repeat")),
        *(f"{section}.{name}" for section in ("train_dataset", "eval_dataset") for name in _LOADER),
    }
)
"""What `translate` takes into a `RunConfig` beside it, whole entries of callbacks and single keys."""
ACTING = IN_THE_MODEL | IN_THE_TRAINER

BATCHES = "runner_config.batch_size decides"
CHECKPOINTS = "it is about the layout of MindSpore's checkpoints, and ours are read whatever the layout"
HARDWARE = "it watches one vendor's hardware"
METRICS = "metrics.jsonl holds these numbers whether it is there or not"
PICTURES = "MindFormers scales rates by layers for towers of pictures, and resets it for the rest"
ROWS = "rows are read here without it"
RUNTIME = "it is about MindSpore's runtime"
SERVICE = "it is about a service of MindFormers' vendor"
SIGNALS = "a run always ends with a checkpoint when a signal asks it to"
TASK = "the data set's own section says it"
TOKENIZER = "the tokenizer's own files say it"
TUNING = "it is about MindFormers' own tuning of layouts"

ABOUT: Mapping[str, str] = {
    "auto_trans_ckpt": CHECKPOINTS,
    "auto_tune": TUNING,
    "autotune_per_step": TUNING,
    "balanced_load": CHECKPOINTS,
    "callbacks.CheckpointMonitor.checkpoint_format": CHECKPOINTS,
    "callbacks.CheckpointMonitor.integrated_save": CHECKPOINTS,
    "callbacks.CheckpointMonitor.prefix": "a checkpoint is called by its step",
    "callbacks.CheckpointMonitor.remove_redundancy": CHECKPOINTS,
    "callbacks.CheckpointMonitor.save_trainable_params": "the whole state is saved, so that a run goes on bit for bit",
    "callbacks.ColdHotExpertMonitor": HARDWARE,
    "callbacks.ObsMonitor": SERVICE,
    "callbacks.OnRequestExit": SIGNALS,
    "callbacks.ProfileMonitor": RUNTIME,
    "callbacks.SDCMonitor": HARDWARE,
    "callbacks.StressDetectCallBack": HARDWARE,
    "callbacks.StressTestModelMonitor": HARDWARE,
    "callbacks.SummaryMonitor": METRICS,
    "callbacks.TrainingStateMonitor": METRICS,
    "ckpt_use_legacy_format": CHECKPOINTS,
    "context": RUNTIME,
    "eval_callbacks": SERVICE,
    "eval_dataset": "held-out rows are read once, in order, without it",
    "eval_dataset_task": TASK,
    "exclude_cann_cpu": RUNTIME,
    "filepath_prefix": TUNING,
    "infer_precision_sync": RUNTIME,
    "init_start_profile": RUNTIME,
    "input_data": "it is what a prediction is asked, and no part of a model",
    "layer_decay": PICTURES,
    "layer_scale": PICTURES,
    "load_ckpt_async": CHECKPOINTS,
    "lr_scale": PICTURES,
    "lr_scale_factor": PICTURES,
    "lr_schedule.final_steps": "after lr_end2 is reached it stays whatever the number of steps",
    "max_device_memory": RUNTIME,
    "model.arch": "it names a class of MindFormers' own, whose model is taken for a Llama's",
    "model.model_config.auto_map": "nothing is imported because of it",
    "monitor_config": METRICS,
    "mstx": RUNTIME,
    "parallel.auto_pipeline": RUNTIME,
    "parallel.dataset_strategy": RUNTIME,
    "parallel.enable_alltoall": RUNTIME,
    "parallel.full_batch": RUNTIME,
    "parallel.gradients_mean": RUNTIME,
    "parallel.loss_repeated_mean": RUNTIME,
    "parallel.parallel_mode": "the degrees of parallel_config decide",
    "parallel.parallel_optimizer_config.parallel_optimizer_threshold": RUNTIME,
    "parallel.search_mode": RUNTIME,
    "parallel.strategy_ckpt_config": CHECKPOINTS,
    "parallel.strategy_ckpt_load_file": CHECKPOINTS,
    "parallel.strategy_ckpt_save_file": CHECKPOINTS,
    "print_separate_loss": METRICS,
    "processor": TOKENIZER,
    "profile_communication": RUNTIME,
    "profile_level": RUNTIME,
    "profile_pipeline": RUNTIME,
    "profile_rank_ids": RUNTIME,
    "profiler_level": RUNTIME,
    "remote_save_url": SERVICE,
    "runner_config.num_classes": RUNTIME,
    "runner_config.sink_mode": RUNTIME,
    "runner_config.sink_size": RUNTIME,
    "runner_wrapper.enable_check_overflow": "a loss that is no number is always found",
    "runner_wrapper.local_norm": METRICS,
    "runner_wrapper.type": "it names the class that MindFormers builds",
    "save_file": CHECKPOINTS,
    "src_strategy_path_or_dir": CHECKPOINTS,
    "train_dataset": ROWS,
    "train_dataset.batch_size": BATCHES,
    "train_dataset.input_columns": "columns are found by their names",
    "train_dataset.prefetch_size": "workers make two steps ahead",
    "train_dataset_task": TASK,
    "train_precision_sync": RUNTIME,
    "trainer": "it names the class that MindFormers builds",
    "transform_process_num": CHECKPOINTS,
    "use_graceful_exit": SIGNALS,
    "use_legacy": "it names a generation of MindFormers' code",
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
        if not _acts(path) and (not path.startswith("model.model_config.") or _within(path, ABOUT)):
            found[path] = _about(path)
    return found


def rest_of_run(run: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the run without the sections that `merge_run` takes whole, for the way back."""
    taken = {MODEL, *(name for name in IN_THE_MODEL if "." not in name)}
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


def _acts(path: str) -> bool:
    """Whether a key acts; one that is named alone in `ABOUT` does not, though it stands in a section that does."""
    acting, about = _within(path, ACTING), _within(path, ABOUT)
    return acting is not None and len(acting) > len(about or "")


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
