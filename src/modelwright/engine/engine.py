"""`Engine`, many requests through one model: schedule, run, sample, step by step; it knows no threads and no HTTP."""

import random
import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from itertools import count
from typing import Any

import torch

from modelwright.engine.blocks import BlockPool
from modelwright.engine.cache import cache_layout, default_pages
from modelwright.engine.detokenize import Detokenizer
from modelwright.engine.engine_config import EngineConfig
from modelwright.engine.guide import GuideCompiler
from modelwright.engine.noise import sample_key
from modelwright.engine.output import OutputStream
from modelwright.engine.params import SamplingParams
from modelwright.engine.picture_rows import PictureRows
from modelwright.engine.prompt import Prompt, read_prompt
from modelwright.engine.request import Request, Sample
from modelwright.engine.results import EngineStatistics, Result, Update
from modelwright.engine.runner import Logits, Runner
from modelwright.engine.sample_row import SampleRow, encode_bad_words
from modelwright.engine.sampling import Sampled, sample
from modelwright.engine.scheduler import Scheduler
from modelwright.engine.scheduler_settings import SchedulerSettings
from modelwright.engine.sequence import Sequence
from modelwright.engine.step import Step
from modelwright.errors import RequestError
from modelwright.models import DeepseekVLV2ForCausalLM

_CONTEXT_OF_TEXT = 8
"""How many of the prompt's last tokens say how the text goes on."""


