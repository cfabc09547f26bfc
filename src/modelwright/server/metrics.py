"""`Metrics`, what a server counts and times: vLLM's names and types behind a prefix of one's own, and ours."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from modelwright.server.instruments import EngineView, Instruments
from modelwright.server.settings import ServerSettings

FINISHED = ("stop", "length", "tool_calls", "abort", "error")
WHERE = ("queue", "picture", "prefill", "decode", "slow_reader", "shutdown", "timeout", "other")
"""Where a request was when it was aborted."""
STAGES = ("fetch", "decode", "prepare")
"""What takes time of a picture."""
IGNORED = (
    *("reasoning_effort", "user", "metadata", "safety_identifier", "prompt_cache_key", "prediction", "verbosity"),
    *("service_tier", "store"),
)
"""Fields without an effect that are counted by name; all others are one, `other`."""


@dataclass(frozen=True)
class Times:
    """Of a request that has ended, in seconds: None is what it did not come to.

    Attributes:
        queue: until it was first scheduled.
        prefill: from then until its prompt was read.
        decode: from the first token to the last.
        total: from its arrival to its end.
    """

    queue: float | None = None
    prefill: float | None = None
    decode: float | None = None
    total: float | None = None


class Metrics:
    """Every method may be called from any thread; labels are of fixed lists, and never a key, a path or a text."""

    def __init__(self, settings: ServerSettings, model: str = ""):
        made = self._made = Instruments(settings.metrics_prefix, model)
        self._prompt_tokens = made.counter("prompt_tokens", "Tokens of prompts.")
        self._generation_tokens = made.counter("generation_tokens", "Tokens drawn.")
        self._queries = made.counter("prefix_cache_queries", "Tokens of prompts looked for in the cache.")
        self._hits = made.counter("prefix_cache_hits", "Those found.")
        self._preemptions = made.counter("num_preemptions", "Requests that lost their pages to others.")
        self._success = made.counters("request_success", "Answers that ended, by why.", "finished_reason", FINISHED)
        self._first = made.seconds("time_to_first_token_seconds", "From arrival to the first token.")
        self._between = made.seconds("inter_token_latency_seconds", "Between two tokens.")
        self._per_token = made.seconds("request_time_per_output_token_seconds", "Decode time by tokens, of a request.")
        self._whole = made.seconds("e2e_request_latency_seconds", "From arrival to the end.")
        self._queue = made.seconds("request_queue_time_seconds", "Waiting to be scheduled.")
        self._prefill = made.seconds("request_prefill_time_seconds", "Reading the prompt.")
        self._decode = made.seconds("request_decode_time_seconds", "From the first token to the last.")
        self._prompts = made.tokens("request_prompt_tokens", "Tokens of a request's prompt.")
        self._answers = made.tokens("request_generation_tokens", "Tokens of an answer.")
        self._iteration = made.tokens("iteration_tokens", "Tokens that a step computed.")
        self._refused = made.counter_of("requests_refused", "Requests answered with an error, by its code.", "code")
        self._aborted = made.counters(
            "requests_aborted", "Answers that ended early, by where they were.", "where", WHERE
        )
        self._ignored = made.counters("ignored_fields", "Fields without an effect.", "field", (*IGNORED, "other"))
        self._pictures = made.counters("pictures", "Pictures, by whether their rows were kept.", "kept", ("yes", "no"))
        self._picture = made.seconds_of("picture_seconds", "Work on a picture, by stage.", "stage", STAGES)
        self._guide = made.seconds("guide_compile_seconds", "Getting a request's guide, which is compiled once.")
        self._lag = made.seconds("event_loop_lag_seconds", "By how much the event loop was late.")
        self._step = made.seconds("step_seconds", "A step of the engine.")
        self._frames = made.counter("stream_frames", "Frames sent in streams.")

    def watch(
        self, engine: EngineView, cache: Mapping[str, object], stalled_for: Callable[[], float], adapters: int = 0
    ) -> None:
        """Show an engine's gauges, and its fixed numbers as labels.

        Args:
            cache: what ``cache_config_info`` says, such as ``block_size`` and ``num_gpu_blocks``.
            stalled_for: tells how many seconds the engine has had work without a step.
        """
        self._made.watch(engine, stalled_for)
        self._made.fact("cache_config_info", "The cache.", cache)
        none = {"running_lora_adapters": "", "waiting_lora_adapters": ""}
        self._made.fact("lora_requests_info", "Adapters.", {"max_lora": adapters, **none})

    def page(self) -> tuple[bytes, str]:
        """All of it as Prometheus reads it, and the content type."""
        return self._made.page()

    def request_started(self, prompt_tokens: int, cached_tokens: int | None = None) -> None:
        """A prompt was taken."""
        self._prompt_tokens.inc(prompt_tokens)
        self._prompts.observe(prompt_tokens)
        if cached_tokens is not None:
            self.cached(prompt_tokens, cached_tokens)

    def cached(self, prompt_tokens: int, cached_tokens: int) -> None:
        """How many of a prompt's tokens were found in the cache."""
        self._queries.inc(prompt_tokens)
        self._hits.inc(cached_tokens)

    def first_token(self, seconds: float) -> None:
        """The first token came so long after its request."""
        self._first.observe(seconds)

    def token(self, seconds: float) -> None:
        """A further token was drawn so long after the one before."""
        self._between.observe(seconds)

    def finished(self, reason: str, completion_tokens: int, times: Times = Times()) -> None:
        """An answer ended by itself."""
        self._success[reason if reason in FINISHED else "error"].inc()
        self._generation_tokens.inc(completion_tokens)
        self._answers.observe(completion_tokens)
        pairs = ((self._queue, times.queue), (self._prefill, times.prefill), (self._decode, times.decode))
        for histogram, value in (*pairs, (self._whole, times.total)):
            if value is not None:
                histogram.observe(max(0.0, value))
        if times.decode is not None and completion_tokens > 1:
            self._per_token.observe(max(0.0, times.decode) / (completion_tokens - 1))

    def refused(self, code: str) -> None:
        """A request was answered with an error; codes are those of `ApiError`."""
        self._refused(code).inc()

    def aborted(self, where: str, completion_tokens: int = 0) -> None:
        """A request ended early, after so many tokens."""
        self._aborted[where if where in WHERE else "other"].inc()
        self._generation_tokens.inc(completion_tokens)

    def ignored(self, field: str) -> None:
        """A request set a field that changes nothing."""
        self._ignored[field if field in IGNORED else "other"].inc()

    @contextmanager
    def picture_stage(self, stage: str) -> Iterator[None]:
        """Time a stage of `STAGES`."""
        start = perf_counter()
        try:
            yield
        finally:
            self._picture[stage].observe(perf_counter() - start)

    def guide_compiled(self, seconds: float) -> None:
        """A request's guide took so long: to compile, or to find where it was compiled before."""
        self._guide.observe(seconds)

    def loop_late(self, seconds: float) -> None:
        """The event loop came back so much later than it was asked to."""
        self._lag.observe(seconds)

    def stepped(self, statistics: Any) -> None:
        """The engine made a step; it is told as `EngineStatistics`."""
        self._step.observe(statistics.seconds)
        self._iteration.observe(statistics.step.tokens)
        self._pictures["yes"].inc(statistics.pictures_kept)
        self._pictures["no"].inc(statistics.pictures_new)
        if statistics.step.preempted:
            self._preemptions.inc(statistics.step.preempted)

    def frames(self, count: int = 1) -> None:
        """So many frames were sent in a stream."""
        self._frames.inc(count)
