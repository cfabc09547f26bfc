"""Packed rows attend as their documents would alone, over a cache too, in both kinds of attention."""

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from modelwright.attention import DenseAttention, PackedAttention

DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1]])


@pytest.fixture
def qkv():
    torch.manual_seed(0)
    return torch.randn(2, 4, 7, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)


@pytest.mark.parametrize("fused", [False, True])
def test_each_document_is_as_if_alone(qkv, fused):
    found = PackedAttention(DOCUMENTS, fused=fused).attend(0, *qkv, scale=0.3)
    for row in range(2):
        for number in DOCUMENTS[row].unique():
            own = DOCUMENTS[row] == number
            q, k, v = (part[row : row + 1, :, own] for part in qkv)
            alone = DenseAttention(fused=fused).attend(0, q, k, v, scale=0.3)
            torch.testing.assert_close(found[row : row + 1, :, own], alone)


def test_padding_inside_a_document_is_not_seen(qkv):
    mask = torch.ones(2, 7)
    mask[1, 2] = 0
    found = PackedAttention(DOCUMENTS, mask).attend(0, *qkv, scale=0.3)
    keep = [1, 3, 4, 5, 6]
    q, k, v = (part[1:, :, keep] for part in qkv)
    torch.testing.assert_close(found[1:, :, keep], DenseAttention().attend(0, q, k, v, scale=0.3))


def test_a_split_over_a_cache_equals_one_pass(qkv):
    cache, parts = DynamicCache(), []
    for start, stop in ((0, 4), (4, 7)):
        backend = PackedAttention(DOCUMENTS[:, :stop], cache=cache, past=start)
        parts.append(backend.attend(0, *(part[:, :, start:stop] for part in qkv), scale=0.3))
    torch.testing.assert_close(torch.cat(parts, dim=2), PackedAttention(DOCUMENTS).attend(0, *qkv, scale=0.3))


def test_latent_attention_stays_within_documents_too():
    torch.manual_seed(0)
    kv_b = nn.Linear(6, 4 * (5 + 3), bias=False)
    tensors = torch.randn(2, 4, 7, 5), torch.randn(2, 4, 7, 2), torch.randn(2, 7, 6), torch.randn(2, 7, 2)
    found = PackedAttention(DOCUMENTS).attend_latent(0, *tensors, kv_b, kv_b_weight=kv_b.weight, scale=0.3)
    own = slice(1, 7)
    alone = (tensors[0][1:, :, own], tensors[1][1:, :, own], tensors[2][1:, own], tensors[3][1:, own])
    wanted = DenseAttention().attend_latent(0, *alone, kv_b, kv_b_weight=kv_b.weight, scale=0.3)
    torch.testing.assert_close(found[1:, :, own], wanted)
