"""A line of JSON as what the engine takes: a prompt and how to continue it; it runs nothing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from modelwright.cli.console import say
from modelwright.cli.lines import Line
from modelwright.configs.field_types import cut, shown
from modelwright.engine.params import GUIDE_KINDS, Guide, SamplingParams
from modelwright.errors import RequestError
from modelwright.processing.batching import ProcessedPrompt
from modelwright.processing.data_urls import is_data_url
from modelwright.processing.images import count_frames
from modelwright.serving.load import Loaded
from modelwright.serving.opened import Opened
from modelwright.serving.prompts import Rendering, encode_messages, encode_text, pictures_in

GUIDES = GUIDE_KINDS
NOT_IN_LINES = ("guide", "prompt_logprobs")
"""Fields of `SamplingParams` that a line does not have: a guide's are fields of the line itself."""


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "chat_template": (lambda value: isinstance(value, str), "a Jinja template or the name of one"),
    "chat_template_kwargs": (lambda value: isinstance(value, dict), "an object"),
    "tools": (_are_objects, "a list of objects"),
    "documents": (_are_objects, "a list of objects"),
    "add_generation_prompt": (lambda value: isinstance(value, bool), "true or false"),
    "continue_final_message": (lambda value: isinstance(value, bool), "true or false"),
}
"""Fields of a line about how its messages are printed, by transformers' and vLLM's names, and what each must be."""
LONGEST_NAME = 200
"""Of a picture that a sentence names; what is longer is the picture itself, as text."""
MOST_DIGITS = 18
"""Of a token's id: fewer than an int64 may have."""
SAMPLING = (*(field.name for field in fields(SamplingParams) if field.name not in NOT_IN_LINES), *GUIDES)


@dataclass(frozen=True)
class Asked:
    """A line's request."""

    prompt: ProcessedPrompt
    params: SamplingParams

    @property
    def picture_bytes(self) -> int:
        """The size of the pixels that wait with it."""
        return self.prompt.images.nbytes


class Reader:
    """Turns lines into requests of one model.

    Args:
        defaults: fields of `SamplingParams` for lines that do not say.
        template: a chat template instead of the model's, or the name of one of the tokenizer's.
    """

    def __init__(self, opened: Opened, defaults: Mapping[str, Any], template: str | None = None):
        self._opened, self._defaults, self._template = opened, dict(defaults), template

    def read(self, line: Line) -> Asked:
        """The request of a line.

        Raises:
            RequestError: it cannot be served as it stands; the sentence names the line.
        """
        try:
            given = line.fields((*SAMPLING, *FORMS))
            params = self._opened.params(self._defaults | _sampling(given))
            prompt = read_prompt(self._opened.loaded, given, self._template)
            if "messages" in given and self._opened.loaded.checkpoint.reads_pictures:
                _tell_of_motion(line.number, given["messages"])
            return Asked(prompt, params)
        except RequestError as error:
            raise RequestError(f"line {line.number}: {error}") from error


def _tell_of_motion(line: int, messages: Any) -> None:
    """Say of which pictures only the first frame is shown, as `chat` does."""
    for picture in pictures_in(messages):
        if (frames := count_frames(picture)) > 1:
            named = isinstance(picture, str) and len(picture) < LONGEST_NAME and not is_data_url(picture)
            called = picture if named else "a picture"
            say(f"modelwright: line {line}: {called} is animated; the first of its {frames} frames is shown")


def read_prompt(loaded: Loaded, given: Mapping[str, Any], template: str | None = None) -> ProcessedPrompt:
    """What the fields of a line ask with, as the model reads it.

    Raises:
        RequestError: it cannot be read as it stands.
    """
    unused = [name for name in FORMS if name in given and "messages" not in given]
    if unused:
        raise RequestError(f"{unused[0]} says how messages are printed, and the line has none")
    if "prompt_token_ids" in given:
        ids = given["prompt_token_ids"]
        if not isinstance(ids, list):
            raise RequestError(f"prompt_token_ids must be a list of token ids, got {shown(ids)}")
        for place, id_ in enumerate(ids):
            if type(id_) is not int or not 0 <= id_ < 2**31:
                raise RequestError(f"prompt_token_ids must be a list of token ids, got {shown(id_)} at place {place}")
        return ProcessedPrompt.of_tokens(ids)
    if loaded.tokenizer is None:
        raise RequestError("this model's tokens are colours, so it reads prompt_token_ids only")
    if "prompt" in given:
        if not isinstance(given["prompt"], str):
            raise RequestError(f"prompt must be text, got {given['prompt']!r:.80}")
        return encode_text(loaded, given["prompt"])
    return encode_messages(loaded, given["messages"], _rendering(given, template))


def _rendering(given: Mapping[str, Any], template: str | None) -> Rendering:
    """How a line's messages are printed."""
    for name, (sound, words) in FORMS.items():
        if given.get(name) is not None and not sound(given[name]):
            raise RequestError(f"{name} must be {words}, got {given[name]!r:.80}")
    return Rendering(
        chat_template=given.get("chat_template") or template,
        tools=given.get("tools"),
        documents=given.get("documents"),
        variables=given.get("chat_template_kwargs") or {},
        add_generation_prompt=given.get("add_generation_prompt"),
        continue_final_message=given.get("continue_final_message"),
    )


def _sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `SamplingParams` among a line's."""
    asked = {name: value for name, value in given.items() if name in SAMPLING and name not in GUIDES}
    guide = {name: value for name, value in given.items() if name in GUIDES and value is not None}
    if isinstance(asked.get("logit_bias"), dict):
        asked["logit_bias"] = {_token(name): bias for name, bias in asked["logit_bias"].items()}
    return asked | ({"guide": Guide(**guide)} if guide else {})


def _token(name: str) -> int:
    """A token's id, which JSON has to write as a string."""
    if not name.isdecimal() or len(name) > MOST_DIGITS:
        raise RequestError(f"logit_bias must name tokens by their ids, got {cut(name)}")
    return int(name)
