"""Rows that hold several documents, marked as transformers' collators mark them: each document is as if alone."""

import tempfile
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
import transformers
from transformers import DataCollatorWithFlattening, DynamicCache

from modelwright.attention import PackedAttention
from modelwright.errors import RequestError
from modelwright.families.deepseek_v2.model import DeepseekV2ForCausalLM
from modelwright.hf.cache_names import of_cache
from modelwright.ops.backends import cpu as kernels
from tests.fakes import GROUPED, MHA, MOE, YARN, recompute_layers, tiny_v2, tiny_vl2, tokens, vl2_inputs
from tests.imagegpts import colours, tiny_imagegpt
from tests.llamas import HUGGING_FACE, pair, tiny_llama
from tests.trainers import losses_of, make_trainer

LENGTHS = [5, 1, 9, 3]
BOUNDS = [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]
TOKENS = BOUNDS[-1]
FAMILIES = {
    "llama": lambda: tiny_llama(base=HUGGING_FACE),
    "llama, eager": lambda: tiny_llama(base=HUGGING_FACE, attn_implementation="eager"),
    "mindformers": tiny_llama,
    "latent": lambda: tiny_v2(base=MOE),
    "latent, grouped routing, eager": lambda: tiny_v2(base=GROUPED, attn_implementation="eager"),
    "latent, YaRN": lambda: tiny_v2(base=YARN),
    "heads": lambda: tiny_v2(base=MHA),
}
close = torch.testing.assert_close


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES)
def model(request):
    return request.param()


def flattened(ids: torch.Tensor, **how: bool) -> dict[str, torch.Tensor]:
    """One row ``ids`` ``[1, tokens]`` of documents, as transformers' collator makes it."""
    rows = [{"input_ids": ids[0, start:stop].tolist()} for start, stop in pairwise(BOUNDS)]
    return dict(DataCollatorWithFlattening(return_tensors="pt", **how)(rows))


MARKS = {
    "positions": {},
    "all marks": {"return_flash_attn_kwargs": True, "return_seq_idx": True},
    "bounds": {"return_position_ids": False, "return_flash_attn_kwargs": True},
    "numbers": {"return_position_ids": False, "return_seq_idx": True},
}


@pytest.mark.one_in(4)
@pytest.mark.parametrize("how", MARKS.values(), ids=MARKS)
@pytest.mark.parametrize("keeps", [{}, {"use_cache": False}], ids=["cache", "no cache"])
@torch.no_grad()
def test_each_document_is_as_if_alone(model, how, keeps):
    model.double()  # the sums of fp32 depend on the number of rows that torch multiplies at once, by some 1e-6
    inputs = flattened(tokens(1, TOKENS).clamp(min=5), **how)
    found = model(**inputs, **keeps)
    losses = []
    for start, stop in pairwise(BOUNDS):
        alone = inputs["input_ids"][:, start:stop]
        logits = model(alone).logits
        close(found.logits[:, start:stop], logits, atol=1e-6, rtol=1e-5)
        losses.append(F.cross_entropy(logits[0, :-1].float(), alone[0, 1:], reduction="sum"))
    close(found.loss, sum(losses) / (TOKENS - len(LENGTHS)))


@pytest.mark.parametrize("recomputed", [False, True])
def test_gradients_are_the_sum_of_each_documents_own(model, recomputed):
    if recomputed:
        recompute_layers(model.train(), {"use_reentrant": False})
    inputs = flattened(tokens(1, TOKENS).clamp(min=5))
    inputs.pop("labels")
    weight = torch.randn(1, TOKENS, model.config.vocab_size, generator=torch.Generator().manual_seed(1))
    (model(**inputs).logits * weight).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    for start, stop in pairwise(BOUNDS):
        (model(inputs["input_ids"][:, start:stop]).logits * weight[:, start:stop]).sum().backward()
    for name, parameter in model.named_parameters():
        scale = parameter.grad.abs().max().item()
        close(found[name], parameter.grad, atol=2e-6 * max(scale, 1), rtol=1e-5)


THEIRS = {
    "llama": lambda: pair(),
    "latent": lambda: with_theirs(tiny_v2(base=MOE | {"num_key_value_heads": 4})),
}


