"""What a MindFormers run measures, saves and says: callbacks, evaluation and the profiler."""

from modelwright.configs.run.mindformers.reader import Reader

METRICS = ("PerplexityMetric",)


def read_callbacks(reader: Reader) -> None:
    """The monitors of losses and checkpoints, and the others that act."""
    if reader.has("callbacks"):
        every = reader.of_entry("callbacks", "MFLossMonitor", "per_print_times", int, 1)
        reader.put("log.every", max(1, every))
        _read_checkpoints(reader)
    if (stop := reader.of_entry("callbacks", "TrainCallBack", "stop_step", int)) is not None and stop > 0:
        reader.put("limits.stop", stop)
    if reader.entry("callbacks", "ProfileMonitor") is not None:
        _put_profile(
            reader,
            reader.of_entry("callbacks", "ProfileMonitor", "start_step", int, 1),
            reader.of_entry("callbacks", "ProfileMonitor", "stop_step", int, 10),
            reader.of_entry("callbacks", "ProfileMonitor", "profile_memory", bool, True),
        )


def _read_checkpoints(reader: Reader) -> None:
    """MindFormers writes no checkpoints without its monitor; the end of a run is saved all the same."""
    kind = "CheckpointMonitor"
    if reader.entry("callbacks", kind) is None:
        reader.put("checkpoint.every", None)
        return

    def said(key: str, expected: type, default: object = None) -> object:
        return reader.of_entry("callbacks", kind, key, expected, default)

    steps, seconds = said("save_checkpoint_steps", int, 1), said("save_checkpoint_seconds", int, 0)
    reader.put("checkpoint.every", steps or None)
    reader.put("checkpoint.seconds", seconds or None)
    reader.put("checkpoint.keep", said("keep_checkpoint_max", int, 5) or 5)
    reader.put("checkpoint.async", said("async_save", bool, False))
    if said("enc_key", str):
        reader.refuse("enc_key: encrypted checkpoints are not written")


def read_evaluation(reader: Reader) -> None:
    """Every how many steps or epochs held-out rows are measured, and by what."""
    only = reader.get("run_mode", str, "train") == "eval"
    reader.put("evaluate.only", only)
    asked = reader.get("do_eval", bool, False)
    intervals = {"eval_step_interval": "evaluate.every", "eval_epoch_interval": "evaluate.epochs"}
    for path, key in intervals.items():
        inner = reader.of_entry("callbacks", "EvalCallBack", path.removeprefix("eval_"), int)
        said = reader.get(path, int, 100 if path == "eval_step_interval" else -1) if inner is None else inner
        if asked and not only:
            reader.put(key, said if said > 0 else None)
        elif reader.has(path):
            reader.idle[path] = "do_eval is False"
    metric = reader.get("metric.type", str, "PerplexityMetric")
    if not (asked or only):
        if reader.has("metric.type"):
            reader.idle["metric.type"] = "do_eval is False"
    elif metric not in METRICS:
        reader.refuse(f'metric.type "{metric}" is not one of {", ".join(METRICS)}')


def read_profile(reader: Reader) -> None:
    """The steps that the profiler watches."""
    first, last = reader.get("profile_start_step", int, 1), reader.get("profile_stop_step", int, 10)
    memory = reader.get("profile_memory", bool, True)
    if reader.get("profile", bool, False):
        _put_profile(reader, first, last, memory)
        return
    names = ("profile_start_step", "profile_stop_step", "profile_memory")
    reader.idle |= {name: "profile is False" for name in names if reader.has(name)}


def _put_profile(reader: Reader, first: int, last: int, memory: bool) -> None:
    reader.put("log.profile", {"first": max(1, first), "last": max(1, first, last), "memory": memory})