class Engine:
    """Serves requests with one model; see `EngineConfig` for its limits.

    Use `generate`, or `add_request`, `step` and `abort`. One thread at a time.

    Args:
        model: a causal language model of ours, in evaluation mode; its device and type are the engine's.
        config: by default the limits of `EngineConfig`.
        tokenizer: of transformers; without one prompts are token ids and outputs have no text.

    Attributes:
        statistics: of the last step; None before the first.
    """

    def __init__(self, model: Any, config: EngineConfig | None = None, tokenizer: Any = None):
        self.model, self.config, self.tokenizer = model, config or EngineConfig(), tokenizer
        self.statistics: EngineStatistics | None = None
        settings, text_config = self.config, model.config.get_text_config()
        trained = text_config.max_position_embeddings
        self.context = min(settings.max_context or trained, trained)
        sees = isinstance(model, DeepseekVLV2ForCausalLM)
        self._pictures = PictureRows(model, settings.kept_pictures) if sees else None
        self._pages, pools = self._make_cache()
        self._runner = Runner(model, pools, self._pictures)
        pool = BlockPool(self._pages, settings.page_size, settings.reuse_prefixes)
        limits = SchedulerSettings(settings.max_batch, settings.token_budget, settings.chunk_prefill, self.context)
        self._scheduler = Scheduler(pool, limits)
        self._requests: dict[str, Request] = {}
        self._samples: dict[str, tuple[Request, Sample]] = {}
        self._with_pictures: dict[str, Prompt] = {}
        self._guides = GuideCompiler(tokenizer, self._eos()) if tokenizer is not None else None
        self._seeds, self._numbers = random.Random(), count()

    @property
    def has_work(self) -> bool:
        """Whether any request has not ended."""
        return bool(self._requests)

    @property
    def vocabulary(self) -> int:
        """How many tokens may be drawn."""
        return self.model.get_output_embeddings().weight.shape[0]

    def generate(
        self,
        prompts: SequenceOf[Any],
        params: SamplingParams | SequenceOf[SamplingParams] | None = None,
        on_update: Callable[[Update], None] | None = None,
    ) -> list[Result]:
        """Serve `prompts` to their ends, in their order.

        Args:
            prompts: each text, token ids, or the batch of one row that a processor makes.
            params: for all, or one for each; by default those of `SamplingParams`.
            on_update: called with every piece as it comes.

        Raises:
            RequestError: a request that cannot be served; then none is.
        """
        each = [params or SamplingParams()] * len(prompts) if not isinstance(params, SequenceOf) else params
        if len(each) != len(prompts):
            raise RequestError(f"there must be one SamplingParams for each prompt, got {len(each)} for {len(prompts)}")
        requests: list[Request] = []
        try:
            for prompt, own in zip(prompts, each, strict=True):
                requests.append(self._requests[self.add_request(prompt, own)])
            while not all(request.ended for request in requests):
                for update in self.step():
                    if on_update is not None:
                        on_update(update)
        except BaseException:
            for request in requests:
                self.abort(request.id)
            raise
        return [request.result() for request in requests]

    def add_request(
        self, prompt: Any, params: SamplingParams | None = None, *, id: str | None = None, priority: int = 0
    ) -> str:
        """Let a request wait for its turn; returns its id.

        Args:
            prompt, params: as for `generate`.
            id: a name that no living request has; by default a new one.
            priority: lower goes first.

        Raises:
            RequestError: it cannot be served: too long, a token beyond the vocabulary, a guide that cannot be followed.
        """
        params = params or SamplingParams()
        name = f"request-{next(self._numbers)}" if id is None else id
        if name in self._requests:
            raise RequestError(f"a request needs an id of its own, {name!r} is being served")
        parsed = read_prompt(prompt, self.tokenizer, self.model.config)
        self._check(parsed, params)
        room = params.room(len(parsed.tokens), self.context)
        sequences = [self._sequence(name, index, parsed, params, room, priority) for index in range(params.n)]
        samples = self._make_samples(sequences, parsed, params, room)
        self._scheduler.add(sequences[0], sequences[1:])
        request = Request(name, parsed, params, samples)
        self._requests[name] = request
        for own in samples:
            self._samples[own.sequence.id] = request, own
            if parsed.pictures:
                self._with_pictures[own.sequence.id] = parsed
        return name

    def serves(self, id: str) -> bool:
        """Whether the request of that id has not ended."""
        return id in self._requests

    def abort(self, id: str) -> list[Update]:
        """End a request wherever it stands; nothing if it has ended."""
        request = self._requests.get(id)
        if request is None:
            return []
        for own in request.samples:
            self._scheduler.abort(own.sequence.id)
        updates = request.abort()
        self._forget(request)
        return updates

    def step(self) -> list[Update]:
        """Compute one step and say what it added; nothing without work."""
        if not self.has_work:
            return []
        start = time.perf_counter()
        step = self._scheduler.schedule()
        try:
            logits = self._runner.run(step, self._with_pictures)
            drawing = [sequence for chunk in step.chunks for sequence in chunk.draws]
            sampled = sample(logits.drawing, [self._samples[sequence.id][1].row for sequence in drawing])
        except BaseException:
            self._scheduler.discard(step)
            raise
        updates = self._take(step, drawing, logits, sampled)
        self.statistics = EngineStatistics(step.statistics, time.perf_counter() - start)
        return updates

    def _take(self, step: Step, drawing: list[Sequence], logits: Logits, sampled: Sampled) -> list[Update]:
        """Hand out what a step computed."""
        starts = {chunk.sequence.id: chunk.start for chunk in step.chunks}
        for id_, rows in logits.prompts.items():
            self._samples[id_][0].read_prompt(starts[id_], rows)
        tokens = sampled.tokens.tolist()
        updates, reasons = [], {}
        for sequence, token, logprobs in zip(drawing, tokens, sampled.logprobs, strict=True):
            request, own = self._samples[sequence.id]
            updates.append(request.take(own, token, logprobs))
            if own.stream.finish_reason is not None:
                reasons[sequence.id] = own.stream.finish_reason.value
        drawn = {sequence.id: token for sequence, token in zip(drawing, tokens, strict=True)}
        self._scheduler.commit(step, drawn, reasons)
        for request in {self._samples[sequence.id][0] for sequence in drawing}:
            if request.ended:
                self._forget(request)
        return updates

    def _forget(self, request: Request) -> None:
        del self._requests[request.id]
        for own in request.samples:
            del self._samples[own.sequence.id]
            self._with_pictures.pop(own.sequence.id, None)

    def _sequence(
        self, name: str, index: int, prompt: Prompt, params: SamplingParams, room: int, priority: int
    ) -> Sequence:
        return Sequence(
            id=name if index == 0 else f"{name}#{index}",
            prompt=prompt.tokens,
            max_tokens=room,
            keys=prompt.keys if prompt.pictures else (),
            priority=priority,
            prompt_logprobs=params.prompt_logprobs is not None,
        )

    def _make_samples(
        self, sequences: Iterable[Sequence], prompt: Prompt, params: SamplingParams, room: int
    ) -> list[Sample]:
        ends = params.ends(self._eos())
        seed = self._seeds.getrandbits(63) if params.seed is None else params.seed
        words = encode_bad_words(params, ends, self.tokenizer)
        samples = []
        for index, sequence in enumerate(sequences):
            guide = None
            if params.guide is not None:
                if self._guides is None:
                    raise RequestError("a guide needs a tokenizer, and the engine has none")
                guide = self._guides.start(params.guide, len(prompt.tokens))
            row = SampleRow(params, sequence.tokens, len(prompt.tokens), sample_key(seed, index), ends, words, guide)
            samples.append(
                Sample(index, sequence, row, OutputStream(params, room, ends, self._detokenizer(prompt, params)))
            )
        return samples

    def _detokenizer(self, prompt: Prompt, params: SamplingParams) -> Detokenizer | None:
        if self.tokenizer is None:
            return None
        context = prompt.tokens[-_CONTEXT_OF_TEXT:]
        return Detokenizer(self.tokenizer, context=context, skip_special_tokens=params.skip_special_tokens)

    def _check(self, prompt: Prompt, params: SamplingParams) -> None:
        known = self.model.get_input_embeddings().weight.shape[0]
        for token in prompt.tokens:
            if not 0 <= token < known:
                raise RequestError(
                    f"a prompt's tokens must be at least 0 and below the vocabulary's {known}, got {token}"
                )
        params.check_vocabulary(self.vocabulary)

    def _eos(self) -> tuple[int, ...]:
        """The model's ends of sentence: its generation config's, else the tokenizer's."""
        ends = self.model.generation_config.eos_token_id
        if ends is None and self.tokenizer is not None:
            ends = self.tokenizer.eos_token_id
        return tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)

    def _make_cache(self) -> tuple[int, list[Any]]:
        """How many pages there are, and the pools that hold them."""
        settings, layout = self.config, cache_layout(self.model.config.get_text_config())
        weight = self.model.get_input_embeddings().weight
        dtype = torch.int8 if settings.kv_dtype == "int8" else self.model.dtype
        wanted = settings.max_batch * self.context
        pages = settings.num_pages or default_pages(
            wanted, settings.page_size, layout.numbers * dtype.itemsize, weight.device
        )
        return pages, layout.pools(pages, settings.page_size, dtype, weight.device)
