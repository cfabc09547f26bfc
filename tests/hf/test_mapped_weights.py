"""Models whose weights are mapped: saved, copied, trained, moved, tied and shared like any others."""

import copy
import io

import pytest
import torch

from modelwright.families.deepseek_v2.model import DeepseekV2ForCausalLM
from modelwright.ops import host_memory
from tests.fakes import tiny_v2, tokens

pytestmark = pytest.mark.skipif(not host_memory.ON_REQUEST, reason="needs Linux' huge pages")


@pytest.fixture(params=[False, True], ids=["head of its own", "tied head"])
def model(request):
    return tiny_v2(tie_word_embeddings=request.param)


@pytest.fixture
def loaded(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(host_memory, "LARGE", 1)  # bytes, so that nothing is too small
    return DeepseekV2ForCausalLM.from_pretrained(tmp_path / "model")


def are_mapped(model):
    return not any(parameter.untyped_storage().resizable() for parameter in model.parameters())


def same(a, b):
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_every_parameter_is_the_memory_that_was_read_into(loaded, model):
    assert are_mapped(loaded)
    assert same(loaded, model)
    assert torch.equal(loaded(tokens(1, 9)).logits, model(tokens(1, 9)).logits)
    tied = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert tied == model.config.tie_word_embeddings


def test_it_is_saved_and_read_again(loaded, model, tmp_path):
    loaded.save_pretrained(tmp_path / "again", max_shard_size="30KB")
    assert same(DeepseekV2ForCausalLM.from_pretrained(tmp_path / "again"), model)
    file = io.BytesIO()
    torch.save(loaded.state_dict(), file)
    file.seek(0)
    other = tiny_v2(tie_word_embeddings=model.config.tie_word_embeddings)
    other.load_state_dict(torch.load(file))
    assert same(other, model)


def test_files_may_be_written_over_while_the_model_lives(loaded, model, tmp_path):
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(b"\x00" * file.stat().st_size)
    assert same(loaded, model)


def test_a_copy_is_trained_and_the_original_stays(loaded, model):
    trained = copy.deepcopy(loaded).train()
    trained(tokens(2, 9), labels=tokens(2, 9)).loss.backward()
    torch.optim.SGD(trained.parameters(), lr=0.1).step()
    assert same(loaded, model)
    assert not same(trained, model)
    loaded.train()(tokens(2, 9), labels=tokens(2, 9)).loss.backward()  # and so is the original
    torch.optim.SGD(loaded.parameters(), lr=0.1).step()
    assert same(loaded, trained)


def test_it_is_moved_and_shared(loaded, model):
    assert same(loaded.share_memory(), model)
    assert all(parameter.is_shared() for parameter in loaded.parameters())
    assert {parameter.dtype for parameter in loaded.to(torch.bfloat16).parameters()} == {torch.bfloat16}
    assert {parameter.device.type for parameter in loaded.to("meta").parameters()} == {"meta"}
