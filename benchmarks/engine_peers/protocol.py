"""How a contestant is asked: a JSON object a line on stdin, an answer a line on stdout; it knows no cases."""

import json
import os
import resource
import sys
import traceback
from pathlib import Path
from typing import Any


def serve(worker: Any) -> None:
    """Answer until stdin ends. A request is ``{"do": method, ...}`` with the method's arguments.

    The answer is what the method returns, a dict, with ``peak_gb``, the most memory that the process ever held; or
    ``{"error": sentence}``. Whatever else the process prints goes to stderr.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request) or {}
            answer |= {"peak_gb": peak_gb()}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def peak_gb() -> float:
    """The most memory that this process held, mapped files included.

    Linux hands `ru_maxrss` on from the process that started this one, so there its own mark is read.
    """
    status = Path("/proc/self/status")
    if status.exists():
        said = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(said["VmHWM"].split()[0]) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
