"""A model by name in an engine: found, loaded as the engine runs it, with its own defaults; and an answer's stream."""

import json
import shutil
from pathlib import Path

import pytest

from modelwright import zoo
from modelwright.engine.engine import Engine
from modelwright.errors import CheckpointError, RequestError
from modelwright.families.deepseek_v2.model import DeepseekV2ForCausalLM, DeepseekV2Model
from modelwright.hf.pretrained import ModelwrightPreTrainedModel
from modelwright.serving.answer import answer
from modelwright.serving.load import load
from modelwright.serving.names import model_path
from modelwright.serving.opened import find_model, open_model
from modelwright.serving.prompts import encode_messages
from modelwright.serving.ranks import Ranks
from tests.checkpoints.test_foreign_numbers import stored_in_fp8


def open_alone(name, **how):
    with Ranks(1, "cpu", print) as ranks:
        return open_model(find_model(str(name)), task="chat", limits=how.pop("limits", {}), ranks=ranks, **how)


def test_names_lead_to_the_zoo_first_then_to_folders_then_to_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vl2-nano").mkdir()
    (tmp_path / "mine").mkdir()
    assert model_path("vl2-nano") == zoo.path("vl2-nano")
    assert model_path("mine") == Path("mine")
    assert model_path("org/name") == "org/name"
    assert model_path("~/gone") == Path("~/gone").expanduser()


def test_what_is_opened_is_the_plain_network_with_the_limits_that_were_asked(v2):
    opened = open_alone(v2, limits={"max_batch": 3}, dtype="bfloat16")
    assert not isinstance(opened.loaded.model, ModelwrightPreTrainedModel)
    assert (opened.engine.config.max_batch, str(opened.loaded.model.dtype)) == (3, "torch.bfloat16")
    assert opened.params({"max_tokens": 4}).eos_token_ids == (opened.loaded.tokenizer.eos_token_id,)


def with_template(folder, template):
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}), "utf-8")
    return folder


def test_an_answer_ends_where_the_template_ends_a_turn(v2, tmp_path):
    """Though neither generation config nor tokenizer calls that token an end, as after training with a template."""
    end, eos = "<｜▁pad▁｜>", "<｜end▁of▁sentence｜>"
    template = "{% for m in messages %}<|User|>{{ m.content }} " + end + "\n{% endfor %}"
    folder = with_template(shutil.copytree(v2, tmp_path / "v2"), template)
    opened = open_alone(folder)
    token, own = (opened.loaded.tokenizer.convert_tokens_to_ids(each) for each in (end, eos))
    assert opened.engine.ends == (own, token)
    params = opened.params({"max_tokens": 4, "logit_bias": {token: 1e4}})
    (result,) = opened.engine.generate(["Hi"], params)
    assert (result.completions[0].tokens, str(result.completions[0].finish_reason)) == ((token,), "stop")
    asked = open_alone(folder, template=template.replace(end, eos))
    assert asked.engine.ends == (own,)
    model = opened.loaded.model
    assert Engine(model, tokenizer=opened.loaded.tokenizer).ends == (own,)


def test_a_model_without_a_head_is_refused_before_it_is_read(v2, tmp_path, monkeypatch):
    DeepseekV2Model.from_pretrained(v2).save_pretrained(tmp_path)
    monkeypatch.setattr("modelwright.serving.opened.load_network", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(RequestError, match=f"^{tmp_path} is a DeepseekV2Model, which cannot chat$"):
        open_alone(tmp_path)


def test_the_slow_path_is_told_with_its_reason_unless_it_was_asked_for(v2, monkeypatch):
    opened = open_alone(v2)
    monkeypatch.setattr("modelwright.ops.backends.cpu.reason", lambda: "there is no C++ compiler")
    sentence = "torch computes instead of the compiled kernels, more slowly: there is no C++ compiler"
    assert opened.notices() == (sentence,)
    monkeypatch.setenv("MODELWRIGHT_KERNELS", "off")
    assert opened.notices() == ()
    monkeypatch.delenv("MODELWRIGHT_KERNELS")
    monkeypatch.setattr("modelwright.ops.backends.cpu.reason", lambda: "")
    assert opened.notices() == ()


def test_what_another_program_quantized_is_told_to_be_read_as_numbers(v2, tmp_path):
    for path in v2.iterdir():
        shutil.copy(path, tmp_path)
    stored_in_fp8(tmp_path, DeepseekV2ForCausalLM.from_pretrained(v2), "deepseek_v2")
    opened = open_alone(tmp_path)
    assert opened.notices()[0] == (
        'the checkpoint is quantized by "fp8": its weights are read as the numbers that they stand for, not as they '
        "are stored"
    )
    assert opened.notices()[1:] == open_alone(v2).notices()


def test_a_name_longer_than_any_file_has_is_refused_in_a_sentence():
    for name in ("x" * 300, "x" * 300 + "/y", "a\0b"):
        for find in (find_model, load):
            with pytest.raises(CheckpointError, match="is not a folder"):
                find(name)


def test_the_pieces_of_an_answer_are_its_text_and_it_ends_when_it_is_told_to(vl2):
    opened = open_alone(vl2)
    prompt, params = (
        encode_messages(opened.loaded, [{"role": "user", "content": "Hi"}]),
        opened.params({"max_tokens": 20}),
    )
    pieces: list[str] = []
    whole = answer(opened.engine, prompt, params, pieces.append)
    assert "".join(pieces).rstrip() == whole.text != "" and not pieces[0][0].isspace()
    assert (whole.interrupted, whole.tokens > 3, whole.reused) == (False, True, 0)
    asked = iter([False, False, True])
    part = answer(opened.engine, prompt, params, lambda _: None, lambda: next(asked))
    assert (whole.finish_reason, part.finish_reason) == ("length", "abort")
    assert part.interrupted and part.tokens == 2 and whole.text.startswith(part.text)
    assert not opened.engine.has_work
    plain = opened.engine.generate([prompt], params)[0]
    assert plain.text.strip() == whole.text