def with_theirs(ours: DeepseekV2ForCausalLM) -> tuple[DeepseekV2ForCausalLM, transformers.DeepseekV2ForCausalLM]:
    """Our DeepSeek-V2 and transformers' on the same weights."""
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        return ours, transformers.DeepseekV2ForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("build", THEIRS.values(), ids=THEIRS)
@pytest.mark.parametrize(
    "positions",
    [
        [[0, 1, 2, 0, 1, 2, 3, 0], [0, 1, 2, 3, 4, 5, 6, 7]],
        [[4, 5, 6, 0, 1, 9, 10, 11], [0, 0, 0, 1, 2, 3, 3, 4]],
        [[2, 3, 2, 3, 4, 2, 3, 4]],
        [[0, 1, 2, 3, 4, 5, 6, 7]],
    ],
)
@torch.no_grad()
def test_positions_mark_what_they_mark_in_transformers(build, positions):
    ours, theirs = build()
    ids, positions = tokens(2, 8), torch.tensor(positions)
    inputs = {"input_ids": ids, "labels": ids, "position_ids": positions, "use_cache": False}
    found, wanted = ours(**inputs), theirs(**inputs)
    close(found.logits, wanted.logits, atol=1e-4, rtol=1e-4)
    close(found.loss, wanted.loss)


@torch.no_grad()
def test_positions_beside_a_mask_or_a_cache_mark_nothing():
    ours, theirs = pair()
    ids = tokens(2, 8)
    left = torch.tensor([[1, 1, 1, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6, 7]])
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[0, :3] = 0
    for more in ({"attention_mask": mask}, {"attention_mask": torch.ones_like(mask)}):
        found, wanted = (m(ids, position_ids=left, use_cache=False, **more).logits for m in (ours, theirs))
        close(found[:, 3:], wanted[:, 3:], atol=1e-5, rtol=1e-5)
    caches = DynamicCache(), DynamicCache()
    for start, stop in ((0, 5), (5, 6), (6, 8)):
        part = {"input_ids": ids[:, start:stop], "position_ids": torch.arange(start, stop)[None] % 4}
        found, wanted = (m(**part, **of_cache(own)).logits for m, own in zip((ours, theirs), caches, strict=True))
        close(found, wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_pass_that_starts_a_cache_takes_no_jump_for_a_document():
    ours, theirs = pair()
    positions = torch.tensor([[0, 2, 4, 5, 9]])
    found, wanted = (m(tokens(1, 5), position_ids=positions).logits for m in (ours, theirs))
    close(found, wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rows_of_a_batch_have_documents_of_their_own():
    model, ids = tiny_v2().double(), tokens(2, 8)  # but for the router, which stays in fp32
    bounds = torch.tensor([0, 3, 8, 9, 16], dtype=torch.int32)
    found = model(ids, cu_seq_lens_q=bounds, cu_seq_lens_k=bounds, max_length_q=7, max_length_k=7).logits
    for row, start, stop in ((0, 0, 3), (0, 3, 8), (1, 0, 1), (1, 1, 8)):
        close(found[row, start:stop], model(ids[row : row + 1, start:stop]).logits[0], atol=1e-7, rtol=1e-6)


@torch.no_grad()
def test_pictures_stay_in_their_documents():
    model = tiny_vl2(language={"initializer_range": 0.05})
    rows = [[(1, 1)], [], [(2, 1), (1, 1)]]
    alone = [vl2_inputs([row], seed=seed) for seed, row in enumerate(rows)]
    wanted = [model(**inputs).logits for inputs in alone]
    lengths = [inputs["input_ids"].shape[1] for inputs in alone]
    packed = {
        "input_ids": torch.cat([inputs["input_ids"] for inputs in alone], dim=1),
        "images_seq_mask": torch.cat([inputs["images_seq_mask"] for inputs in alone], dim=1),
        "images": torch.cat([i["images"] for i, row in zip(alone, rows, strict=True) if row], dim=1),
        "images_spatial_crop": torch.cat([i["images_spatial_crop"] for i in alone], dim=1),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
    }
    close(model(**packed).logits, torch.cat(wanted, dim=1), atol=1e-6, rtol=1e-5)


def test_a_documents_balance_loss_is_its_own():
    model = tiny_v2(aux_loss_alpha=0.3).train()
    inputs = flattened(tokens(1, TOKENS))
    found = model(**inputs)
    alone = [model.model(inputs["input_ids"][:, start:stop]).aux_loss for start, stop in pairwise(BOUNDS)]
    close(found.aux_loss, torch.stack(alone).mean())


def test_no_mask_over_all_keys_is_built(monkeypatch):
    """Whether torch attends or the kernels do."""
    lengths = []

    def watched(real):
        def attending(q, k, v, *masks, attn_mask=None, **how):
            assert attn_mask is None and not any(isinstance(mask, torch.Tensor) for mask in masks)
            lengths.append(k.shape[2])
            return real(q, k, v, *masks, **how)

        return attending

    for module, name in ((torch.nn.functional, "scaled_dot_product_attention"), (kernels, "attend")):
        monkeypatch.setattr(module, name, watched(getattr(module, name)))
    tiny_v2()(**flattened(tokens(1, TOKENS))).loss.backward()
    assert lengths == LENGTHS * 2  # two layers


@pytest.mark.slow
def test_a_graph_separates_what_its_inputs_will_mark():
    model = tiny_llama(base=HUGGING_FACE)
    model.config.use_cache = False
    inputs = flattened(tokens(1, TOKENS))
    example = (inputs["input_ids"], None, torch.arange(TOKENS)[None])
    program = torch.export.export(model, example, strict=False).module()
    with torch.no_grad():
        close(program(inputs["input_ids"], None, inputs["position_ids"]).logits, model(**inputs).logits)
        close(program(*example).logits, model(inputs["input_ids"]).logits)


@pytest.mark.parametrize(
    "marks",
    [
        {"position_ids": torch.tensor([[0, 1, 2, 0, 1]])},
        {"seq_idx": torch.tensor([[0, 0, 1, 1, 1]])},
        {"cu_seq_lens_q": torch.tensor([0, 2, 5]), "cu_seq_lens_k": torch.tensor([0, 2, 5]), "max_length_q": 3},
    ],
)
def test_imagegpt_refuses_packed_rows(marks):
    with pytest.raises(RequestError, match="ImageGPTModel does not keep documents of one row apart"):
        tiny_imagegpt()(colours(1, 5), **marks)


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        ({"seq_idx": torch.zeros(1, 4)}, r"seq_idx has shape \[1, 4\] and must have \[1, 5\]"),
        (
            {"cu_seq_lens_q": torch.tensor([0, 2, 4])},
            r"must rise from 0 to the number of tokens \(5\), got \[0, 2, 4\]",
        ),
        ({"cu_seq_lens_k": torch.tensor([[0, 5]])}, r"at least 2 bounds, got \[1, 2\]"),
    ],
)
def test_marks_that_do_not_fit_the_rows_are_refused(marks, message):
    with pytest.raises(RequestError, match=message):
        tiny_v2()(tokens(1, 5), **marks)


