"""``modelwright plan``: what it shows for each kind of CONFIG, its JSON and picture, and the refusals' sentences."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import huggingface_hub
import pytest
from safetensors.torch import load_file, save_file

from modelwright.cli import hub_config
from tests.llamas import HUGGING_FACE, tiny_llama

HUB = Path(__file__).parents[1] / "data" / "hub_configs"
LITE = HUB / "deepseek-v2-lite"
YAML = """
model:
  model_config:
    type: LlamaConfig
    hidden_size: 64
    num_layers: 4
    num_heads: 4
    vocab_size: 128
    seq_length: 256
    param_init_type: "float16"
  arch: {type: LlamaForCausalLM}
parallel_config: {data_parallel: 2, model_parallel: 2, pipeline_stage: 2, micro_batch_num: 2, mem_coeff: 0.5}
"""


def test_a_folder_is_planned_in_tables(run):
    ended = run("plan", LITE, "--device", "40GiB")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0] == "deepseek-v2-lite: deepseek_v2, 27 layers, 15.7 B parameters, 2.45 B activated per token"
    assert lines[1] == "planned for 1 sequence of 4096 tokens, bfloat16 weights, bfloat16 cache, fused attention"
    assert "FITS: serving on 1 x 40.0 GiB: the fullest rank needs 29.8 GiB of 40.0 GiB" in lines
    assert "layout: data 1 x model 1 x pipeline 1 x context 1, expert 1" in lines
    assert any(line.split() == ["one", "token", "of", "cache", "30.4", "KiB"] for line in lines)


def test_what_does_not_fit_says_so(run):
    ended = run("plan", LITE, "--device", "8GiB")
    assert ended.code == 0
    assert "DOES NOT FIT: serving on 1 x 8.00 GiB: the fullest rank needs 29.8 GiB of 8.00 GiB" in ended.out
    assert "no context and no batch fits" in ended.out


def test_a_config_json_and_its_folder_give_the_same_object(run):
    folder, file = (run("plan", path, "--json") for path in (LITE, LITE / "config.json"))
    assert folder.code == file.code == 0
    assert json.loads(folder.out) == json.loads(file.out)
    assert json.loads(folder.out)["parameters"]["total"] == 15_706_484_224


def test_a_mindformers_yaml_keeps_its_layout(run, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(YAML)
    answer = json.loads(run("plan", path, "--json", "--device", "1GiB").out)
    layout = answer["layout"]
    assert (layout["data"], layout["model"], layout["pipeline"], layout["ranks"]) == (2, 2, 2, 8)
    assert [(rank["first_rank"], rank["last_rank"]) for rank in answer["ranks"]] == [(0, 3), (4, 7)]
    assert answer["planned"]["dtype"] == "float16"
    assert "no effect on torch: parallel_config.mem_coeff" in run("plan", path).out


def test_a_zoo_name_comes_first(run):
    answer = json.loads(run("plan", "vl2-nano", "--json", "--image", "96x96").out)
    assert answer["model"]["family"] == "deepseek_vl_v2"
    assert answer["image"]["tokens"] > 0


def test_a_hub_ids_config_alone_is_fetched(run, monkeypatch):
    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(LITE)

    monkeypatch.setattr(hub_config, "snapshot_download", download)
    assert run("plan", "org/model", "--json").code == 0
    assert asked == [("org/model", ["config.json"])]


def test_a_hub_that_does_not_answer_is_one_sentence(run, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    ended = run("plan", "nobody/nothing")
    assert (ended.code, ended.out) == (2, "")
    [line] = ended.err.splitlines()
    assert line.startswith("modelwright: nobody/nothing is not here, and the hub did not answer with its config.json: ")


def test_a_misspelt_model_is_told_at_once_where_there_is_no_network():
    """Nobody waits to ask the hub again and nothing heavy is imported, so that it takes two seconds on any machine."""
    asked = []
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
sys.argv = ["modelwright", "plan", "typo/name"]
from modelwright.cli.main import main
try:
    main()
finally:
    print("torch" in sys.modules, "transformers" in sys.modules, file=sys.stderr)
"""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up():
            with contextlib.suppress(OSError):  # the server is closed
                while True:
                    connection, _ = server.accept()
                    asked.append(connection.recv(100))
                    connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        hub = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{server.getsockname()[1]}", "HF_HUB_OFFLINE": "0"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, env=hub)
    sentence, imported = done.stderr.splitlines()
    assert sentence.startswith("modelwright: typo/name is not here, and the hub did not answer with its config.json: ")
    assert (done.returncode, imported) == (2, "False False")
    assert len(asked) <= 2  # hf_hub_download asks six times, over half a minute


def test_training_and_its_options_are_planned(run):
    answer = json.loads(run("plan", LITE, "--train", "--optimizer", "sgd", "--recompute", "--json").out)
    planned = answer["planned"]
    assert (planned["task"], planned["optimizer"], planned["recompute"]) == ("train", "sgd", True)
    assert answer["ranks"][0]["memory"] == answer["memory"]["training_with_recompute"]


