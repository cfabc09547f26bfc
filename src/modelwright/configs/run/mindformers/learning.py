"""How a MindFormers run learns: epochs, batches, the wrapper around a step, the optimizer and its schedule."""

from collections.abc import Mapping
from typing import Any

from modelwright.configs.base import require
from modelwright.configs.run.learning import MINDFORMERS_SCHEDULES
from modelwright.configs.run.mindformers.reader import Reader

OPTIMIZERS = {
    "AdamW": "adamw",
    "FusedAdamW": "adamw",
    "FP32StateAdamWeightDecay": "adamw",
    "Adam": "adam",
    "SGD": "sgd",
    "Adagrad": "adagrad",
    "Adafactor": "adafactor",
}
"""MindFormers' optimizers, which it also finds in small letters, and ours."""
TEMPLATE = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "lr": 5e-5}
"""What its template says of an optimizer where the file has no such section."""
EPS = {"adamw": 1e-6, "adam": 1e-8, "adagrad": 1e-10, "adafactor": 1e-30}
"""What its optimizers take for an `eps` that their section lacks."""
NO_SCALE = "gradients of {dtype} need no loss scale: compute_dtype is no float16"


def read_learning(reader: Reader, model: Mapping[str, Any]) -> None:
    """`runner_config`, `runner_wrapper`, `optimizer`, `lr_schedule` and the loss; `model` is what `merge_run` gives."""
    reader.put("loss.per_token", reader.get("calculate_per_token_loss", bool, False))
    reader.put("loss.balance_scope", "micro_batch")
    reader.put("model.dtype", _dtype(model, "param_init_type"))
    reader.put("precision.compute", _dtype(model, "compute_dtype"))
    reader.put("epochs", max(1, reader.get("runner_config.epochs", int, 1)))
    stop = reader.get("runner_config.stop_step", int, 0)
    if stop > 0:
        reader.put("limits.stop", stop)
    _read_wrapper(reader, _dtype(model, "compute_dtype"))
    _read_optimizer(reader)
    _read_schedule(reader)


def _dtype(model: Mapping[str, Any], name: str) -> str:
    return str(model.get(name, "float16")).lower().rpartition(".")[2]


def _read_wrapper(reader: Reader, compute: str) -> None:
    clips = reader.get("runner_wrapper.use_clip_grad", bool, True)
    norm = reader.get("runner_wrapper.max_grad_norm", float, 1.0)
    reader.put("clip", norm if clips else None)
    if not clips and reader.has("runner_wrapper.max_grad_norm"):
        reader.idle["runner_wrapper.max_grad_norm"] = "use_clip_grad is False: gradients are not clipped"
    _read_loss_scale(reader, compute)
    spikes = reader.get("runner_wrapper.use_skip_data_by_global_norm", bool, False)
    threshold = reader.get("runner_wrapper.global_norm_spike_threshold", float, 3.0)
    if spikes:
        reader.put("limits.spike", threshold)
        reader.put("limits.spike_of", "norm")
    elif reader.has("runner_wrapper.global_norm_spike_threshold"):
        reader.idle["runner_wrapper.global_norm_spike_threshold"] = "use_skip_data_by_global_norm is False"


def _read_loss_scale(reader: Reader, compute: str) -> None:
    path = "runner_wrapper.scale_sense"
    scale = reader.get(path, float | dict)
    if isinstance(scale, dict):
        kind = reader.get(f"{path}.type", str, "DynamicLossScaleUpdateCell")
        known = ("DynamicLossScaleUpdateCell", "FixedLossScaleUpdateCell", "AdaptiveLossScaleUpdateCell")
        require(kind in known, _not_one_of(path, kind, known))
        values = {
            "init": reader.get(f"{path}.loss_scale_value", float, 65536.0),
            "factor": reader.get(f"{path}.scale_factor", float, 2.0),
            "window": reader.get(f"{path}.scale_window", int, 1000),
            "fixed": kind == "FixedLossScaleUpdateCell",
        }
        values["fixed"] = values["fixed"] or values["factor"] <= 1  # which it multiplies and divides by to no end
    else:
        values = {"init": 65536.0} if scale is None else {"init": scale, "fixed": True}
    if compute == "float16":
        reader.put("precision.scale", values)
    elif scale is not None:
        keys = [f"{path}.{key}" for key in scale] if isinstance(scale, dict) else [path]
        reader.idle |= dict.fromkeys(keys, NO_SCALE.format(dtype=compute))


