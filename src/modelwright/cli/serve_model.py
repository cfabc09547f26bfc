"""From the options of ``modelwright serve`` to a model behind an application, once the server listens already."""

import json
import shlex
from contextlib import ExitStack
from dataclasses import replace

from modelwright.cli import terminal
from modelwright.cli.console import say
from modelwright.cli.serve_options import ServeOptions
from modelwright.errors import RequestError
from modelwright.server.admission import most_requests, on_a_thread
from modelwright.server.app import create_app
from modelwright.server.run import Application, Parts
from modelwright.server.served import Served
from modelwright.server.settings import ServerSettings
from modelwright.serving.defaults import engine_config
from modelwright.serving.load import pick_device, read_config
from modelwright.serving.merge_adapter import check_adapter
from modelwright.serving.opened import Named, Opened, find_model
from modelwright.serving.prompts import read_template, require_template, try_out
from modelwright.serving.published import left_out
from modelwright.serving.quiet import quieten_libraries
from modelwright.serving.ranks import Ranks
from modelwright.serving.warm_up import warm_up

STEPS = {"token_budget": None}
"""As long as the engine finds right for several who are served; see `modelwright.engine.step_tokens`."""


def check(options: ServeOptions) -> Named:
    """The checkpoint, without its weights; an error where it, or what goes with it, could not be served."""
    quieten_libraries()
    pick_device(options.machine.device)
    model = find_model(options.asked)
    if not model.checkpoint.draws_tokens:
        raise RequestError(f"{options.asked} is a {model.checkpoint.architecture}, which cannot be served")
    if options.adapter is not None:
        model = replace(model, checkpoint=model.checkpoint.with_adapter(options.adapter[1]))
    template = read_template(options.settings.chat_template)
    if template is not None:
        require_template(model.checkpoint, template)
    try_out(model.checkpoint, template)
    for adapter in model.checkpoint.adapters:
        check_adapter(adapter)
    engine_config(read_config(model.checkpoint), STEPS | options.engine.given())
    return model


def follow(options: ServeOptions) -> int:
    """Be one of the ranks that torchrun started besides the first; returns the exit status."""
    quieten_libraries()
    with Ranks(options.machine.tensor_parallel, options.machine.device, say) as ranks:
        return ranks.follow()


def load(options: ServeOptions, parts: Parts) -> Application:
    """From weights to an application that has answered already."""
    quieten_libraries()
    settings, machine = options.settings, options.machine
    settings = replace(settings, chat_template=read_template(settings.chat_template))
    with ExitStack() as stack:
        ranks = stack.enter_context(Ranks(machine.tensor_parallel, machine.device, say))
        limits = STEPS | options.engine.given()
        opened = terminal.load(check(options), "be served", limits, machine, ranks, settings.chat_template)
        warm_up(opened)
        engine = opened.engine
        batch = engine.config.max_batch
        queue = most_requests(settings, batch) - batch
        served = Served(
            loaded=opened.loaded,
            engine=on_a_thread(engine, settings),
            context=engine.context,
            max_batch=batch,
            names=options.names,
            any_name=settings.any_model_name,
        )
        page = engine.config.page_size
        app = create_app(served, settings, parts.metrics)
        held = stack.pop_all()

    def ended(whole: bool) -> None:
        if whole:
            ranks.let_go(engine)
        held.close()

    return Application(
        app=app,
        engine=served.engine,
        cache={"block_size": page, "num_gpu_blocks": engine.cache_tokens // page},
        lines=_lines(served, opened, settings, queue, len(parts.keys)),
        ended=ended,
    )


def _lines(served: Served, opened: Opened, settings: ServerSettings, queue: int, keys: int) -> tuple[str, ...]:
    """What is told when it is ready: what is served within which limits, and a line to try."""
    model = opened.loaded.model
    dtype = str(model.dtype).removeprefix("torch.")
    unheard = ", ".join(left_out(opened.loaded.checkpoint.folder))
    return (
        f"serving {', '.join(served.names)} at {{url}} ({dtype} on {model.device}): {served.context} tokens of "
        f"context, {opened.engine.cache_tokens} of cache, {served.max_batch} requests at once, {queue} waiting",
        *([f"generation_config.json sets {unheard}, which no answer here follows"] if unheard else []),
        f"try: {curl(served.name, settings, keys > 0)}",
    )


def curl(name: str, settings: ServerSettings, with_key: bool) -> str:
    """A line that asks the server something, once its ``{url}`` is filled in; a key is a variable of the shell."""
    body = {"model": name, "max_tokens": 20, "messages": [{"role": "user", "content": "Hello!"}]}
    words = ["curl"]
    if settings.uds is not None:
        words.append(f"--unix-socket {shlex.quote(settings.uds)} http://localhost{settings.root_path}")
    else:
        words.append("{url}")
    words[-1] += "/v1/chat/completions"
    if settings.tls_cert is not None:
        words.append(f"--cacert {shlex.quote(settings.tls_cert)}")
    if settings.tls_client_ca is not None:
        words.append("--cert YOURS.pem --key YOURS-key.pem")
    if with_key:
        words.append('-H "authorization: Bearer $MODELWRIGHT_API_KEY"')
    words.append(f"-H 'content-type: application/json' -d {shlex.quote(json.dumps(body))}")
    return " ".join(words)