def test_the_picture_is_drawn(run, tmp_path):
    path = tmp_path / "memory.svg"
    assert run("plan", LITE, "--plot", path, "--device", "80GB,2").code == 0
    assert ElementTree.parse(path).getroot().tag.endswith("svg")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--device", "24"],
            "a size is a number and one of B, KB, MB, GB, TB, KiB, MiB, GiB, TiB, like 24GiB; got '24'",
        ),
        (["--image", "96"], "--image is a picture's width and height in pixels, like 1024x768; got '96'"),
        (["--image", "96x96"], "--image needs a model that sees pictures, and deepseek_v2 reads none"),
        (["--optimizer", "sgd"], "--optimizer says how to train, so it needs --train"),
        (["--no-recompute"], "--recompute says how to train, so it needs --train"),
        (["--plot", "memory.png"], "--plot memory.png: the picture is an SVG, so its name must end in .svg"),
        (["--kv-dtype", "int4"], "--kv-dtype must be one of float32, bfloat16, float16, fp8, int8, got 'int4'"),
    ],
)
def test_bad_options_are_one_sentence(run, args, message):
    ended = run("plan", LITE, *args)
    assert (ended.code, ended.out, ended.err) == (2, "", f"modelwright: {message}\n")


def test_a_plot_that_cannot_be_written_is_named(run, tmp_path):
    ended = run("plan", LITE, "--json", "--plot", tmp_path / "missing" / "a.svg")
    assert ended.code == 2
    assert ended.err == f"modelwright: --plot {tmp_path}/missing/a.svg: there is no folder {tmp_path}/missing\n"


def test_a_config_that_is_nowhere_is_refused(run):
    ended = run("plan", "not a model")
    assert ended.code == 2
    assert ended.err.startswith("modelwright: 'not a model' is no name from `modelwright models` (")


def test_a_model_whose_attention_slides_is_refused_by_the_rule_it_breaks(run):
    ended = run("plan", HUB / "mistral-7b-v0.1")
    assert ended.code == 2
    assert ended.err.startswith("modelwright: sliding_window (4096) must be None or at least max_position_embeddings")


def test_no_model_code_is_imported():
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
sys.argv = ["modelwright", "plan", {str(LITE)!r}, "--json"]
from modelwright.cli.main import main
try:
    main()
finally:
    ours = [name.split(".") for name in sys.modules if name.startswith("modelwright.")]
    tensors = [name for name in ours if name[1] == "ops" and name[2:] not in ([], ["backends"], ["backends", "switch"])]
    print(*sorted({{".".join((name[1], *name[3:4])) for name in ours if name[1] != "ops" or tensors}}), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    parts = set(
        done.stderr.split()
    )  # a family's parts as families.<part>; of ops the kernels' switch alone may be read
    assert {part for part in parts if part.startswith("families")} <= {"families", "families.config", "families.plan"}
    assert {part.partition(".")[0] for part in parts} == {
        "cli",
        "configs",
        "errors",
        "families",
        "planner",
        "server",
        "serving",
        "zoo",
    }  # fmt: skip; of serving, what a user may call a model, and of the server, what can be set


def test_a_folder_whose_tensors_differ_is_planned_untied(run, tmp_path):
    tiny_llama(base=HUGGING_FACE, tie_word_embeddings=True).save_pretrained(tmp_path)
    tied = json.loads(run("plan", tmp_path, "--json").out)["parameters"]["total"]
    weights = load_file(tmp_path / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    save_file(weights | {"lm_head.weight": embedding + 1}, tmp_path / "model.safetensors", {"format": "pt"})
    for path in (tmp_path, tmp_path / "config.json"):
        apart = json.loads(run("plan", path, "--json").out)["parameters"]
        assert (apart["total"] - tied, apart["head"]) == (embedding.numel(), embedding.numel())
    save_file(weights | {"lm_head.weight": embedding.clone()}, tmp_path / "model.safetensors", {"format": "pt"})
    assert json.loads(run("plan", tmp_path, "--json").out)["parameters"]["total"] == tied
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    assert json.loads(run("plan", tmp_path, "--json").out)["parameters"]["total"] == tied


def test_the_keys_of_a_run_are_told_by_section(run, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(YAML + "context: {mode: 0, device_id: 1}\nseed: 3\nauto_tune: false\n")
    told = run("plan", path).out.splitlines()[-1]
    assert (
        "context.* (it is about MindSpore's runtime), auto_tune (it is about MindFormers' own tuning of layouts)"
        in told
        and "seed" not in told
    )
    assert (
        "context.mode (it is about MindSpore's runtime)"
        in json.loads(run("plan", path, "--json").out)["fields_without_effect"]
    )