def _read_optimizer(reader: Reader) -> None:
    known = {name.lower(): ours for name, ours in OPTIMIZERS.items()}
    kind = reader.get("optimizer.type", str, "AdamW")
    name = known.get(kind.lower())
    if name is None:
        reader.refuse(_not_one_of("optimizer", kind, OPTIMIZERS), "optimizer.name")
        name = "adamw"
    given = reader.has("optimizer")
    eps = reader.get("optimizer.eps", float, EPS.get(name, 1e-8) if given else TEMPLATE["eps"])
    betas = reader.get("optimizer.betas", tuple[float, float])
    first, second = TEMPLATE["betas"]
    each = (reader.get("optimizer.beta1", float, first), reader.get("optimizer.beta2", float, second))
    reader.put("optimizer.name", name)
    reader.put("optimizer.betas", list(betas or each))
    reader.put("optimizer.eps", eps)
    reader.put("optimizer.weight_decay", reader.get("optimizer.weight_decay", float, TEMPLATE["weight_decay"]))
    reader.put("optimizer.decay", "matrices_and_routers")
    reader.put("optimizer.momentum", reader.get("optimizer.momentum", float, 0.0))
    rate = reader.get("lr_schedule.learning_rate", float, reader.get("lr_schedule.base_lr", float))
    stated = reader.get("optimizer.learning_rate", float)
    reader.put("optimizer.lr", next((each for each in (rate, stated) if each is not None), TEMPLATE["lr"]))
    if rate is not None and stated is not None:
        reader.idle["optimizer.learning_rate"] = "lr_schedule.learning_rate decides"


def _read_schedule(reader: Reader) -> None:
    if not reader.has("lr_schedule"):
        constant = reader.get("optimizer.learning_rate", float) is not None
        reader.put("schedule.name", "ConstantWarmUpLR" if constant else "CosineWithWarmUpLR")
        return
    kind = reader.get("lr_schedule.type", str, "CosineWithWarmUpLR")
    names = {name.lower(): name for name in MINDFORMERS_SCHEDULES} | {"polynomial": "PolynomialWithWarmUpLR"}
    name = names.get(kind.lower())
    if name is None:
        reader.refuse(_not_one_of("lr_schedule", kind, MINDFORMERS_SCHEDULES), "schedule.name")
        return
    reader.put("schedule.name", name)
    total = reader.get("lr_schedule.total_steps", int, -1)
    if total > 0:
        reader.put("schedule.total", total)
    _put_length(reader, "schedule.warmup", "warmup_ratio", "warmup_steps", 0)
    reader.put("schedule.warmup_init", reader.get("lr_schedule.warmup_lr_init", float, 0.0))
    least = 1e-7 if name in ("PolynomialWithWarmUpLR", "WarmUpStableDecayLR") else 0.0
    ends = ("lr_end1" if name == "ConstantWithCoolDownLR" else "lr_end", "eta_min")
    end = next((value for key in ends if (value := reader.get(f"lr_schedule.{key}", float)) is not None), least)
    reader.put("schedule.end", end)
    if name == "WarmUpStableDecayLR":
        _put_length(reader, "schedule.decay_start", "decay_start_ratio", "decay_start_steps", None)
    elif name == "CosineAnnealingLR":
        reader.put("schedule.decay", reader.get("lr_schedule.t_max", int))
    elif name == "CosineAnnealingWarmRestarts":
        reader.put("schedule.decay", reader.get("lr_schedule.t_0", int))
        reader.put("schedule.cycles", reader.get("lr_schedule.t_mult", int, 1))
    else:
        _put_length(reader, "schedule.decay", "decay_ratio", "decay_steps", None)
    if name == "ConstantWithCoolDownLR":
        reader.put("schedule.keep", reader.get("lr_schedule.keep_steps", int, 0))
        reader.put("schedule.end_after", reader.get("lr_schedule.lr_end2", float))
        reader.get("lr_schedule.final_steps", int)
    cycles = reader.get("lr_schedule.num_cycles", float)
    if cycles is not None:
        reader.put("schedule.cycles", cycles)
    reader.put("schedule.power", reader.get("lr_schedule.power", float, 1.0))


def _put_length(reader: Reader, key: str, ratio: str, steps: str, default: int | None) -> None:
    """Set a length, of which the share of the run counts where both are given."""
    share = reader.get(f"lr_schedule.{ratio}", float)
    count = reader.get(f"lr_schedule.{steps}", int, default)
    if share is not None:
        require(0 <= share < 1, f"lr_schedule.{ratio} must be in [0, 1), got {share}")
        if reader.has(f"lr_schedule.{steps}"):
            reader.idle[f"lr_schedule.{steps}"] = f"lr_schedule.{ratio} decides"
    value = count if share is None else share
    if value is not None:
        reader.put(key, value)


def _not_one_of(section: str, kind: str, known: Any) -> str:
    return f'{section}.type "{kind}" is not one of {", ".join(known)}'
