"""Models to serve: the nano that sees, and a tiny Llama of bytes whose template knows tools; loaded once a process."""

import atexit
import shutil
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

import torch

from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.model import LlamaForCausalLM
from modelwright.serving.load import Loaded, load_network
from modelwright.serving.opened import find_model
from tests.engine.small_tokenizers import byte_tokenizer

PICTURE = Path(__file__).parents[2] / "examples" / "pictures" / "shapes.png"
TEMPLATE = (
    "{%- if tools %}{{ '<|im_start|>tools\\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    "{{ '<tool_call>' if false }}{{ '<|im_end|>\\n' }}{% endif -%}"
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content %}{{ message.content }}{% endif %}"
    "{%- for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}"
    "{{- '<|im_end|>\\n' }}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    "{%- if mood %}{{ mood }}{% endif %}"
)


@lru_cache(1)
def nano() -> Loaded:
    """vl2-nano, which sees pictures and draws boxes."""
    return load_network(find_model("vl2-nano").checkpoint)


@lru_cache(1)
def llama_folder() -> Path:
    """A tiny Llama with random weights; its tokens are bytes, so that characters are split over them."""
    folder = Path(mkdtemp(prefix="modelwright-llama-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.2,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
    )
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    return folder


@lru_cache(1)
def llama() -> Loaded:
    """The Llama of `llama_folder`."""
    return load_network(find_model(str(llama_folder())).checkpoint)
