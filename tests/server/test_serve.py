"""``modelwright serve`` whole, with the model in the package: questions, a stream, metrics, and its end."""

import json
import signal
from typing import cast

import pytest

from modelwright.cli.serve_model import check
from modelwright.cli.serve_options import ServeOptions
from modelwright.engine.async_engine import AsyncEngine
from modelwright.errors import CheckpointError, RequestError
from modelwright.server.served import Served
from modelwright.serving.load import load_network
from tests.server.models import llama_folder
from tests.server.processes import process

ASKED = {"model": "vl2-nano", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8, "temperature": 0}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["1", "2"])
def test_the_command_serves_drains_and_leaves_nobody(ranks):
    words = ("-m", "modelwright", "serve", "vl2-nano", "--port", "0", "--dtype", "float32", "--tensor-parallel", ranks)
    with process(*words, OMP_NUM_THREADS="1") as server:
        assert server.ask("/livez")[0] == 200
        assert "curl http://127.0.0.1:" in server.wait_for("try: curl")
        status, body = server.ask("/v1/chat/completions", "POST", ASKED)
        text = json.loads(body)["choices"][0]["message"]["content"]
        assert status == 200 and text
        status, stream = server.ask("/v1/chat/completions", "POST", ASKED | {"stream": True})
        frames = [line.removeprefix(b"data: ") for line in stream.splitlines() if line.startswith(b"data: ")]
        assert frames[-1] == b"[DONE]"
        deltas = [choice["delta"].get("content") for f in frames[:-1] for choice in json.loads(f)["choices"]]
        assert "".join(delta or "" for delta in deltas) == text
        metrics = server.ask("/metrics")[1].decode()
        steps = next(line for line in metrics.splitlines() if line.startswith("modelwright:step_seconds_count"))
        assert float(steps.split()[-1]) > 0
        server.send(signal.SIGTERM)
        assert server.ended() == 0


@pytest.mark.slow
def test_a_template_in_a_file_prints_what_is_asked(tmp_path):
    """`--check` takes it, and so does each request."""
    file = tmp_path / "own.jinja"
    file.write_text("{% for message in messages %}[{{ message.content }}]{% endfor %}")
    words = ("-m", "modelwright", "serve", str(llama_folder()), "--served-model-name", "tiny", "--port", "0")
    with process(*words, "--chat-template", str(file), OMP_NUM_THREADS="1") as server:
        server.wait_for("try: curl")
        body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "return_token_strs": True}
        status, said = server.ask("/tokenize", "POST", body)
        assert status == 200 and "".join(json.loads(said)["token_strs"]) == "[a]"
        assert server.ask("/v1/chat/completions", "POST", ASKED | {"model": "tiny"})[0] == 200
        server.send(signal.SIGTERM)
        assert server.ended() == 0


def test_an_adapters_folder_is_checked_and_told_apart(tmp_path):
    """Whether the adapter is named beside the model or is what the model is called by."""
    import peft
    from transformers import AutoModelForCausalLM

    base = str(llama_folder())
    for name, dora in (("one", False), ("two", False), ("three", True)):
        how = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, use_dora=dora)
        peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), how).save_pretrained(tmp_path / name)

    def checked(model, *adapters):
        return check(ServeOptions(model=str(model), merge_adapter=[f"a={folder}" for folder in adapters])).checkpoint

    places = [checked(base), checked(tmp_path / "one"), checked(tmp_path / "two"), checked(base, tmp_path / "two")]
    assert [place.adapters for place in places] == [(), *((tmp_path / name,) for name in ("one", "two", "two"))]
    told = [Served(load_network(place), cast(AsyncEngine, None), 1, 1, ("a",)).fingerprint for place in places]
    assert len(set(told)) == 3 and told[2] == told[3]
    for broken in ((tmp_path / "three",), (base, tmp_path / "three")):
        with pytest.raises(CheckpointError, match="has use_dora"):
            checked(*broken)
    with pytest.raises(RequestError, match=r"merge_adapter may be given once, .* got 2") as caught:
        checked(base, tmp_path / "one", tmp_path / "two")
    assert caught.value.field == "merge_adapter"