def test_marks_over_a_past_are_refused():
    model, cache = tiny_llama(base=HUGGING_FACE), DynamicCache()
    model(tokens(1, 4), cache=cache)
    with pytest.raises(RequestError, match="must come without a past, and the cache holds 4 tokens"):
        model(tokens(1, 3), cache=cache, seq_idx=torch.tensor([[0, 0, 1]]))


class Documents(torch.utils.data.Dataset):
    """Documents of several lengths."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {"input_ids": tokens(3 + 5 * index % 7, seed=index).tolist()}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("build", THEIRS.values(), ids=THEIRS)
def test_trainer_learns_from_packed_rows_what_transformers_learns(build, tmp_path):
    found = []
    for model in build():
        model.config.aux_loss_alpha = 0.0  # transformers' has no balance loss
        collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
        run = make_trainer(model, tmp_path, 5, Documents(), batch=3, collator=collator, learning_rate=1e-3)
        found.append(losses_of(run))
    close(torch.tensor(found[0]), torch.tensor(found[1]), atol=1e-4, rtol=0)


def test_the_backend_of_a_packed_row_is_the_packed_one(monkeypatch):
    made = []
    original = PackedAttention.__init__

    def watched(self, *given, **named):
        made.append(given)
        original(self, *given, **named)

    monkeypatch.setattr(PackedAttention, "__init__", watched)
    model = tiny_v2()
    model(tokens(1, 6), position_ids=torch.arange(6)[None])
    assert not made
    model(tokens(1, 6), position_ids=torch.arange(6)[None] % 3)
    assert len(made) == 1
