"""What the tests of tuning share: tiny models of every kind, and their parts of a run's config."""

import copy
from typing import Any

import torch

from modelwright.configs.run import LoraPart, TunePart
from modelwright.training.tuning import lora_of, settle
from tests.fakes import MOE, NOAUX, tiny_v2, tiny_vl2, tokens
from tests.imagegpts import colours, tiny_imagegpt
from tests.llamas import EXPERTS, HUGGING_FACE, tiny_llama

SHARED = EXPERTS | {"shared_expert_num": 1, "use_shared_expert_gating": True}
MODELS = {
    "v2": lambda: tiny_v2(base=MOE | {"num_key_value_heads": 4}),  # transformers repeats keys that latents do not have
    "v2 noaux": lambda: tiny_v2(base=NOAUX),
    "v2 without gates": lambda: tiny_v2(base=MOE | {"gated_mlp": False}),
    "vl2": tiny_vl2,
    "llama": lambda: tiny_llama(base=HUGGING_FACE),
    "llama sliced": lambda: tiny_llama(base=HUGGING_FACE, pretraining_tp=2),
    "mindformers fused": lambda: tiny_llama(qkv_concat=True, qkv_has_bias=True),
    "mindformers experts": lambda: tiny_llama(moe_config=SHARED),
    "imagegpt": lambda: tiny_imagegpt(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
}


def Lora(**fields: Any) -> LoraPart:
    """LoRA of small models."""
    return LoraPart(**{"rank": 4, "alpha": 6} | fields)


def inputs(name: str, *shape: int) -> dict[str, torch.Tensor]:
    """Tokens that a model of `MODELS` takes, with themselves as labels."""
    ids = colours(*shape) if name == "imagegpt" else tokens(*shape)
    return {"input_ids": ids, "labels": ids}


def tuned(name: str, seed: int = 0, train: tuple[str, ...] = (), **lora: Any) -> tuple[Any, Any]:
    """A model with LoRA whose B is not 0, and the model that it was made of."""
    base = MODELS[name]()
    model = copy.deepcopy(base)
    settle(model, TunePart(train=train, lora=Lora(**lora)))
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for pair in lora_of(model).values():
            pair.B.normal_(std=0.05, generator=random)
    return model, base


def logits(model: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a model in eval mode says of tokens."""
    with torch.no_grad():
        return model.eval()(input_ids=given["input_ids"]).logits


def near(found: torch.Tensor, wanted: torch.Tensor, relative: float) -> bool:
    """Whether two tensors differ by so much of the greatest number at most."""
    found, wanted = found.detach(), wanted.detach()
    return float((found - wanted).abs().max()) <= relative * float(wanted.abs().max().clamp(min=1e-12))
