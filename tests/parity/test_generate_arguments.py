"""Every documented argument of generate(): transformers' own models on the same weights draw the same tokens."""

from typing import Any

import pytest
import torch
import transformers
from transformers.generation.logits_process import LogitsProcessor
from transformers.generation.stopping_criteria import StoppingCriteria

from tests.engine.small_tokenizers import byte_tokenizer
from tests.fakes import tiny_v2, tokens
from tests.imagegpts import pair as pair_of_imagegpts
from tests.llamas import pair

PROMPT, REPEATS = tokens(2, 9), tokens(1, 9).repeat(1, 3)
GREEDY: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


class Five(LogitsProcessor):
    """Token 5 comes before all others."""

    def __call__(self, input_ids, scores):
        return scores.index_fill(1, torch.tensor([5]), 1e3)


class At13(StoppingCriteria):
    """Rows end at 13 tokens."""

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= 13)


OUTPUTS = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "output_hidden_states": True}
PLANS: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5, "early_stopping": True},
    "sampled beams": {"num_beams": 3, "do_sample": True},
    "outputs": OUTPUTS,
    "outputs of beams": OUTPUTS | {"num_beams": 2},
    "several samples": {"do_sample": True, "num_return_sequences": 3, "typical_p": 0.9},
    "cutoffs": {"do_sample": True, "epsilon_cutoff": 0.02, "eta_cutoff": 0.02, "min_p": 0.01, "top_h": 0.9},
    "penalties": {"no_repeat_ngram_size": 2, "encoder_repetition_penalty": 1.2, "repetition_penalty": 1.3},
    "words": {"bad_words_ids": [[4]], "sequence_bias": [[[5], 3.0]], "suppress_tokens": [1], "forced_eos_token_id": 4},
    "lengths": {"min_new_tokens": 4, "eos_token_id": 3, "exponential_decay_length_penalty": (2, 1.1)},
    "a processor": {"logits_processor": [Five()]},
    "a criterion": {"stopping_criteria": [At13()]},
    "a prefix function": {"prefix_allowed_tokens_fn": lambda batch, ids: [3, 4, 5]},
    "strings that stop": {"stop_strings": ["S", "4", "D"], "tokenizer": byte_tokenizer()},
    "guidance": {"guidance_scale": 1.5},
    "a negative prompt": {"guidance_scale": 1.5, "negative_prompt_ids": tokens(2, 5, seed=3)},
    "parts": {"prefill_chunk_size": 3},
    "parts of padded rows": {"prefill_chunk_size": 3, "attention_mask": torch.tensor([[0] * 4 + [1] * 5, [1] * 9])},
    "no cache": {"use_cache": False},
    "a static cache": {"cache_implementation": "static"},
    "embeddings": {"inputs_embeds": "those of the prompt"},
    "low memory": {"low_memory": True},
    "time": {"max_time": 100.0},
    "a loop of one's own": {"custom_generate": lambda model, input_ids, **kwargs: input_ids[:, :3]},
    "drafts of the prompt": {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 2},
    "drafts of a model": {"assistant_model": "another"},
    "sampled drafts": {"assistant_model": "another", "do_sample": True},
    "drafts, outputs": OUTPUTS | {"assistant_model": "another", "num_assistant_tokens": 2},
}
GROWING = {"cache_implementation": None}  # transformers' ImageGPT draws other tokens with a static cache
FAMILIES = ["llama", "deepseek_v2", "imagegpt"]


def made(family: str, folder) -> list[tuple[Any, Any]]:
    """Our model and transformers', each with another one that may draft for it."""
    if family == "deepseek_v2":
        ours, another = (tiny_v2(num_key_value_heads=4, seed=seed) for seed in (0, 1))
        for name, model in (("a", ours), ("b", another)):
            model.save_pretrained(folder / name)
        theirs = [transformers.DeepseekV2ForCausalLM.from_pretrained(folder / name) for name in ("a", "b")]
        return [(ours, another), (theirs[0], theirs[1])]
    if family == "imagegpt":
        pairs = [pair_of_imagegpts(seed=seed, vocab_size=65, n_positions=48) for seed in (0, 1)]
    else:
        pairs = [pair(seed=seed) for seed in (0, 1)]
    return list(zip(*pairs, strict=True))


def run(model: Any, another: Any, plan: dict[str, Any]) -> Any:
    drafts = plan.keys() & {"assistant_model", "prompt_lookup_num_tokens"}
    ids = REPEATS if drafts else PROMPT
    if "assistant_model" in plan:
        plan = plan | {"assistant_model": another}
    if "inputs_embeds" in plan:
        plan = plan | {"inputs_embeds": model.get_input_embeddings()(ids)}
    torch.manual_seed(0)
    return model.generate(ids, **GREEDY | plan)


def flat(output: Any) -> list[torch.Tensor]:
    """All tensors of an output, the cache's apart."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, (list, tuple)):
        return [tensor for part in output for tensor in flat(part)]
    if hasattr(output, "items"):
        return [tensor for name, part in sorted(output.items()) if "cache" not in name for tensor in flat(part)]
    return []


@pytest.mark.one_in(4)
@pytest.mark.usefixtures("generate_may_warn")
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_heard_as_transformers_hears_it(family, plan, models_of):
    ours, theirs = models_of(family)
    found, wanted = flat(run(*ours, plan)), flat(run(*theirs, plan | (GROWING if family == "imagegpt" else {})))
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def models_of(tmp_path_factory):
    """The models of a family, made once."""
    held: dict[str, list[tuple[Any, Any]]] = {}

    def models_of(family: str) -> list[tuple[Any, Any]]:
        if family not in held:
            held[family] = made(family, tmp_path_factory.mktemp(family))
        return held[family]

    return models_of


@pytest.mark.parametrize(
    "plan",
    [
        {"dola_layers": "low"},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        {"num_beams": 4, "force_words_ids": [[7, 8]]},
        {"max_new_token": 3},
        {"token_healing": True},
        {"stop_strings": ["S"]},
        {"cache_implementation": "nowhere"},
        {"cache_implementation": "offloaded_static"},  # where there is no GPU
    ],
    ids=str,
)
def test_it_is_refused_as_transformers_refuses_it(plan, models_of):
    messages = []
    for each in models_of("llama"):
        with pytest.raises(Exception) as caught:
            run(*each, plan)
        messages.append((caught.type, str(caught.value)))
    assert messages[0] == messages[1]


def test_a_streamer_sees_the_tokens(models_of):
    class Seen(list):
        put = list.append

        def end(self):
            self.append(None)

    seen = [Seen(), Seen()]
    for (model, _), streamer in zip(models_of("llama"), seen, strict=True):
        model.generate(PROMPT[:1], streamer=streamer, **GREEDY)
    assert [part if part is None else part.tolist() for part in seen[0]] == [
        part if part is None else part.tolist() for part in seen[1]
    ]
