"""``modelwright evaluate --tasks``: lm-eval's tasks on a model of ours, which is handed to it as an object."""

import json
import logging
from importlib import import_module
from typing import Any

from modelwright.cli.console import write
from modelwright.cli.evaluate_options import EvaluateOptions
from modelwright.cli.files import check_place, write_whole
from modelwright.errors import RequestError
from modelwright.serving.load import load
from modelwright.serving.merge_adapter import merge_adapter
from modelwright.serving.names import model_path
from modelwright.serving.quiet import quieten_libraries


def run_tasks(options: EvaluateOptions) -> None:
    """Let lm-eval ask, and print what it found: a line for each measure, or the object of its results."""
    quieten_libraries()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if options.output is not None:
        check_place(options.output, f"--output {options.output}")
    results = _evaluated(options)
    if options.output is not None:
        text = json.dumps(results, indent=2, default=str, ensure_ascii=False)
        write_whole(options.output, text.encode(), f"--output {options.output}")
    if options.as_json:
        write(json.dumps(results["results"], indent=2, default=str) + "\n")
    else:
        write("".join(f"{line}\n" for line in task_lines(results["results"])))


def _evaluated(options: EvaluateOptions) -> dict[str, Any]:
    assert options.tasks is not None
    lm_eval: Any = import_module("lm_eval")
    manager: Any = import_module("lm_eval.tasks").TaskManager(
        include_path=None if options.include_path is None else str(options.include_path)
    )
    names = [name.strip() for name in options.tasks.split(",") if name.strip()]
    unknown = [name for name in names if not manager.match_tasks([name])]
    if unknown or not names:
        raise RequestError(
            f"--tasks must name tasks of lm-eval or of --include-path, got {', '.join(unknown) or 'none'}"
        )
    loaded = load(model_path(options.model), dtype=options.dtype, device=options.device)
    if loaded.tokenizer is None:
        raise RequestError(f"--tasks needs a model that reads text, and the tokens of {options.model} are colours")
    if options.adapter is not None:
        merge_adapter(loaded.model, options.adapter)
    asked: Any = import_module("lm_eval.models.huggingface").HFLM(
        pretrained=loaded.model,
        tokenizer=loaded.tokenizer,
        backend="causal",
        batch_size=options.requests or 4,
        max_length=loaded.model.config.get_text_config().max_position_embeddings,
    )
    return lm_eval.simple_evaluate(
        model=asked,
        tasks=names,
        num_fewshot=options.fewshot,
        limit=options.limit,
        task_manager=manager,
        log_samples=options.output is not None,
        bootstrap_iters=0,
    )


def task_lines(results: dict[str, dict[str, Any]]) -> list[str]:
    """``task: measure 0.8123 (+- 0.0045)`` for each number of lm-eval's results."""
    lines = []
    for task, values in results.items():
        for key, value in values.items():
            name, _, chosen = key.partition(",")
            if name.endswith("_stderr") or not isinstance(value, int | float) or isinstance(value, bool):
                continue
            if not chosen:
                continue
            error = values.get(f"{name}_stderr,{chosen}")
            said = f" (+- {error:.4f})" if isinstance(error, float) else ""
            kind = "" if chosen == "none" else f" [{chosen}]"
            lines.append(f"{task}: {name}{kind} {value:.4f}{said}")
    return lines
