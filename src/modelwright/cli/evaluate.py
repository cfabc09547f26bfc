"""``modelwright evaluate --data``: the loss of held-out rows, read and encoded as in training."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelwright.cli.console import say, write
from modelwright.cli.evaluate_options import EvaluateOptions
from modelwright.configs.run import DataPart, SourcePart, longest_row
from modelwright.data.batches import HeldOut, held_out
from modelwright.errors import RequestError
from modelwright.serving.held_out_answers import answer_encoder_for, answer_rows, encoder_for, exact_share
from modelwright.serving.load import Loaded, load_network
from modelwright.serving.opened import find_model
from modelwright.serving.quiet import quieten_libraries
from modelwright.training.build import unread_of
from modelwright.training.evaluation import held_out_loss

_AT_ONCE = 4
_ANSWERS_AT_ONCE = 64


def run_evaluate(options: EvaluateOptions) -> None:
    """Measure each file, and print a line for each, or one JSON object."""
    quieten_libraries()
    checkpoint = find_model(options.model).checkpoint
    if not checkpoint.draws_tokens:
        raise RequestError(f"{options.model} is a {checkpoint.architecture}, which foresees no tokens")
    if options.adapter is not None:
        checkpoint = checkpoint.with_adapter(options.adapter)
    loaded = load_network(checkpoint, dtype=options.dtype, device=options.device)
    part = _data(options, loaded)
    encoder = encoder_for(loaded.processor, part, loaded.model)
    sets = held_out(part, encoder, options.requests or _AT_ONCE, base=Path.cwd(), limit=options.limit)
    for name, held in sets.items():
        if (sentence := unread_of(name, held.source.unread())) is not None:
            say(sentence)
    asking = answer_encoder_for(loaded.processor, part, loaded.model) if options.exact else None
    found = {name: _measured(name, passes, loaded, asking) for name, passes in sets.items()}
    if options.as_json:
        write(json.dumps(found, indent=2) + "\n")
        return
    for name, values in found.items():
        write(f"{name}: {_line(values)}\n")


def _data(options: EvaluateOptions, loaded: Loaded) -> DataPart:
    sources = tuple(SourcePart(path=path, format=options.format or "auto") for path in options.data)
    return DataPart(
        eval=sources,
        seq_length=options.seq_length or longest_row(loaded.model.config),
        labels=options.labels or "assistant",  # pyright: ignore[reportArgumentType]
        pack="none",
        workers=0,
    )


def _measured(name: str, passes: HeldOut, loaded: Loaded, asking: Any) -> dict[str, Any]:
    """The loss of a set and, where an encoder of questions is given, the share of exact answers."""
    found = held_out_loss(loaded.model, passes, name).as_row()
    if asking is not None:
        answers = []
        for start in range(0, passes.rows, _ANSWERS_AT_ONCE):
            rows = [passes.source[row] for row in range(start, min(start + _ANSWERS_AT_ONCE, passes.rows))]
            answers += answer_rows(loaded.model, loaded.processor, asking, rows)
        found |= {"exact": exact_share(answers), "rows": len(answers)}
    return found


def _line(values: Mapping[str, Any]) -> str:
    line = f"loss {values['loss']:.4f}  perplexity {values['perplexity']:.3f}  over {values['labels']:,} labels"
    if values.get("exact") is not None:
        line += f"  exact {values['exact']:.1%} of {values['rows']:,} rows"
    return line
