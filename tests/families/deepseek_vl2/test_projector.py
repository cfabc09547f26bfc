"""The projector against the official code's tensors, each type against its formula, and grids that do not divide."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn

from modelwright.families.deepseek_vl2.config import MlpProjectorConfig
from modelwright.families.deepseek_vl2.projector import MlpProjector, join_neighbours

GOLDEN = sorted((Path(__file__).parents[2] / "golden").glob("projector_*.safetensors"))
TYPES = ["identity", "linear", "mlp_gelu", "downsample_mlp_gelu"]


def make(**fields) -> MlpProjector:
    torch.manual_seed(0)
    return MlpProjector(MlpProjectorConfig(**({"input_dim": 4, "n_embed": 6} | fields)))


def test_golden_files_are_there():
    assert len(GOLDEN) == 5


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_equals_the_official_code(path):
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (safe_open is no mapping)
        config = json.loads(file.metadata()["config"])
    projector = MlpProjector(MlpProjectorConfig(**config))
    prefix = "weight."
    projector.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    torch.testing.assert_close(projector(tensors["input.x"]), tensors["output.y"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("side", "ratio"), [(4, 2), (3, 2), (5, 3), (1, 2), (3, 1), (27, 2)])
def test_neighbours_are_joined_channel_by_channel_with_zeros_beyond_the_edge(side, ratio):
    dim = 3
    x = torch.randn(2, side * side, dim)
    out = join_neighbours(x, ratio)
    squares = -(-side // ratio)
    assert out.shape == (2, squares**2, dim * ratio**2)
    for row in range(squares):
        for column in range(squares):
            expected = torch.zeros(2, dim, ratio, ratio)
            for i in range(ratio):
                for j in range(ratio):
                    y, z = row * ratio + i, column * ratio + j
                    if y < side and z < side:
                        expected[:, :, i, j] = x[:, y * side + z]
            assert torch.equal(out[:, row * squares + column], expected.flatten(1))


@pytest.mark.parametrize(
    ("fields", "widths"),
    [
        ({"projector_type": "identity", "n_embed": 4}, []),
        ({"projector_type": "linear"}, [(4, 6)]),
        ({"projector_type": "mlp_gelu", "depth": 1}, [(4, 6)]),
        ({"projector_type": "mlp_gelu", "depth": 3}, [(4, 6), (6, 6), (6, 6)]),
        ({"projector_type": "downsample_mlp_gelu", "depth": 2}, [(16, 6), (6, 6)]),
        (
            {"projector_type": "downsample_mlp_gelu", "depth": 4, "mlp_ratio": 3, "downsample_ratio": 3},
            [(36, 18), (18, 18), (18, 18), (18, 6)],
        ),
    ],
    ids=str,
)
def test_depth_ratio_and_type_set_the_layers(fields, widths):
    layers = [layer for layer in make(**fields).modules() if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == widths


@pytest.mark.parametrize("token_pooling", [False, True])
@pytest.mark.parametrize("kind", TYPES)
def test_use_bias_reaches_every_linear(kind, token_pooling):
    fields = {"projector_type": kind, "token_pooling": token_pooling, "n_embed": 4, "depth": 3}
    without, with_bias = make(**fields, use_bias=False), make(**fields)
    assert not [name for name in without.state_dict() if name.endswith("bias")]
    names = [*with_bias.state_dict()]
    assert [n for n in names if n.endswith("bias")] == [
        n.replace("weight", "bias") for n in names if n.endswith("weight")
    ]


@pytest.mark.parametrize("kind", TYPES)
def test_pooling_comes_first_and_quarters_the_tokens(kind):
    projector = make(projector_type=kind, token_pooling=True, n_embed=4)
    plain = make(projector_type=kind, n_embed=4)
    plain.load_state_dict({k: v for k, v in projector.state_dict().items() if not k.startswith("token_pooling")})
    x = torch.randn(2, 25, 4)
    pooled = projector.token_pooling_layer(join_neighbours(x, 2))  # a side of 5 becomes 3
    assert pooled.shape == (2, 9, 4)
    torch.testing.assert_close(projector(x), plain(pooled))
    assert projector(x).shape[1] == (4 if kind == "downsample_mlp_gelu" else 9)


def test_gelu_is_exact():
    projector = make(projector_type="mlp_gelu")
    x = torch.randn(2, 4, 4)
    first, last = projector.layers[0], projector.layers[2]
    assert torch.equal(projector(x), last(F.gelu(first(x))))
    assert not torch.equal(projector(x), last(F.gelu(first(x), approximate="tanh")))


def test_gradients_and_bf16():
    projector, x = make(token_pooling=True), torch.randn(1, 9, 4, requires_grad=True)
    projector(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    expected = projector(x)
    torch.testing.assert_close(projector.bfloat16()(x.bfloat16()).float(), expected, rtol=0.05, atol=0.05)
