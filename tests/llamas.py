"""Tiny Llamas for the tests, in both dialects, and transformers' own model on the same weights."""

from typing import Any

import torch
import transformers

from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.model import LlamaForCausalLM

HUGGING_FACE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MINDFORMERS: dict[str, Any] = {
    "dialect": "mindformers",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_heads": 4,
    "n_kv_heads": 2,
    "seq_length": 64,
    "init_method_std": 0.2,
    "compute_dtype": "float32",
    "param_init_type": "float32",
    "pad_token_id": 0,
}
EXPERTS: dict[str, Any] = {"expert_num": 4, "num_experts_chosen": 2, "use_gmm": True}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "yarn, all its keys": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 8.0,
        "beta_slow": 0.5,
        "mscale": 0.7,
        "mscale_all_dim": 0.5,
    },
    "yarn, attention factor": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "attention_factor": 1.5,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


def tiny_llama(cls: Any = LlamaForCausalLM, base: dict[str, Any] = MINDFORMERS, seed: int = 0, **fields: Any) -> Any:
    """A Llama with random weights, in eval mode."""
    torch.manual_seed(seed)
    return cls(LlamaConfig(**base | fields)).eval()


def with_weights_of(model: Any, **fields: Any) -> Any:
    """A model of the same class with other values of some fields and the same official weights."""
    other = type(model)(LlamaConfig.from_dict(model.config.to_dict(), **fields))
    state = model.state_dict()
    official = {name: state[place.parameter][place.index] for name, place in model.places().items()}
    other.load_state_dict(official)
    return other.eval()


def pair(cls: Any = LlamaForCausalLM, seed: int = 0, **fields: Any) -> tuple[Any, Any]:
    """Our model and transformers' on one Hugging Face config and the same weights, in eval mode."""
    torch.manual_seed(seed)
    theirs = getattr(transformers, cls.__name__)(transformers.LlamaConfig(**HUGGING_FACE | fields)).eval()
    ours = cls(LlamaConfig(**HUGGING_FACE | fields)).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def left_padded(ids: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """A mask that keeps each row's last ``lengths`` tokens."""
    return torch.stack([torch.arange(ids.shape[1]) >= ids.shape[1] - length for length in lengths]).long()
