"""The options of ``modelwright evaluate``; its work is imported when it is chosen."""

from pathlib import Path
from typing import Annotated

from typer import Option

from modelwright.cli.evaluate_options import EvaluateOptions
from modelwright.cli.options import AsJson, Device, Dtype, Model


def evaluate(
    model: Model,
    data: Annotated[
        list[str] | None,
        Option(help="A file, folder or glob of held-out rows; repeat for more.", metavar="FILE", show_default=False),
    ] = None,
    format: Annotated[
        str | None, Option(help="The rows' format. Left out: found by the first row.", metavar="NAME")
    ] = None,
    labels: Annotated[
        str | None, Option(help="What of a chat counts: assistant, last or all. Left out: assistant.", metavar="WHICH")
    ] = None,
    seq_length: Annotated[
        int | None, Option(help="Tokens of the longest row. Left out: the model's own, 4096 at most.", metavar="N")
    ] = None,
    exact: Annotated[
        bool, Option("--exact", help="Also let the engine answer each row, and count the answers that are the row's.")
    ] = False,
    tasks: Annotated[
        str | None, Option(help="Tasks of lm-eval, with commas between them.", metavar="NAMES", show_default=False)
    ] = None,
    include_path: Annotated[
        Path | None, Option(help="A folder of tasks of your own, for lm-eval.", metavar="FOLDER")
    ] = None,
    fewshot: Annotated[int | None, Option(help="Examples before each question of a task.", metavar="N")] = None,
    limit: Annotated[int | None, Option(help="The first rows of each file or task.", metavar="N")] = None,
    output: Annotated[
        Path | None, Option("-o", "--output", help="Where all that lm-eval tells goes, as JSON.", metavar="FILE")
    ] = None,
    requests: Annotated[int | None, Option(help="Rows at once. Left out: 4.", metavar="N")] = None,
    adapter: Annotated[
        Path | None, Option(help="A folder of LoRA, to be folded into the weights.", metavar="FOLDER")
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Say how well a model foresees held-out rows, or what it scores at tasks of lm-eval."""
    options = EvaluateOptions(
        model=model,
        data=tuple(data or ()),
        format=format,
        labels=labels,
        seq_length=seq_length,
        exact=exact,
        tasks=tasks,
        include_path=include_path,
        fewshot=fewshot,
        limit=limit,
        output=output,
        requests=requests,
        adapter=adapter,
        dtype=dtype,
        device=device,
        as_json=as_json,
    )
    options.check()
    if options.tasks is not None:
        from modelwright.cli.evaluate_tasks import run_tasks

        run_tasks(options)
    else:
        from modelwright.cli.evaluate import run_evaluate

        run_evaluate(options)
