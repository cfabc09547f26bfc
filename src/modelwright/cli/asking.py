"""A line of JSON as what the engine takes: a prompt and how to continue it; it reads no file and runs nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from modelwright.checkpoints.load import Loaded
from modelwright.cli.conversation import Prompt, encode_messages, prompt_of
from modelwright.cli.defaults import end_tokens, sampling_params
from modelwright.cli.lines import Line
from modelwright.engine.params import Guide, SamplingParams
from modelwright.errors import RequestError

GUIDES = tuple(field.name for field in fields(Guide))
NOT_IN_LINES = ("guide", "prompt_logprobs")
"""Fields of `SamplingParams` that a line does not have: a guide's are fields of the line itself."""
SAMPLING = (*(field.name for field in fields(SamplingParams) if field.name not in NOT_IN_LINES), *GUIDES)


@dataclass(frozen=True)
class Asked:
    """A line's request."""

    prompt: Prompt
    params: SamplingParams

    @property
    def picture_bytes(self) -> int:
        """The size of the pixels that wait with it."""
        pixels = self.prompt.inputs.get("images")
        return 0 if pixels is None else pixels.nbytes


class Reader:
    """Turns lines into requests of one model.

    Args:
        loaded: the model.
        tokenizer: None where its tokens are colours.
        defaults: fields of `SamplingParams` for lines that do not say.
    """

    def __init__(self, loaded: Loaded, tokenizer: Any, defaults: Mapping[str, Any]):
        self._loaded, self._tokenizer = loaded, tokenizer
        self._defaults = {"eos_token_ids": end_tokens(tokenizer, loaded.model)} | dict(defaults)

    def read(self, line: Line) -> Asked:
        """The request of a line.

        Raises:
            RequestError: it cannot be served as it stands; the sentence names the line.
        """
        try:
            given = line.fields(SAMPLING)
            params = sampling_params(self._loaded.model.config, self._defaults | _sampling(given))
            return self._prompt(given, params)
        except RequestError as error:
            raise RequestError(f"line {line.number}: {error}") from error

    def _prompt(self, given: Mapping[str, Any], params: SamplingParams) -> Asked:
        if "prompt_token_ids" in given:
            ids = given["prompt_token_ids"]
            if not isinstance(ids, list) or not all(type(id_) is int and 0 <= id_ < 2**31 for id_ in ids):
                raise RequestError("prompt_token_ids must be a list of token ids")
            return Asked(prompt_of(ids), params)
        if self._tokenizer is None:
            raise RequestError("this model's tokens are colours, so it reads prompt_token_ids only")
        if "prompt" in given:
            if not isinstance(given["prompt"], str):
                raise RequestError(f"prompt must be text, got {given['prompt']!r:.80}")
            return Asked(prompt_of(self._tokenizer.encode(given["prompt"])), params)
        return Asked(encode_messages(self._loaded, given["messages"]), params)


def _sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `SamplingParams` among a line's."""
    asked = {name: value for name, value in given.items() if name in SAMPLING and name not in GUIDES}
    guide = {name: value for name, value in given.items() if name in GUIDES and value is not None}
    if isinstance(asked.get("logit_bias"), dict):
        asked["logit_bias"] = {_token(name): bias for name, bias in asked["logit_bias"].items()}
    return asked | ({"guide": Guide(**guide)} if guide else {})


def _token(name: str) -> int:
    """A token's id, which JSON has to write as a string."""
    if not name.isdecimal():
        raise RequestError(f"logit_bias must name tokens by their ids, got {name!r}")
    return int(name)
