"""The tokens of a step where the engine is to choose: as many as fill the machine, fewer where others wait."""

from modelwright.engine.engine_config import MANY, EngineConfig
from modelwright.engine.served_model import ServedModel
from modelwright.ops.backends.cpu.unit import torch_lacks

FEW = 512
"""Two cores with AVX-512 BF16 multiply 512 rows of a dense layer as fast as 2,048, and nobody's next token waits for
more than those. Of 16 prompts of 256 tokens, each to draw 64, medians of 3 and 5 turns: a Llama of 1.1 billion
parameters draws as many tokens a second (35.8 and 34.9), the first after 12.8 s instead of 15.6 on average, with pauses
of 2.7 s instead of 10.2; a DeepSeek-V2 of 0.8 billion, whose experts then get 48 rows each, 80 instead of 81 to 83, the
first after 4.2 s instead of 5.2, with pauses of 0.9 s instead of 3.4. int8 weights, widened anew in each step, and fp32
lose nothing. A long prompt does, by what was read before: latent keys are expanded anew in each step, so that 6,144
tokens of the DeepSeek-V2 take 22.9 s instead of 18.5 (2,048 tokens 4.7 instead of 4.0; of the Llama 11.3 instead of
11.0). So whoever is alone gets longer steps. And where a processor lacks products of a type (bf16 on AVX2), each step
makes weights of fp32 anew: the DeepSeek-V2 then lost a sixth of its tokens a second by steps of 512."""


def step_tokens(served: ServedModel, settings: EngineConfig) -> tuple[int, int | None]:
    """At most, and of prompts where several are served; None is all. By device and type where nothing is asked for."""
    if settings.token_budget is not None:
        return settings.token_budget, None
    few = served.device.type == "cpu" and not torch_lacks(served.dtype)
    return max(MANY, settings.max_batch), FEW if few else None
