"""From a checked request to what the engine takes; what takes time is done in threads, not on the event loop."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from modelwright.engine.prepared import Prepared
from modelwright.engine.refusals import LargerThanCache
from modelwright.errors import GuideError, RequestError
from modelwright.processing.batching import ProcessedPrompt
from modelwright.processing.plain_words import cut_marks
from modelwright.processing.templates import pick_template
from modelwright.server.answers import Answer
from modelwright.server.boxes import BoxReader, locate_text
from modelwright.server.constraints import Constraint, Guiding, read_constraint
from modelwright.server.events import Row
from modelwright.server.live import Live
from modelwright.server.loop_time import LoopTime
from modelwright.server.metrics import Metrics
from modelwright.server.pictures import Picture, PictureReader
from modelwright.server.prompt_forms import prompts_of
from modelwright.server.prompting import Conversation, Printed, picture_sources
from modelwright.server.reasoning import OPEN, ThinkReader
from modelwright.server.sampling import sampling_params
from modelwright.server.served import Served
from modelwright.server.settings import ServerSettings
from modelwright.server.short import CONSTRAINING, is_short
from modelwright.server.usage import Meter
from modelwright.server.wire.chat import ChatRequest
from modelwright.server.wire.completions import MOST_PROMPTS, CompletionRequest
from modelwright.server.wire.errors import ApiError
from modelwright.server.wire.grounding import GroundingOptions
from modelwright.server.wire.sampling import SamplingFields
from modelwright.server.wire.usage import Usage
from modelwright.serving.prompts import encode_text

WORKERS = 4
COMPLETION_TOKENS = 16
"""How long a completion becomes where the request does not say, as in OpenAI's."""
T = TypeVar("T")


@dataclass(frozen=True)
class Ready:
    """One prompt, ready for the engine.

    Attributes:
        answers: one for each output, which reads it.
        grounds: boxes are looked for in the answers.
        prompt_text: what a completion with `echo` repeats.
    """

    prepared: Prepared
    answers: tuple[Answer, ...]
    meter: Meter
    grounds: bool = False
    prompt_text: str = ""

    @property
    def usage(self) -> Usage:
        """What all its answers took so far."""
        return self.meter.usage(sum(answer.thought_tokens for answer in self.answers))


