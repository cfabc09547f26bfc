"""ImageGPT as a model: its files, heads, adapters, training runs, checkpointing, generation, and what it refuses."""

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import modelwright
from modelwright.errors import CheckpointError, ConfigError, RequestError
from modelwright.families.imagegpt.model import (
    ImageGPTForCausalImageModeling,
    ImageGPTForImageClassification,
    ImageGPTModel,
)
from modelwright.families.imagegpt.processor import ImageGPTImageProcessor
from modelwright.hf.arguments import PassInputs
from tests.fakes import recompute_layers
from tests.imagegpts import TINY, colours, tiny_imagegpt, with_weights_of
from tests.trainers import losses_of, make_trainer

close = torch.testing.assert_close
KINDS = {
    "plain": {},
    "upcast": {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
    "tied": {"tie_word_embeddings": True},
    "prelu": {"activation_function": "prelu", "n_inner": 7},
}


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def model(request):
    return tiny_imagegpt(**request.param)


@torch.no_grad()
def logits(model, ids, **kwargs):
    return model(ids, **kwargs).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saving_and_loading_keeps_every_tensor_and_its_type(model, dtype, tmp_path):
    model.to(dtype).save_pretrained(tmp_path, max_shard_size="4KB")
    again = ImageGPTForCausalImageModeling.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert again.state_dict()[name].dtype == dtype
        assert torch.equal(again.state_dict()[name], tensor), name
    assert not again.training


def test_files_are_laid_out_as_transformers_does(tmp_path):
    tiny_imagegpt(n_layer=1, n_inner=7).save_pretrained(tmp_path)
    shapes = {name: tuple(t.shape) for name, t in load_file(tmp_path / "model.safetensors").items()}
    assert shapes == {
        "transformer.wte.weight": (17, 24),
        "transformer.wpe.weight": (24, 24),
        "transformer.h.0.ln_1.weight": (24,),
        "transformer.h.0.attn.c_attn.weight": (24, 72),
        "transformer.h.0.attn.c_attn.bias": (72,),
        "transformer.h.0.attn.c_proj.weight": (24, 24),
        "transformer.h.0.attn.c_proj.bias": (24,),
        "transformer.h.0.ln_2.weight": (24,),
        "transformer.h.0.mlp.c_fc.weight": (24, 7),
        "transformer.h.0.mlp.c_fc.bias": (7,),
        "transformer.h.0.mlp.c_proj.weight": (7, 24),
        "transformer.h.0.mlp.c_proj.bias": (24,),
        "transformer.ln_f.weight": (24,),
        "lm_head.weight": (16, 24),
    }
    tiny_imagegpt(tie_word_embeddings=True).save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


def test_masks_of_old_files_are_passed_over_and_other_tensors_are_not(tmp_path):
    model = tiny_imagegpt()
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    old = {"transformer.h.1.attn.bias": torch.ones(1, 1, 24, 24, dtype=torch.uint8)}
    old |= {"transformer.h.1.attn.masked_bias": torch.tensor(-1e4)}
    save_file(state | old, tmp_path / "model.safetensors")
    again = ImageGPTForCausalImageModeling.from_pretrained(tmp_path)
    assert torch.equal(logits(again, colours(1, 5)), logits(model, colours(1, 5)))
    save_file(state | {"transformer.h.1.crossattention.c_attn.bias": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"unexpected transformer\.h\.1\.crossattention\.c_attn\.bias"):
        ImageGPTForCausalImageModeling.from_pretrained(tmp_path)
    del state["transformer.h.0.mlp.c_fc.bias"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing transformer\.h\.0\.mlp\.c_fc\.bias"):
        ImageGPTForCausalImageModeling.from_pretrained(tmp_path)


def test_every_class_reads_the_others_files(tmp_path):
    tiny_imagegpt().save_pretrained(tmp_path)
    torch.manual_seed(1)
    classifier = ImageGPTForImageClassification.from_pretrained(tmp_path, num_labels=5)
    assert classifier.score.weight.shape == (5, 24)
    assert 0.1 < classifier.score.weight.std() < 0.3  # a new head, of initializer_range
    body = ImageGPTModel.from_pretrained(tmp_path)
    close(body.h[1].mlp.c_proj.weight, classifier.transformer.h[1].mlp.c_proj.weight)
    classifier.save_pretrained(tmp_path / "classifier")
    again = ImageGPTForImageClassification.from_pretrained(tmp_path / "classifier")
    assert torch.equal(again.score.weight, classifier.score.weight)
    with pytest.raises(CheckpointError, match=r"score\.weight has shape \[5, 24\]"):
        ImageGPTForImageClassification.from_pretrained(tmp_path / "classifier", num_labels=2)
    other = ImageGPTForImageClassification.from_pretrained(
        tmp_path / "classifier", num_labels=2, ignore_mismatched_sizes=True
    )
    assert other.score.weight.shape == (2, 24)


def test_load_gives_the_model_and_its_palette(tmp_path):
    model = tiny_imagegpt()
    model.save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"has no preprocessor_config\.json, which says what colour each token is"
    ):
        modelwright.load(tmp_path)
    palette = torch.linspace(-1, 1, 48).view(16, 3).numpy()
    ImageGPTImageProcessor(clusters=palette, size={"height": 4, "width": 4}).save_pretrained(tmp_path)
    loaded, processor = modelwright.load(tmp_path, device="cpu")
    assert isinstance(loaded, modelwright.ImageGPTForCausalImageModeling)
    assert isinstance(processor, ImageGPTImageProcessor)
    assert torch.equal(logits(loaded, colours(1, 5)), logits(model, colours(1, 5)))
    ImageGPTImageProcessor(clusters=palette[:9], size={"height": 4, "width": 4}).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"has 9 colours and must have vocab_size - 1 \(16\)"):
        modelwright.load(tmp_path, device="cpu")


def test_first_weights_are_gpt2s():
    model = tiny_imagegpt(n_layer=8, n_embd=96, initializer_range=0.1)
    block = model.transformer.h[3]
    for projection in (block.attn.c_attn, block.mlp.c_fc):
        assert projection.weight.std().item() == pytest.approx(0.1, rel=0.05)
    for projection in (block.attn.c_proj, block.mlp.c_proj):
        assert projection.weight.std().item() == pytest.approx(0.1 / 16**0.5, rel=0.05)
    for bias in (block.attn.c_attn.bias, block.mlp.c_proj.bias):
        assert not bias.any()
    assert model.transformer.wte.weight.std().item() == pytest.approx(0.1, rel=0.1)
    assert torch.equal(block.ln_2.weight, torch.ones(96))


def test_dropouts_act_in_training_only():
    none = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    ids = colours(2, 9)
    still = tiny_imagegpt(**none)
    assert torch.equal(logits(still.train(), ids), logits(still.eval(), ids))
    for name in none:
        for how in ("eager", "sdpa"):
            model = with_weights_of(still, **{name: 0.5}, attn_implementation=how)
            close(logits(model, ids), logits(still, ids))
            assert (logits(model.train(), ids) - logits(still, ids)).abs().max() > 0.01


def test_embeddings_for_ids(model):
    ids = colours(2, 5)
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(logits(model, None, inputs_embeds=embeds), logits(model, ids))
    with pytest.raises(RequestError, match="give input_ids or inputs_embeds, and not both"):
        model(ids, inputs_embeds=embeds)
    with pytest.raises(RequestError, match="give input_ids or inputs_embeds, and not both"):
        model()


@pytest.mark.parametrize("cache", [transformers.DynamicCache, "static"])
def test_a_cache_continues_where_it_stopped(cache, model):
    ids = colours(2, 12)
    cache = transformers.StaticCache(model.config, max_cache_len=24) if cache == "static" else cache()
    parts = [logits(model, part, past_key_values=cache) for part in ids.split([1, 5, 1, 3, 2], dim=1)]
    close(torch.cat(parts, dim=1), logits(model, ids), atol=1e-5, rtol=1e-5)
    assert cache.get_seq_length() == 12


def test_without_use_cache_nothing_is_cached():
    ids = colours(1, 5)
    assert tiny_imagegpt()(ids).past_key_values.get_seq_length() == 5
    assert tiny_imagegpt()(ids, use_cache=False).past_key_values is None
    assert tiny_imagegpt(use_cache=False)(ids).past_key_values is None


def test_logits_to_keep(model):
    ids = colours(2, 9)
    whole = logits(model, ids)
    close(logits(model, ids, logits_to_keep=2), whole[:, -2:])
    close(logits(model, ids, logits_to_keep=torch.tensor([0, 4])), whole[:, [0, 4]])
    with pytest.raises(RequestError, match="labels need the logits of every token"):
        model(ids, labels=ids, logits_to_keep=1)


def test_a_mask_of_four_dimensions_is_the_whole_rule():
    model, ids = tiny_imagegpt(), colours(2, 6)
    causal = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    close(logits(model, ids, attention_mask=causal), logits(model, ids))
    first_only = torch.zeros(6, 6, dtype=torch.bool)
    first_only[:, 0] = True
    changed = ids.clone()
    changed[:, 1:5] = (changed[:, 1:5] + 1) % 16
    found = [logits(model, each, attention_mask=first_only[None, None])[:, -1] for each in (ids, changed)]
    close(*found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": torch.tensor([[3, 17]])}, "input_ids must be at least 0 and below vocab_size (17), got 17"),
        ({"input_ids": torch.tensor([[3, -1]])}, "input_ids must be at least 0 and below vocab_size (17), got -1"),
        (
            {"token_type_ids": torch.tensor([[0, 0, 40]])},
            "token_type_ids must be at least 0 and below vocab_size (17), got 40",
        ),
        (
            {"position_ids": torch.tensor([[0, 1, 24]])},
            "position_ids must be at least 0 and below n_positions (24), got 24",
        ),
        ({"input_ids": colours(1, 25)}, "position 24 must be below n_positions (24): a row has 25 tokens"),
        (
            {"labels": torch.tensor([[16, 3, 16]])},
            "labels after the first must be at least 0 and below the number of colours (16), got 16",
        ),
        ({"output_attentions": True}, "attention weights are never written out here: output_attentions must be False, "
         "not True"),
        (
            {"attention_mask": torch.ones(1, 2)},
            "attention_mask has shape [1, 2] and must have [1, 3]: 1 rows of 0 past and 3 new tokens",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(arguments, message):
    with pytest.raises(RequestError) as caught:
        tiny_imagegpt()(**{"input_ids": colours(1, 3)} | arguments)
    assert str(caught.value) == message


def test_a_row_that_outgrows_its_positions_is_refused_with_a_cache_too():
    model, cache = tiny_imagegpt(), transformers.DynamicCache()
    model(colours(1, 20), past_key_values=cache)
    with pytest.raises(RequestError, match=r"position 24 must be below n_positions \(24\): a row has 25 tokens"):
        model(colours(1, 5), past_key_values=cache)


def test_unknown_arguments_are_refused_with_a_suggestion():
    with pytest.raises(TypeError, match="did you mean attention_mask"):
        tiny_imagegpt()(colours(1, 5), atention_mask=torch.ones(1, 5))
    with pytest.raises(ConfigError, match=r"n_embd \(24\) must be divisible by n_head \(5\)"):
        tiny_imagegpt(n_head=5)


@pytest.mark.slow
def test_a_traced_model_checks_no_values():
    model = tiny_imagegpt()

    class WithoutCache(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, ids, positions):
            return self.model(ids, position_ids=positions, use_cache=False).logits

    ids, positions = colours(2, 6), torch.arange(6)[None]
    tokens = torch.export.Dim("tokens", min=2, max=24)
    shapes = {"ids": {1: tokens}, "positions": {1: tokens}}
    program = torch.export.export(WithoutCache(), (ids, positions), dynamic_shapes=shapes)
    longer = colours(2, 11)
    close(program.module()(longer, torch.arange(11)[None]), logits(model, longer), atol=1e-5, rtol=0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(model, reentrant):
    ids, gradients = colours(2, 9), []
    model = with_weights_of(model, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    for again in (False, True):
        if again:
            recompute_layers(model, {"use_reentrant": reentrant})
        model.zero_grad()
        model.train()(ids, labels=ids, use_cache=not again).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, wanted in gradients[0].items():
        close(gradients[1][name], wanted)


@pytest.mark.parametrize("how", ["eager", "sdpa"])
def test_mixed_precision_rounds_scores_unless_they_are_upcast(how):
    """Scores of some hundreds lose what tells them apart in bfloat16; the same in fp32 do not."""
    wide = tiny_imagegpt(scale_attn_weights=False, initializer_range=0.6, attn_implementation=how)
    upcast = with_weights_of(wide, reorder_and_upcast_attn=True, attn_implementation=how)
    seen = []
    for model in (wide, upcast):
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            q, k, v = torch.randn(3, 2, 3, 9, 8, generator=torch.Generator().manual_seed(0)).mul(4).bfloat16()
            backend = model.transformer.attention_of(PassInputs(1, 1, torch.device("cpu")))
            found = backend.attend(0, q, k, v, scale=1.0)
        assert found.dtype == torch.bfloat16
        exact = torch.nn.functional.scaled_dot_product_attention(
            q.double(), k.double(), v.double(), is_causal=True, scale=1.0
        )
        seen.append((found - exact).abs().max().item())
    assert seen[1] < 0.1
    if how == "eager":
        assert seen[0] > 3 * seen[1]


def test_autocast_trains():
    model, ids = tiny_imagegpt().train(), colours(2, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(ids, labels=ids).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_loss_over_micro_batches_is_that_of_the_whole():
    labels = colours(4, 9).masked_fill(torch.rand(4, 9) < 0.3, -100)
    counted = (labels[:, 1:] != -100).sum()
    model, ids = tiny_imagegpt(), colours(4, 9)
    parts = [
        model(x, labels=y, num_items_in_batch=counted).loss
        for x, y in zip(ids.split([1, 3]), labels.split([1, 3]), strict=True)
    ]
    close(sum(parts), model(ids, labels=labels).loss)


@pytest.mark.parametrize("kind", ["plain", "tied"])
def test_lora_trains_and_merges(kind):
    model = tiny_imagegpt(**KINDS[kind])
    plan = peft.LoraConfig(r=4, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)
    adapted = peft.get_peft_model(model, plan)
    before = {name: p.detach().clone() for name, p in adapted.named_parameters() if "lora" not in name}
    optimizer = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    ids, losses = colours(2, 12), []
    for _ in range(8):
        loss = adapted.train()(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, wanted in before.items():
        assert torch.equal(adapted.get_parameter(name), wanted), name
    wanted = logits(adapted.eval(), ids)
    merged = adapted.merge_and_unload()
    assert isinstance(merged, ImageGPTForCausalImageModeling)
    close(logits(merged, ids), wanted, atol=1e-4, rtol=1e-4)


class Rows(torch.utils.data.Dataset):
    """Sixteen gradients of colours, with a class each where one is to be found."""

    def __init__(self, classes: bool):
        self.classes = classes

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = (index + torch.arange(6)) % 16
        return {"input_ids": ids, "labels": ids[0] // 8 if self.classes else ids}


@pytest.mark.parametrize("cls", [ImageGPTForCausalImageModeling, ImageGPTForImageClassification])
def test_ten_steps_of_transformers_trainer_lower_the_loss(cls, tmp_path):
    how = {"batch": 4, "gradient_accumulation_steps": 2, "learning_rate": 1e-2}
    losses = losses_of(
        make_trainer(
            tiny_imagegpt(cls, num_labels=2), tmp_path, 10, Rows(classes=cls is ImageGPTForImageClassification), **how
        )
    )
    assert len(losses) == 10
    assert losses[-1] < 0.8 * losses[0]
    assert 0.2 < losses[0] < 8  # a mean, however micro-batches are weighed


def test_the_default_config_builds_and_says_what_may_not_be_split():
    with torch.device("meta"):
        model = ImageGPTForCausalImageModeling(modelwright.ImageGPTConfig())
    assert model.lm_head.weight.shape == (512, 512)
    assert sum(parameter.numel() for parameter in model.parameters()) == 76_682_240
    assert set(model._no_split_modules) == {"ImageGPTBlock"}
    assert type(model.transformer.h[0]).__name__ == "ImageGPTBlock"
    assert TINY["vocab_size"] - 1 == tiny_imagegpt().lm_head.out_features
