"""transformers' own DeepSeek-V2 on the same weights: logits equal, and checkpoints that load across both ways."""

import pytest
import torch
import transformers

from modelwright.families.deepseek_v2.model import DeepseekV2ForCausalLM
from tests.fakes import DENSE, GROUPED, MHA, MOE, NOAUX, YARN, tiny_v2, tokens

WHOLE = MOE | {"num_key_value_heads": 4}
WITH_YARN_AND_Q_LORA = MOE | {"rope_scaling": YARN["rope_scaling"]}
CASES = {
    "dense layers only": MOE | {"first_k_dense_replace": 2},  # transformers wants n_routed_experts even so
    "greedy": MOE,
    "greedy, no q_lora": MOE | {"q_lora_rank": None},
    "group-limited": GROUPED,
    "scaled": MOE | {"routed_scaling_factor": 2.5},
    "YaRN": WITH_YARN_AND_Q_LORA,
    "YaRN, no q_lora": YARN,
    "tied": MOE | {"tie_word_embeddings": True},
    "biased": MOE | {"attention_bias": True},
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def ours(request):
    return tiny_v2(base=request.param, num_key_value_heads=4)


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def test_transformers_reads_what_we_write(ours, tmp_path):
    ours.save_pretrained(tmp_path)
    theirs, info = transformers.DeepseekV2ForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    ids = tokens(2, 40)
    torch.testing.assert_close(logits(theirs, ids), logits(ours, ids), atol=1e-4, rtol=0)
    plan = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(ours.generate(ids[:1, :9], **plan), theirs.generate(ids[:1, :9], **plan))


def test_we_read_what_transformers_writes(ours, tmp_path):
    ours.save_pretrained(tmp_path / "ours")
    theirs = transformers.DeepseekV2ForCausalLM.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    again = DeepseekV2ForCausalLM.from_pretrained(tmp_path / "theirs")
    for name, tensor in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


BEYOND = {
    "use_mla": MHA,
    "num_key_value_heads": MOE,
    "hidden_size": MOE | {"hidden_size": 36, "num_attention_heads": 8, "num_key_value_heads": 8},
    "gated_mlp": WHOLE | {"gated_mlp": False},
    "n_routed_experts": DENSE | {"num_key_value_heads": 4},
    "n_shared_experts": WHOLE | {"n_shared_experts": None},
    "moe_layer_freq": WHOLE | {"moe_layer_freq": 2, "num_hidden_layers": 3},
    "topk_method": NOAUX | {"num_key_value_heads": 4},
    "scoring_func": WHOLE | {"scoring_func": "sigmoid"},
    "norm_topk_prob": WHOLE | {"norm_topk_prob": True},
}


@pytest.mark.parametrize("field", BEYOND)
def test_what_transformers_reads_as_another_model_or_not_at_all_is_said_where_it_is_saved(field, tmp_path, caplog):
    model, ids = tiny_v2(base=BEYOND[field]), tokens(1, 9)
    model.save_pretrained(tmp_path)
    (said,) = (record.getMessage() for record in caplog.records if "transformers cannot" in record.getMessage())
    assert f": of its DeepSeek-V2 {field} must be " in said
    try:
        theirs = logits(transformers.DeepseekV2ForCausalLM.from_pretrained(tmp_path), ids)
    except Exception:
        return
    assert not torch.allclose(theirs, logits(model, ids), atol=0.1)


def test_of_what_transformers_computes_alike_nothing_is_said(ours, tmp_path, caplog):
    ours.save_pretrained(tmp_path)
    assert "transformers cannot" not in caplog.text