class Preparation:
    """Makes requests ready for the engine.

    Args:
        pictures: reads what messages show.
    """

    def __init__(self, served: Served, settings: ServerSettings, pictures: PictureReader, metrics: Metrics):
        self._served, self._settings, self._pictures, self._metrics = served, settings, pictures, metrics
        self._pool, self._loop_time = ThreadPoolExecutor(WORKERS, "modelwright-prepare"), LoopTime()
        self._conversation = Conversation(served, settings.plain_content_only, settings.chat_template)
        template: Any = served.tokenizer.chat_template
        if settings.chat_template is not None:
            template = pick_template(template, settings.chat_template, with_tools=True)
        self._guiding = Guiding.of(served.tokenizer, template, settings.tool_format, settings.guide_timeout)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """What `work` gives, computed by one of the workers."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    async def _made(self, request: ChatRequest | CompletionRequest, work: Callable[[], T]) -> T:
        """What `work` gives: for a short request here, as long as the loop has time for that, else `in_thread`.

        A thread that wakes waits for the interpreter twice, and while the engine computes that takes longer.
        """
        if is_short(request, self._is_plain) and self._loop_time.left():
            return self._loop_time.run(work)
        return await self.in_thread(work)

    def _is_plain(self, text: str) -> bool:
        return cut_marks(text, self._served.tokenizer) == text

    async def chat(self, request: ChatRequest, live: Live, salt: str = "") -> Ready:
        """A conversation.

        Raises:
            ApiError: it cannot be served.
        """
        pictures = await self.pictures_of(request, live)
        live.enter("preparing")
        return await self._made(request, lambda: self._chat(request, pictures, salt))

    async def pictures_of(self, request: ChatRequest, live: Live) -> list[Picture]:
        """The pictures that a conversation shows, read."""
        sources = picture_sources(request.messages)
        if not sources:
            return []
        if not self._served.reads_pictures:
            said = f"{self._served.name} reads text only, and the messages show {len(sources)} pictures"
            raise ApiError(400, "invalid_value", said, param=sources[0].where)
        live.enter("picture")
        live.record.pictures = len(sources)
        return await self._pictures.read(sources)

    async def count(self, request: ChatRequest, live: Live) -> tuple[int, int]:
        """How many tokens a conversation has, and how many of them stand for pictures."""
        pictures = await self.pictures_of(request, live)
        printed = await self.in_thread(lambda: self._prompt(request, pictures)[0])
        return len(printed.prompt), printed.prompt.picture_tokens

    async def tokens(self, request: ChatRequest, live: Live) -> list[int]:
        """The tokens of a conversation."""
        pictures = await self.pictures_of(request, live)
        printed = await self.in_thread(lambda: self._prompt(request, pictures)[0])
        return printed.prompt.input_ids.tolist()

    def text_tokens(self, text: str, marks: bool) -> list[int]:
        """The tokens of a text, with the marks that the tokenizer puts around it or without."""
        if marks:
            return encode_text(self._served.loaded, text).input_ids.tolist()
        return self._served.tokenizer.encode(text, add_special_tokens=False)

    async def completions(self, request: CompletionRequest, live: Live, salt: str = "") -> list[Ready]:
        """The prompts of a request, each of its own.

        Raises:
            ApiError: one of them cannot be served; then none is.
        """
        live.enter("preparing")
        return await self._made(request, lambda: self._completions(request, salt))

    def _completions(self, request: CompletionRequest, salt: str) -> list[Ready]:
        prompts = prompts_of(request.prompt)
        samples = len(prompts) * (request.n or 1)
        if samples > MOST_PROMPTS:
            said = f"prompts times n must be at most {MOST_PROMPTS}, got {samples}"
            raise ApiError(400, "invalid_value", said, param="prompt")
        return [self._completion(request, prompt, salt) for prompt in prompts]

    def _prompt(self, request: ChatRequest, pictures: Sequence[Picture]) -> tuple[Printed, Constraint]:
        constraint = self._constraint(request)
        names = request.grounding.locate if request.grounding is not None else []
        ending = locate_text([cut_marks(name, self._served.tokenizer) for name in names]) if names else ""
        with self._metrics.picture_stage("prepare") if pictures else nullcontext():
            return self._conversation.prompt(request, pictures, constraint, ending), constraint

    def _constraint(self, request: SamplingFields) -> Constraint:
        fields = {name: getattr(request, name, None) for name in CONSTRAINING}
        if isinstance(request, ChatRequest) and request.grounding is not None:
            fields["grounding"] = {"constrain": request.grounding.constrain}
        return read_constraint(fields, self._guiding)

    def _chat(self, request: ChatRequest, pictures: Sequence[Picture], salt: str) -> Ready:
        grounding = request.grounding or GroundingOptions()
        if request.grounding is not None and not self._served.grounds:
            said = f"{self._served.name} draws no boxes, so grounding means nothing here"
            raise ApiError(400, "unsupported_parameter", said, param="grounding")
        if request.top_logprobs and not request.logprobs:
            said = "top_logprobs needs logprobs: true"
            raise ApiError(400, "invalid_value", said, param="top_logprobs")
        self._check_logprobs("top_logprobs", request.top_logprobs)
        printed, constraint = self._prompt(request, pictures)
        prompt = printed.prompt
        asked = request.max_completion_tokens or request.max_tokens or self._settings.default_max_tokens
        logprobs = (request.top_logprobs or 0) if request.logprobs else None
        prepared = self._prepare(request, prompt, asked, logprobs, constraint, salt)
        sizes = [picture.size for picture in pictures]
        draws = self._served.grounds and (bool(pictures) or request.grounding is not None)
        begun = prompt.text.rstrip().endswith(OPEN) and constraint.leaves_text_free
        texts = self._served.token_texts if request.logprobs else None

        def answer(index: int) -> Answer:
            thinks = None if self._settings.reasoning is None else ThinkReader(begun)
            boxes = BoxReader(grounding, sizes, printed.last_picture) if draws else None
            readers = [reader for reader in (thinks, constraint.reader(), boxes) if reader is not None]
            return Answer(index, Row(readers), texts, request.top_logprobs or 0, thinks)

        answers = tuple(answer(index) for index in range(request.n or 1))
        return Ready(prepared, answers, Meter(len(prompt), prompt.picture_tokens), draws and grounding.parse)

    def _completion(self, request: CompletionRequest, given: str | list[int], salt: str) -> Ready:
        if request.suffix:
            said = "suffix is not supported: this model's tokenizer has no tokens to fill in the middle with"
            raise ApiError(400, "unsupported_parameter", said, param="suffix")
        loaded = self._served.loaded
        if isinstance(given, str):
            if not given:
                raise ApiError(400, "invalid_value", "prompt must not be empty", param="prompt")
            prompt = encode_text(loaded, given)
        else:
            prompt = ProcessedPrompt.of_tokens(given)
        constraint = self._constraint(request)
        asked = COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
        self._check_logprobs("logprobs", request.logprobs)
        echoed = request.logprobs if request.echo and request.prompt_logprobs is None else request.prompt_logprobs
        prepared = self._prepare(request, prompt, asked, request.logprobs, constraint, salt, echoed)
        text = given if isinstance(given, str) else self._served.tokenizer.decode(given)
        texts = self._served.token_texts if request.logprobs is not None else None
        answers = tuple(Answer(index, Row([]), texts, request.logprobs or 0) for index in range(request.n or 1))
        return Ready(prepared, answers, Meter(len(prompt)), prompt_text=text)

    def _check_logprobs(self, name: str, asked: int | None) -> None:
        """Of how many alternatives a request may be told."""
        most = self._settings.max_logprobs
        if asked is not None and asked > most:
            raise ApiError(400, "invalid_value", f"{name} must be at most {most} here, got {asked}", param=name)

    def _prepare(
        self,
        request: SamplingFields,
        prompt: ProcessedPrompt,
        max_tokens: int,
        logprobs: int | None,
        constraint: Constraint,
        salt: str,
        prompt_logprobs: int | None = None,
    ) -> Prepared:
        context, length = self._served.context, len(prompt)
        if length + min(max_tokens, 1) > context:
            raise ApiError(
                400,
                "context_length_exceeded",
                f"the prompt is {length} tokens long and the model's context holds {context}, which leaves no room "
                "for an answer",
                param="messages" if isinstance(request, ChatRequest) else "prompt",
            )
        params = sampling_params(
            request,
            self._served.sampling_defaults,
            max_tokens=min(max_tokens, context - length),
            logprobs=logprobs,
            guide=constraint.guide,
            prompt_logprobs=prompt_logprobs if prompt_logprobs is not None else request.prompt_logprobs,
            max_n=self._settings.max_n,
            max_logprobs=self._settings.max_logprobs,
        )
        if constraint.keeps_special_tokens:  # whatever was asked for: the reader takes out those around calls
            params = replace(params, skip_special_tokens=False)
        start = time.perf_counter()
        try:
            return self._served.engine.prepare(prompt, params, salt=salt)
        except GuideError as error:
            raise constraint.refusal(error) from error
        except LargerThanCache as error:
            raise ApiError(400, "request_too_large_for_cache", str(error)) from error
        except RequestError as error:
            raise ApiError.of(error) from error
        finally:
            if constraint.guide is not None:
                self._metrics.guide_compiled(time.perf_counter() - start)
