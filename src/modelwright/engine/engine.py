"""`Engine`, many requests through one model: schedule, run, sample, step by step; it knows no threads and no HTTP."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from collections.abc import Sequence as SequenceOf
from typing import Any

import torch

from modelwright.attention import PagePool
from modelwright.configs.field_types import fits, shown
from modelwright.engine.blocks import BlockPool
from modelwright.engine.cache import count_pages, make_host_pools, make_pools
from modelwright.engine.engine_config import EngineConfig
from modelwright.engine.graphs import DecodeGraphs, graphs_of, spare_pages
from modelwright.engine.intake import Intake
from modelwright.engine.model_state import ModelState
from modelwright.engine.one_thread import OneThread
from modelwright.engine.params import SamplingParams
from modelwright.engine.picture_rows import PictureRows
from modelwright.engine.prepared import Prepared
from modelwright.engine.request import Request
from modelwright.engine.results import EngineStatistics, Result, Update
from modelwright.engine.roster import Roster
from modelwright.engine.runner import Logits, Runner
from modelwright.engine.sampling import NO_TOKEN, Sampled, fault_of, sample, sample_each
from modelwright.engine.scheduler import Scheduler
from modelwright.engine.scheduler_settings import SchedulerSettings
from modelwright.engine.sequence import Sequence
from modelwright.engine.served_model import ServedModel
from modelwright.engine.slicing import slice_decoder
from modelwright.engine.step import Step
from modelwright.engine.step_tokens import step_tokens
from modelwright.engine.tokenizer import as_tokenizer
from modelwright.errors import RequestError, RequestFailed
from modelwright.ops.freed_memory import keep_freed_memory
from modelwright.parallel import Mesh, RankLost


class Engine:
    """Serves requests with one model; see `EngineConfig` for its limits.

    Use `generate`, or `add_request`, `step` and `abort`. One thread at a time: another one is refused meanwhile.

    The model may change between two steps: its weights, type, adapters, hooks and attributes. Requests that wait are
    computed by the model of then; those that run go on with the keys that they have.

    Args:
        model: a causal language model of ours, in evaluation mode; its device and type are the engine's.
        config: by default the limits of `EngineConfig`.
        tokenizer: a fast one of transformers'; without one prompts are token ids and outputs have no text.
        mesh: the ranks that share the model. Each makes an engine of the whole model, which keeps the rank's part; then
            rank 0 serves requests and ends with `close`, and the others `follow`.
        ends: tokens that end an output besides the model's and the tokenizer's, such as the end of a turn.

    Attributes:
        context: how many tokens a sequence may have, drawn ones included.
        ends: the tokens that end an output of a request that names none: the model's, the tokenizer's and those given.
        statistics: of the last step; None before the first.
        on_start: called with the id of each request whose first tokens are about to be computed.

    Raises:
        ConfigError: the engine does not serve that model, or not with that config, or the ranks do not divide it.
    """

    def __init__(
        self,
        model: Any,
        config: EngineConfig | None = None,
        tokenizer: Any = None,
        mesh: Mesh | None = None,
        ends: Iterable[int] = (),
    ):
        self.config = settings = config or EngineConfig()
        self.tokenizer = as_tokenizer(tokenizer)
        self.statistics: EngineStatistics | None = None
        mesh = mesh or Mesh()
        self._served = served = ServedModel.of(model, mesh.size)
        slice_decoder(served.decoder, mesh)
        keep_freed_memory()  # of one pass for the next
        self._state, self._seeing = ModelState(served.decoder), ModelState(model) if served.sees else None
        self._pictures = PictureRows(model, settings.kept_pictures) if served.sees else None
        self.context = settings.context_of(served.context)
        self._pages = mesh.least(count_pages(served, settings, self.context))
        on_device, on_host, graphs = self._parts(served)
        self._runner = Runner(served, on_device, self._pictures, on_host, mesh, graphs, settings.batch_invariant)
        self._intake = Intake(served, self.tokenizer, self.context, more_ends=ends)
        self.ends = self._intake.ends
        pool = BlockPool(self._pages, settings.page_size, settings.reuse_prefixes)
        self._scheduler = Scheduler(pool, _limits(served, settings, self.context), settings.host_pages)
        self._roster = Roster()
        self._alone = OneThread()
        self._steps = 0
        self._suspects: dict[Request, dict[Sequence, int]] = {}  # of a step that raised, and how far they were to get
        self.on_start: Callable[[str], None] = lambda id: None

    @property
    def has_work(self) -> bool:
        """Whether any request has not ended."""
        return len(self._roster) > 0

    @property
    def cache_tokens(self) -> int:
        """How many tokens the pages of the cache hold."""
        return self._pages * self.config.page_size

    def generate(
        self,
        prompts: SequenceOf[Any],
        params: SamplingParams | SequenceOf[SamplingParams] | None = None,
        on_update: Callable[[Update], None] | None = None,
    ) -> list[Result]:
        """Serve `prompts` to their ends, in their order.

        Args:
            prompts: each text, token ids, a processor's `ProcessedPrompt`, or the batch of one row that it makes.
            params: for all, or one for each; by default those of `SamplingParams`.
            on_update: called with every piece as it comes, those of requests that were added before included.

        Raises:
            RequestError: a request that cannot be served; then none is. Or another thread is using the engine.
            RequestFailed: one that could not be finished, once the others are: the model's scores were no numbers, or
                a guide failed.
        """
        if isinstance(prompts, str | Mapping):
            raise RequestError(f"generate takes a list of prompts, got one {type(prompts).__name__}")
        if not isinstance(prompts, SequenceOf):
            raise RequestError(f"generate takes a list of prompts, got {shown(prompts)}")
        each = [params or SamplingParams()] * len(prompts) if not isinstance(params, SequenceOf) else params
        if len(each) != len(prompts):
            raise RequestError(f"there must be one SamplingParams for each prompt, got {len(each)} for {len(prompts)}")
        with self._alone:
            requests = self._run_to_ends(zip(prompts, each, strict=True), on_update)
        for number, request in enumerate(requests):
            if request.error is not None:
                where = f"prompts[{number}]: " if len(requests) > 1 else ""
                raise RequestFailed(f"{where}{request.error}")
        return [request.result() for request in requests]

    def _run_to_ends(
        self, asked: Iterable[tuple[Any, SamplingParams]], on_update: Callable[[Update], None] | None
    ) -> list[Request]:
        """Requests of prompts and their settings, once all have ended; if anything fails they are aborted."""
        requests: list[Request] = []
        try:
            for prompt, own in asked:
                requests.append(self._add(self._prepared(prompt, own)))
            while not all(request.ended for request in requests):
                for update in self.step():
                    if on_update is not None:
                        on_update(update)
        except BaseException:
            for request in requests:
                self.abort(request.id)
            raise
        return requests

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
                Or another thread is using the engine.
        """
        with self._alone:
            return self._add(self._prepared(prompt, params), id, priority).id

    def prepare(self, prompt: Any, params: SamplingParams | None = None, *, salt: str = "") -> Prepared:
        """Check and tokenize a request and compile its guide, in any thread, also while another one uses the engine.

        Args:
            prompt, params: as for `generate`.
            salt: what it computes is found again only by requests of the same salt.

        Raises:
            RequestError: it cannot be served: too long, a token beyond the vocabulary, a guide that cannot be followed.
        """
        served = self._served.renewed()
        intake = (
            self._intake
            if served == self._served
            else self._intake.renewed(served, self.config.context_of(served.context))
        )
        return self._prepared(prompt, params, salt, intake)

    def add(self, prepared: Prepared, *, id: str | None = None, priority: int = 0, arrived: float | None = None) -> str:
        """Let a prepared request wait for its turn; returns its id. The length of its prompt does not matter here.

        A model that has become another one since `prepare` reads the prompt again, in this thread.

        Args:
            prepared: each is added once.
            id, priority: as for `add_request`.
            arrived: when it was asked, by ``time.monotonic``; now, where that is left out.

        Raises:
            RequestError: as for `add_request`, or it was added before.
        """
        with self._alone:
            return self._add(prepared, id, priority, arrived).id

    def _prepared(
        self, prompt: Any, params: SamplingParams | None, salt: str = "", intake: Intake | None = None
    ) -> Prepared:
        if not isinstance(params, SamplingParams | None):
            raise RequestError(f"params must be SamplingParams, got {shown(params)}")
        if intake is None:
            self._renew()
        prepared = (intake or self._intake).prepare(prompt, params or SamplingParams(), salt)
        self._scheduler.check_size(prepared.samples[0].sequence)
        return prepared

    def _add(
        self, prepared: Prepared, id: str | None = None, priority: int = 0, arrived: float | None = None
    ) -> Request:
        if not fits(priority, int):
            raise RequestError(f"a request's priority must be an int, got {shown(priority)}")
        if prepared.taken:
            raise RequestError("a prepared request can be added once, and this one was: prepare another one")
        self._renew()
        asked = prepared
        if (prepared.model, prepared.context) != (self._served, self.context):
            prepared = self._prepared(asked.given, asked.params, asked.salt)
        name = self._roster.name(id)
        for own in prepared.samples:
            own.sequence.id = f"{name}#{own.index}" if own.index else name
            own.sequence.priority = priority
        first, *others = [own.sequence for own in prepared.samples]
        self._scheduler.add(first, others)
        asked.taken = True
        request = self._roster.add(name, prepared, arrived)
        if self._pictures is not None and request.prompt.pictures and not self._shows:
            self._pictures.forget()
        return request

    def serves(self, id: str) -> bool:
        """Whether the request of that id has not ended."""
        return id in self._roster

    def abort(self, id: str) -> list[Update]:
        """End a request wherever it stands; nothing if it has ended."""
        with self._alone:
            if id not in self._roster:
                return []
            request = self._roster[id]
            for own in request.samples:
                self._scheduler.abort(own.sequence.id)
            self._roster.drop(request)
            return request.abort()

    def follow(self) -> None:
        """Compute what rank 0 serves, until it closes; for every other rank.

        Raises:
            RankLost: a rank ended before that.
        """
        self._runner.follow()

    def close(self) -> None:
        """Let the ranks that follow end; without any nothing happens."""
        self._runner.let_go()

    def forget_prefixes(self) -> None:
        """Find nothing again that was computed so far, pictures included.

        The engine does so itself whenever it sees that the model has changed. Call it when weights have changed in a
        way that cannot be seen: on a GPU through ``.data`` or a library that does not tell torch, on a CPU in few
        numbers that way. Who runs goes on with the keys that it has; who waits is computed by the weights of then.
        """
        with self._alone:
            self._scheduler.forget_prefixes()
            if self._pictures is not None:
                self._pictures.forget()

    def step(self) -> list[Update]:
        """Compute one step and say what it added; nothing without work.

        If the model raises, so does this, and the step's requests will be computed again; see `recover`.
        """
        with self._alone:
            return self._step() if self.has_work else []

    def recover(self, error: Exception) -> list[Update]:
        """After `step` raised `error`: compute its requests one by one, and end those that raise alone.

        Those that do not have had their step with this, and draw what they would have drawn. Where no request's tokens
        were being computed yet, all end.

        Raises:
            RankLost: that was the error, or becomes it; there is nobody to go on with.
        """
        if isinstance(error, RankLost):
            raise error
        with self._alone:
            if not self._suspects:
                return [update for request in self._roster for update in self._blame(request, error)]
            updates, suspects = [], self._suspects
            for request, goals in suspects.items():
                try:
                    while any(own.computed < goal and not own.ended for own, goal in goals.items()):
                        steps = self._steps
                        updates += self._step({own.sequence for own in request.samples})
                        if self._steps == steps:  # no room for it beside the others: it waits as ever
                            break
                except RankLost:
                    raise
                except Exception as own_error:
                    updates += self._blame(request, own_error)
            return updates

    def _blame(self, request: Request, error: Exception) -> list[Update]:
        """End a request because of what computing it raised."""
        said = (str(error).splitlines() or [""])[0]
        updates = request.fail(f"the model failed: {type(error).__name__}: {said}", error)
        for own in request.samples:
            self._scheduler.abort(own.sequence.id)
        self._roster.drop(request)
        return updates

    def _step(self, only: Collection[Sequence] | None = None) -> list[Update]:
        """A step of all sequences, or of `only` some; without updates where those find no room."""
        start = time.perf_counter()
        self._suspects = {}
        self._look()
        step = self._scheduler.schedule(only)
        if not step.chunks:
            self._scheduler.discard(step)
            return []
        kept, new = self._begin(step)
        drawing = [sequence for chunk in step.chunks for sequence in chunk.draws]
        try:
            logits = self._runner.run(step, self._roster.pictures(step))
            rows = [self._roster.sample(sequence.id)[1].row for sequence in drawing]
            sampled = (sample_each if self.config.batch_invariant else sample)(logits.drawing, rows)
            damaged = self._damaged(drawing, logits, sampled)
            updates = self._read(step, drawing, logits, sampled, damaged)
        except BaseException:
            self._suspects = self._roster.goals(step)
            self._scheduler.discard(step)
            raise
        self._commit(step, drawing, sampled, damaged)
        self._steps += 1
        self.statistics = EngineStatistics(step.statistics, time.perf_counter() - start, kept, new)
        return updates

    def _look(self) -> None:
        """Follow the model in whatever has changed since the last step: nothing computed before is found again.

        What weights are worth matters in steps that look for pages, and under autocast, which keeps what it has cast.
        What sees pictures is looked at while a prompt with pictures is read.
        """
        casts = torch.is_autocast_enabled(self._served.device.type)
        contents = casts or self._scheduler.admits
        changed = self._state.look(contents)
        if self._seeing is not None and any(request.reads_pictures for request in self._roster):
            changed |= self._seeing.look()
        if not changed:
            return
        if casts:
            torch.clear_autocast_cache()
        self._renew()
        self.forget_prefixes()
        self._scheduler.pool.reuse = self.config.reuse_prefixes and self._shows

    def _renew(self) -> None:
        """Serve the model as it now is, if that is of another type, vocabulary or the like."""
        served = self._served.renewed()
        if served == self._served:
            return
        self.context = self.config.context_of(served.context)
        self._served, self._intake = served, self._intake.renewed(served, self.context)
        self.ends = self._intake.ends
        self._runner.serve(served, *self._parts(served))
        self._scheduler.restart()
        self._scheduler.settings = _limits(served, self.config, self.context)
        if self._pictures is not None:
            self._pictures.forget()

    @property
    def _shows(self) -> bool:
        return self._state.shows and (self._seeing is None or self._seeing.shows)

    def _parts(self, served: ServedModel) -> tuple[list[PagePool], list[PagePool], DecodeGraphs | None]:
        """Empty pools on the device and on the host, and captured decodes, for the passes of a model."""
        on_device = make_pools(served, self.config, self._pages + spare_pages(served, self.config))
        graphs = graphs_of(served, self.config, on_device, self.context, self._state)
        return on_device, make_host_pools(served, self.config), graphs

    def _begin(self, step: Step) -> tuple[int, int]:
        """Note which requests a step begins with; returns how many of their pictures are kept, and how many are new."""
        begun = self._roster.begin(step)
        for request in begun:
            self.on_start(request.id)
        pictures = [picture for request in begun for picture in request.prompt.pictures]
        kept = sum(self._pictures is not None and picture.key in self._pictures for picture in pictures)
        return kept, len(pictures) - kept

    def _damaged(self, drawing: list[Sequence], logits: Logits, sampled: Sampled) -> dict[str, bool]:
        """The sequences whose scores are no numbers, and whether it may be pages of others that are damaged.

        A number that is none spoils all pages of the prompt that it stands in, and whoever begins alike finds some.
        """
        places = [place for place, token in enumerate(sampled.tokens.tolist()) if token == NO_TOKEN]
        spoilt = [drawing[place] for place in places if not logits.drawing[place].amax().isfinite()]
        return {sequence.id: (sequence.leader or sequence).borrowed for sequence in spoilt}

    def _read(
        self, step: Step, drawing: list[Sequence], logits: Logits, sampled: Sampled, damaged: Mapping[str, bool]
    ) -> list[Update]:
        """Take what a step computed into its requests; one that cannot take it ends alone."""
        starts = {chunk.sequence.id: chunk.start for chunk in step.chunks}
        for id_, rows in logits.prompts.items():
            self._roster.sample(id_)[0].read_prompt(starts[id_], rows)
        updates = []
        tokens, scores = sampled.tokens.tolist(), logits.drawing
        for place, (sequence, token, logprobs) in enumerate(zip(drawing, tokens, sampled.logprobs, strict=True)):
            request, own = self._roster.sample(sequence.id)
            if own.ended or damaged.get(sequence.id):  # with another sample of its request; or it is computed again
                continue
            if token == NO_TOKEN:
                updates += request.fail(fault_of(scores[place], own.row))
                continue
            try:
                updates.append(request.take(own, token, logprobs))
            except Exception as error:  # of a guide or a tokenizer, which are this request's
                updates += request.fail(f"the output cannot be read: {type(error).__name__}: {error}")
        return updates

    def _commit(self, step: Step, drawing: list[Sequence], sampled: Sampled, damaged: Collection[str]) -> None:
        """Let the sequences of a step go on, and let go of what has ended."""
        drawn = dict(zip((sequence.id for sequence in drawing), sampled.tokens.tolist(), strict=True))
        ended = {
            id_: reason for id_ in drawn if (reason := self._roster.sample(id_)[1].stream.finish_reason) is not None
        }
        self._scheduler.commit(step, drawn, ended, damaged)
        for request in {self._roster.sample(id_)[0] for id_ in ended}:
            if request.error is not None:
                for own in request.samples:  # those that drew nothing in this step end too
                    self._scheduler.abort(own.sequence.id)
            if request.ended:
                self._roster.drop(request)


def _limits(served: ServedModel, settings: EngineConfig, context: int) -> SchedulerSettings:
    """Prompts are read whole where parts of one would be rotated by their own ends."""
    stretches = served.trained_length is not None and context > served.trained_length
    in_parts = settings.chunk_prefill and not stretches
    budget, shared = step_tokens(served, settings)
    return SchedulerSettings(settings.max_batch, budget, in_parts, context, shared_budget=shared)
