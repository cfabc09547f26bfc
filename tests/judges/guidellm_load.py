"""guidellm's load on the server: each of its request formats and profiles, and what it then says of every request.

Its books sometimes close with one request that is still being processed there, though its answer has come: whether all
are answered is asked of the server's own count.

python -m venv JUDGE && JUDGE/bin/pip install 'guidellm[vision]'
JUDGE/bin/python -m tests.judges.guidellm_load
"""

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.judges.server import KEY, ROOT, Checks, server, status

NANO = ROOT / "src" / "modelwright" / "zoo" / "vl2-nano"
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
DRAWN, COUNT = 16, 32
TEXT = f"kind=synthetic_text,prompt_tokens=48,output_tokens={DRAWN}"
RUNS: dict[str, tuple[str, str, str, str]] = {
    "chat, one at a time": (CHAT, "", "kind=synchronous", TEXT),
    "chat, 4 in flight": (CHAT, "", "kind=concurrent,streams=4", TEXT),
    "chat, 16 in flight": (CHAT, "", "kind=concurrent,streams=16", TEXT),
    "chat, at once": (CHAT, "", "kind=throughput,max_concurrency=32", TEXT),
    "chat, by chance": (CHAT, "", "kind=poisson,rate=20", TEXT),
    "chat, whole answers": (CHAT, ",stream=false", "kind=concurrent,streams=4", TEXT),
    "chat of three turns": (CHAT, "", "kind=concurrent,streams=4", f"{TEXT},turns=3"),
    "completions": (COMPLETIONS, "", "kind=concurrent,streams=4", TEXT),
    "completions, whole": (COMPLETIONS, ",stream=false", "kind=concurrent,streams=4", TEXT),
    "responses": (RESPONSES, "", "kind=concurrent,streams=4", TEXT),
    "responses, whole": (RESPONSES, ",stream=false", "kind=concurrent,streams=4", TEXT),
    "responses of three turns": (RESPONSES, "", "kind=concurrent,streams=4", f"{TEXT},turns=3"),
    "pictures": (CHAT, "", "kind=concurrent,streams=4", "kind=synthetic_image,width=96,height=64,format=png"),
}
"""Of each: the request format, more of the backend, the profile, the data."""


def run(url: str, report: Path, format: str, more: str, profile: str, data: str) -> dict[str, Any]:
    """What guidellm reports of one run."""
    command = [str(Path(sys.executable).with_name("guidellm")), "run", "--disable-console"]
    backend = f"kind=openai_http,target={url},api_key={KEY},model=vl2-nano,request_format={format}{more}"
    command += ["--backend", backend]
    command += ["--profile", profile, "--constraint", f"kind=max_requests,count={COUNT}"]
    command += ["--tokenizer", f"kind=huggingface_auto,model={NANO}", "--data", data]
    command += ["--output", f"kind=json,path={report}"]
    quiet = os.environ | {"GUIDELLM__LOGGING__CONSOLE_LOG_LEVEL": "ERROR", "TRANSFORMERS_VERBOSITY": "error"}
    subprocess.run(command, check=True, timeout=120, env=quiet)
    found: dict[str, Any] = json.loads(report.read_text("utf-8"))["benchmarks"][0]
    return found


def answers(url: str) -> int:
    """How many requests the server has answered to their ends."""
    request = urllib.request.Request(f"{url}/metrics", headers={"authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith("modelwright:request_success_total"))


def judge(name: str, found: dict[str, Any], answered: int, checks: Checks, drawn: int | None) -> None:
    """Whether every request was answered, and with as many tokens as were asked for."""
    state, requests = found["scheduler_state"], found["requests"]
    seen = state["successful_requests"] + state["processing_requests"]
    for error in requests["errored"][:2]:
        print(f"{name}: {error.get('info', error)}"[:600])
    checks.holds(f"{name}: {answered} and {seen} of {COUNT} requests were answered", answered == seen == COUNT)
    checks.holds(f"{name}: none failed", not state["errored_requests"] and not state["cancelled_requests"])
    counts = {each["output_metrics"]["total_tokens"] for each in requests["successful"]}
    checks.holds(f"{name}: tokens {counts}", counts == {drawn} if drawn else 0 not in counts and None not in counts)
    metrics = found["metrics"]
    median = {key: metrics[key]["successful"]["median"] for key in ("time_to_first_token_ms", "inter_token_latency_ms")}
    rate = metrics["output_tokens_per_second"]["successful"]["mean"]
    print(f"{name}: {rate:.0f} tokens/s, first token {median['time_to_first_token_ms']:.0f} ms,", end=" ")
    print(f"between tokens {median['inter_token_latency_ms']:.1f} ms", flush=True)


def main() -> int:
    """Every run, one after the other, on one server."""
    print(f"guidellm {version('guidellm')}")
    checks = Checks()
    with server() as url, tempfile.TemporaryDirectory() as folder:
        for name, settings in RUNS.items():
            before = answers(url)
            found = run(url, Path(folder) / "report.json", *settings)
            judge(name, found, answers(url) - before, checks, DRAWN if "output_tokens" in settings[-1] else None)
        checks.holds("nothing is left running", status(url)["running"] == 0)
    return checks.report()


if __name__ == "__main__":
    sys.exit(main())
