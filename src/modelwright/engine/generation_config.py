"""transformers' generation config as the fields of `SamplingParams`; what the engine does not serve is refused."""

import math
from typing import Any

from modelwright.errors import RequestError

_DEFAULT_TOP_K = 50  # what ``generate()`` takes where a config says nothing
_MEANT = {
    "max_new_tokens": "max_tokens",
    "max_length": "max_length",
    "min_new_tokens": "min_tokens",
    "repetition_penalty": "repetition_penalty",
    "stop_strings": "stop",
    "num_return_sequences": "n",
}
"""transformers' name of a setting to ours."""
_SAMPLING_ONLY = ("temperature", "top_p", "min_p")
NOT_SERVED: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "min_length": (0,),
    "top_h": (),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "encoder_no_repeat_ngram_size": (0,),
    "guidance_scale": (1.0,),
    "sequence_bias": (),
    "begin_suppress_tokens": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "watermarking_config": (),
    "penalty_alpha": (0.0,),
    "dola_layers": (),
    "constraints": (),
    "force_words_ids": (),
}
"""Settings of transformers that change which token is drawn and have no place here, with the values that do not."""


def read_generation_config(config: Any) -> dict[str, Any]:
    """The fields of `SamplingParams` that `config` sets; without ``do_sample`` they are greedy, as in transformers.

    Raises:
        RequestError: `config` sets something that `SamplingParams` has no field for.
    """
    for name, idle in NOT_SERVED.items():
        value = getattr(config, name, None)
        if value is not None and value not in idle:
            raise RequestError(f"the engine does not serve {name} of a generation config, got {value!r}")
    found = {ours: value for name, ours in _MEANT.items() if (value := getattr(config, name, None)) is not None}
    if config.do_sample:
        found |= {name: value for name in _SAMPLING_ONLY if (value := getattr(config, name, None)) is not None}
        found["top_k"] = _DEFAULT_TOP_K if config.top_k is None else config.top_k
    else:
        found["temperature"] = 0.0
    if config.eos_token_id is not None:
        found["eos_token_ids"] = [config.eos_token_id] if isinstance(config.eos_token_id, int) else config.eos_token_id
    if config.suppress_tokens:
        found["logit_bias"] = {id_: -math.inf for id_ in config.suppress_tokens}
    return found | ({"bad_words": config.bad_words_ids} if config.bad_words_ids else {})
