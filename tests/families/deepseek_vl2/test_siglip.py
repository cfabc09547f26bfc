"""The vision tower: its formula, its pooling heads, recomputation, and pictures that do not fit."""

import pytest
import torch
import torch.nn.functional as F

from modelwright.errors import RequestError
from modelwright.families.deepseek_vl2.config import VisionEncoderConfig
from modelwright.families.deepseek_vl2.siglip import VisionTower


def make(**fields) -> VisionTower:
    """A small tower: head_dim 9 (no power of two), a 3 x 3 grid, and 2 pixels at the edges that fill no patch."""
    sizes = {"image_size": 14, "patch_size": 4, "width": 18, "layers": 2, "heads": 2, "mlp_ratio": 2.5}
    torch.manual_seed(0)
    tower = VisionTower(VisionEncoderConfig(**(sizes | fields)))
    for weight in tower.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return tower


def pictures(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 14, 14, generator=torch.Generator().manual_seed(1))


def test_the_formula():
    tower, x = make(layers=1), pictures()
    patches = x[:, :, :12, :12].unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(2, 9, 48)
    h = patches @ tower.patch_embed.proj.weight.flatten(1).T + tower.patch_embed.proj.bias + tower.pos_embed
    block = tower.blocks[0]
    q, k, v = block.attn.qkv(F.layer_norm(h, (18,), block.norm1.weight, block.norm1.bias, 1e-6)).chunk(3, dim=-1)
    heads = []
    for part in (slice(0, 9), slice(9, 18)):
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / 3.0).softmax(-1)
        heads.append(weights @ v[..., part])
    h = h + block.attn.proj(torch.cat(heads, dim=-1))
    normed = F.layer_norm(h, (18,), block.norm2.weight, block.norm2.bias, 1e-6)
    h = h + block.mlp.fc2(F.gelu(block.mlp.fc1(normed), approximate="tanh"))
    expected = F.layer_norm(h, (18,), tower.norm.weight, tower.norm.bias, 1e-6)
    torch.testing.assert_close(tower(x), expected, rtol=1e-4, atol=1e-5)


def test_so400m_sizes_and_names():
    config = VisionEncoderConfig(image_size=384, patch_size=14, width=1152, layers=27, heads=16, mlp_ratio=3.7362)
    with torch.device("meta"):
        tower = VisionTower(config)
    shapes = {name: tuple(weight.shape) for name, weight in tower.state_dict().items()}
    assert shapes["pos_embed"] == (1, 729, 1152)
    assert shapes["patch_embed.proj.weight"] == (1152, 3, 14, 14)
    assert shapes["blocks.26.attn.qkv.weight"] == (3456, 1152)
    assert shapes["blocks.0.mlp.fc1.weight"] == (4304, 1152)
    assert "norm.bias" in shapes and not any(name.startswith(("attn_pool", "head", "fc_norm")) for name in shapes)
    assert config.head_dim == 72


def test_a_class_token_takes_part_and_is_not_returned():
    tower, x = make(class_token=True), pictures()
    assert tower.pos_embed.shape == (1, 10, 18)
    before = tower(x)
    assert before.shape == (2, 9, 18)
    with torch.no_grad():
        assert tower.cls_token is not None
        tower.cls_token += torch.randn(18)  # a constant would vanish in the norm
    assert not torch.allclose(tower(x), before, atol=1e-3)


def test_the_mean_is_normed_after_pooling_and_leaves_the_class_token_out():
    tower, x = make(ignore_head=False, global_pool="avg", class_token=True), pictures()
    assert "norm.weight" not in tower.state_dict()
    bare = make(class_token=True)
    bare.load_state_dict({k: v for k, v in tower.state_dict().items() if "fc_norm" not in k}, strict=False)
    bare.norm = torch.nn.Identity()
    torch.testing.assert_close(tower(x), tower.fc_norm(bare(x).mean(dim=1)))


def test_the_class_token_is_pooled():
    pooled, x = make(ignore_head=False, global_pool="token", class_token=True), pictures()
    rows = make(ignore_head=False, global_pool="", class_token=True)
    rows.load_state_dict(pooled.state_dict())
    assert rows(x).shape == (2, 10, 18)
    torch.testing.assert_close(pooled(x), rows(x)[:, 0])


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_map_head_attends_with_one_learned_query(deterministic):
    tower, x = make(ignore_head=False, deterministic=deterministic), pictures()
    plain = make()
    plain.load_state_dict({k: v for k, v in tower.state_dict().items() if not k.startswith("attn_pool")})
    pool, h = tower.attn_pool, plain(x)
    assert pool is not None
    k, v = pool.kv(h).chunk(2, dim=-1)
    heads = []
    for part in (slice(0, 9), slice(9, 18)):
        weights = (pool.q(pool.latent)[..., part] @ k[..., part].transpose(1, 2) / 3.0).softmax(-1)
        heads.append(weights @ v[..., part])
    out = pool.proj(torch.cat(heads, dim=-1))
    expected = (out + pool.mlp(pool.norm(out)))[:, 0]
    torch.testing.assert_close(tower(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("global_pool", ["map", "avg"])
def test_a_classifier_follows_the_pooling(global_pool):
    tower, x = make(ignore_head=False, global_pool=global_pool, num_classes=5), pictures()
    out = tower(x)
    assert out.shape == (2, 5)
    pooled = make(ignore_head=False, global_pool=global_pool)
    pooled.load_state_dict(tower.state_dict(), strict=False)
    torch.testing.assert_close(out, tower.head(pooled(x)))


def test_the_written_out_product_gives_the_same():
    fused, written = make(), make(deterministic=True)
    torch.testing.assert_close(written(pictures()), fused(pictures()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("limit", "recomputed"), [(0, 3), (1, 1), (3, 3)])
def test_recomputed_blocks_give_equal_gradients(limit, recomputed, monkeypatch):
    plain, saving = make(layers=3), make(layers=3, use_checkpoint=True, num_recomputing_layers=limit)
    runs = []
    for block in saving.blocks:
        block.register_forward_pre_hook(lambda *_: runs.append(1))
    x = pictures()
    for tower in (plain, saving):
        tower(x).square().mean().backward()
    assert len(runs) == 3 + recomputed
    for ours, theirs in zip(saving.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    runs.clear()
    saving.eval()(x)
    assert len(runs) == 3


@pytest.mark.parametrize("shape", [(2, 3, 14, 18), (2, 1, 14, 14), (3, 14, 14), (2, 3, 15, 15)], ids=str)
def test_pictures_of_another_shape_are_refused(shape):
    with pytest.raises(RequestError) as error:
        make()(torch.zeros(shape))
    assert str(error.value) == f"pictures must be [tiles, 3, 14, 14], got {list(shape)}"


def test_half_types_follow_fp32():
    tower, x = make(), pictures()
    expected = tower(x)
    torch.testing.assert_close(tower.bfloat16()(x.bfloat16()).float(), expected, rtol=0.05, atol=0.15)
