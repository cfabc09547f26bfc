"""What each ``weight_init`` draws, and that ``skip`` and loaded weights are left alone."""

import math

import pytest
import torch
from transformers import initialization

from modelwright.families.deepseek_vl2.config import VisionEncoderConfig
from modelwright.families.deepseek_vl2.initialise import initialise_tower
from modelwright.families.deepseek_vl2.siglip import VisionTower

WIDTH, CLASSES, FAN_IN = 64, 10, 3 * 4 * 4


def make(weight_init: str) -> VisionTower:
    """A tower with every part, its layers filled with 7 before they are drawn."""
    config = VisionEncoderConfig(
        image_size=16,
        patch_size=4,
        width=WIDTH,
        layers=1,
        heads=2,
        class_token=True,
        ignore_head=False,
        num_classes=CLASSES,
        weight_init=weight_init,
    )
    tower = VisionTower(config)
    for weight in tower.parameters():
        torch.nn.init.constant_(weight, 7.0)
    torch.manual_seed(0)
    initialise_tower(tower)
    return tower


@pytest.mark.parametrize("scheme", ["skip", "", "moco", "jax", "jax_nlhb"])
def test_positions_class_token_and_query_are_always_drawn(scheme):
    tower = make(scheme)
    assert tower.attn_pool is not None and tower.cls_token is not None
    assert tower.pos_embed.std().item() == pytest.approx(WIDTH**-0.5, rel=0.1)
    assert tower.attn_pool.latent.std().item() == pytest.approx(WIDTH**-0.5, rel=0.4)
    assert 0 < tower.cls_token.abs().max() < 1e-5
    assert tower.norm.weight.eq(7).all()


def test_skip_leaves_the_layers():
    tower = make("skip")
    for layer in (tower.patch_embed.proj, tower.blocks[0].attn.qkv, tower.head):
        assert layer.weight.eq(7).all() and layer.bias.eq(7).all()


def test_the_plain_scheme():
    tower = make("")
    mlp = tower.blocks[0].mlp
    assert mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not mlp.fc1.bias.any() and not tower.head.bias.any()
    assert tower.patch_embed.proj.weight.eq(7).all()


def test_moco():
    attn = make("moco").blocks[0].attn
    bound = math.sqrt(6 / (WIDTH + WIDTH))  # of each of the three square projections, and of the output's
    for layer in (attn.qkv, attn.proj):
        assert 0.98 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()


@pytest.mark.parametrize(("scheme", "bias"), [("jax", 0.0), ("jax_nlhb", -math.log(CLASSES))])
def test_jax(scheme, bias):
    tower = make(scheme)
    block = tower.blocks[0]
    bound = math.sqrt(6 / (WIDTH + 3 * WIDTH))
    assert 0.98 * bound < block.attn.qkv.weight.abs().max() <= bound
    assert not block.attn.qkv.bias.any()
    assert 0 < block.mlp.fc1.bias.abs().max() < 1e-5
    assert tower.patch_embed.proj.weight.std().item() == pytest.approx(FAN_IN**-0.5, rel=0.05)
    assert not tower.patch_embed.proj.bias.any()
    assert not tower.head.weight.any()
    torch.testing.assert_close(tower.head.bias, torch.full((CLASSES,), bias))


def test_loaded_weights_are_left_alone_where_transformers_guards_them():
    tower = make("jax")
    loaded = tower.blocks[0].attn.qkv.weight
    loaded._is_hf_initialized = True
    before, other = loaded.clone(), tower.pos_embed.clone()
    with initialization.guard_torch_init_functions():
        initialise_tower(tower)
    assert torch.equal(loaded, before)
    assert not torch.equal(tower.pos_embed, other)
