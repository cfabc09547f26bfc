"""``modelwright serve``: checked, or listening at once and loading beside it, which imports what takes long."""

import os
import shlex
import sys

from modelwright.cli.console import say
from modelwright.cli.serve_options import ServeOptions
from modelwright.server.auth import VARIABLE, Keys
from modelwright.server.origins import Origins
from modelwright.server.run import Application, Parts, check_open, serve
from modelwright.server.settings import ServerSettings
from modelwright.server.sockets import tls_context


def run_serve(options: ServeOptions) -> int:
    """Check or serve; returns the exit status."""
    settings = options.settings
    if _follows():
        from modelwright.cli.serve_model import follow

        return follow(options)
    keys = Keys(settings, os.environ)
    check_open(settings, keys)
    Origins(settings)
    tls_context(settings)
    _warn(settings)
    if options.check_only:
        from modelwright.cli.serve_model import check

        check(options)
        say(f"modelwright: {options.asked} can be served, with {len(keys) or 'no'} keys")
        return 0
    return serve(settings, options.names[0], lambda parts: _load(options, parts), say)


def _load(options: ServeOptions, parts: Parts) -> Application:
    from modelwright.cli.serve_model import load

    return load(options, parts)


def _follows() -> bool:
    """Whether torchrun started this process as another one than the first."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0"


def _warn(settings: ServerSettings) -> None:
    if any(word.partition("=")[0] == "--api-key" for word in sys.argv):
        say(f"modelwright: --api-key is seen by whoever lists processes; --api-key-file and {VARIABLE} are not")
    file = settings.api_key_file
    if file is not None and os.stat(file).st_mode & 0o077:
        say(f"modelwright: {file} may be read by others than its owner: chmod 600 {shlex.quote(file)}")
