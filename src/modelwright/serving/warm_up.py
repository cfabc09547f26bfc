"""`warm_up`, what an engine is asked before anybody else asks: it compiles kernels and allocates what it will need."""

from PIL import Image

from modelwright.engine.params import SamplingParams
from modelwright.processing.batching import ProcessedPrompt
from modelwright.serving.opened import Opened
from modelwright.serving.prompts import encode_messages, encode_text

_TOKENS = 2
"""The first is drawn while the prompt is read, and only the second by a decode."""


def warm_up(opened: Opened) -> None:
    """Draw some tokens after a text, and after a picture where the model sees any; nothing of it stays in the cache."""
    engine = opened.engine
    params = SamplingParams(temperature=0.0, max_tokens=_TOKENS, ignore_eos=True)
    for prompt in _prompts(opened):
        if len(prompt) + _TOKENS <= min(engine.context, engine.cache_tokens):
            engine.generate([prompt], params)
    engine.forget_prefixes()


def _prompts(opened: Opened) -> list[ProcessedPrompt]:
    prompts = [encode_text(opened.loaded, "Hello")]
    if opened.loaded.checkpoint.reads_pictures:
        picture = {"role": "user", "content": "<image>\nWhat is this?", "images": [Image.new("RGB", (64, 64))]}
        prompts.append(encode_messages(opened.loaded, [picture, {"role": "assistant", "content": ""}]))
    return [prompt for prompt in prompts if len(prompt)]
