"""What happened to one request: noted by every part of the code that knows something, and reported at its end.

The middleware that opens a record (``server/middleware/access.py``) gives it to the metrics, the log and the trace when
the request ends. Only the wait in the queue and the first token are observed when they happen, so that an engine that
slows down is seen before its requests end. Code that has something to note calls ``current()``. The record is in a
context variable, which asyncio passes on to every task of the request, so that no signature between the HTTP layer and
the images has to carry it. Without a request (on the command line, in a test) ``current()`` is a record that is never
read.

A record must not hold images, their URLs, or keys.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Collection
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter, time_ns
from typing import Literal

from llava_api.errors import ErrorCode

Outcome = Literal["ok", "refused", "client_gone", "failed", "cut"]
"""refused: an error instead of an answer, and the caller's or the load's doing; failed: the server's or the engine's
doing, in a stream too; cut: the server ended the answer early (shutdown, a reader too slow)."""
StepName = Literal["fetch", "decode"]
Loss = Literal["ended", "paused", "stalled"]
"""Why an engine is lost: a process of it ended, was stopped by a signal, or has work and gives no token."""

OUTCOMES: tuple[Outcome, ...] = ("ok", "refused", "client_gone", "failed", "cut")
FAILURES = frozenset(
    {ErrorCode.ENGINE_FAILED, ErrorCode.ENGINE_STOPPED, ErrorCode.BAD_GATEWAY, ErrorCode.INTERNAL_ERROR}
)
"""Codes of errors that the server itself causes, whatever their status."""
MAX_IGNORED = 16
"""Most names of ignored fields in the header and in the log."""
UNSAFE = re.compile(r"[^A-Za-z0-9_.$-]")
"""Characters of names that are not sent back in a header."""
OTHER = "other"
GAP_BOUNDS_SECONDS = (
    *(0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1),
    *(0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0),
)
"""Upper bounds of the buckets for the time between two tokens."""


@dataclass(frozen=True, slots=True)
class Step:
    """A part of the work before the engine. Times are ``perf_counter``'s."""

    name: StepName
    started: float
    ended: float
    ok: bool

    @property
    def seconds(self) -> float:
        return self.ended - self.started


def unobserved(seconds: float) -> None:
    """Without a server there are no metrics."""


def do_nothing() -> None:
    pass


@dataclass(slots=True)
class AnswerRecord:
    """One prompt and its answers: its turn and its tokens. Times are ``perf_counter``'s, 0 for not yet."""

    prompt_tokens: int
    images: int
    image_tokens: int
    choices: int
    """Answers that the engine makes."""
    max_tokens: int
    temperature: float
    on_admission: Callable[[float], None] = unobserved
    """Called with the seconds that it waited for its turn."""
    on_first_token: Callable[[float], None] = unobserved
    """Called with the moment of its first token."""
    waiting_from: float = 0.0
    admitted: float = 0.0
    first_token: float = 0.0
    ended: float = 0.0
    completion_tokens: int = 0
    """As the reply's usage says."""
    cached_tokens: int = 0
    """Tokens of the prompt that came from the prefix cache."""
    finish_reasons: list[str] = field(default_factory=list)
    gaps: list[int] = field(default_factory=lambda: [0] * (len(GAP_BOUNDS_SECONDS) + 1))
    """Tokens by the time since the one before, in the buckets of ``GAP_BOUNDS_SECONDS`` and one above them."""
    gap_seconds: float = 0.0
    latest: list[float] = field(default_factory=list)
    """When each choice's latest token came."""

    def __post_init__(self) -> None:
        self.latest = [0.0] * self.choices

    def enqueue(self) -> None:
        self.waiting_from = perf_counter()

    def admit(self) -> None:
        self.admitted = perf_counter()
        self.on_admission(self.admitted - self.waiting_from)

    def count(self, choice: int, tokens: int) -> None:
        """Count tokens that came together. This takes 0.3 microseconds, once for each token."""
        if not tokens:
            return
        now = perf_counter()
        before = self.latest[choice]
        self.latest[choice] = now
        if before:
            # Tokens that come together were generated one by one, and waited for each other.
            self.gaps[bisect_left(GAP_BOUNDS_SECONDS, (now - before) / tokens)] += tokens
            self.gap_seconds += now - before
        elif not self.first_token:
            self.first_token = now
            self.on_first_token(now)

    def end(self, completion_tokens: int, cached_tokens: int) -> None:
        self.ended = perf_counter()
        self.completion_tokens = completion_tokens
        self.cached_tokens = cached_tokens

    @property
    def queue_seconds(self) -> float | None:
        """None if its turn never came."""
        return self.admitted - self.waiting_from if self.admitted else None


@dataclass(slots=True)
class RequestRecord:
    request_id: str = ""
    method: str = ""
    path: str = ""
    """As the client sent it, unescaped: the log cuts and escapes it."""
    client: str = ""
    """Address."""
    scheme: str = "http"
    traced: dict[str, str] = field(default_factory=dict)
    """The caller's ``traceparent`` and ``tracestate``."""
    keeps_prompt: bool = False
    """--log-prompts"""
    observe_queue_wait: Callable[[float], None] = unobserved
    """Called with the seconds that each prompt waited for its turn."""
    observe_first_token: Callable[[float], None] = unobserved
    """Called once, with the seconds from the request's first byte to the engine's first token."""
    on_first_token: Callable[[], None] = do_nothing
    """Called once, at the engine's first token."""
    started: float = field(default_factory=perf_counter)
    started_unix_ns: int = field(default_factory=time_ns)
    ended: float = 0.0

    route: str = "other"
    """The template of its path; "other" if the server has no such path."""
    probe: bool = False
    """Whether machines ask this route every few seconds; then only the count and the duration are recorded."""
    key: str = "-"
    """Name of the API key; "-" without one."""
    status: int = 0
    """0 if no answer was begun."""
    complete: bool = False
    """Whether the last byte was handed to the HTTP server."""
    client_gone: bool = False
    """Whether the client left before that."""
    logged: bool = False
    """Whether another server has logged it in the same log."""
    error: ErrorCode | Literal[""] | None = None
    """Code of the error that was sent, "" for one without a code."""

    model: str | None = None
    """As the client named it; may be no model at all."""
    stream: bool = False
    ignored_names: dict[str, None] = field(default_factory=dict)
    """Paths without indexes of the request's fields that were ignored, in characters that a header may have."""
    ignored_labels: set[str] = field(default_factory=set)
    """The same from a closed set."""
    prompt: str | None = None
    """The prompt, with ``<image>`` for each image; only if ``keeps_prompt``."""
    image_bytes: int = 0
    """Size of the encoded images."""
    image_pixels: int = 0
    image_tokens: int = 0
    """Tokens of the images whose headers were read, even if the request was then refused."""
    images: int = 0
    """Images whose headers were read."""
    cache_hits: int = 0
    cache_misses: int = 0
    steps: list[Step] = field(default_factory=list)
    first_token: float = 0.0
    """The engine's first token of any answer; 0 for not yet."""
    answers: list[AnswerRecord] = field(default_factory=list)

    def end(self, route: str, key: str | None) -> None:
        self.ended = perf_counter()
        self.route = route
        self.key = key or "-"

    def note_error(self, code: ErrorCode | None) -> None:
        """An error is sent, with a status or inside a stream."""
        self.error = code or ""

    def ignore(self, path: str, known: Collection[str]) -> None:
        """A field is ignored. ``known``: names that the metric may have, so that no client can add series."""
        name = path.rpartition(".")[2]
        self.ignored_labels.add(name if name in known else OTHER)
        # One more than are shown, to know that there are more.
        if len(self.ignored_names) <= MAX_IGNORED:
            self.ignored_names[UNSAFE.sub("?", path)] = None

    @property
    def ignored(self) -> str:
        """The ignored fields as a header names them."""
        names = list(self.ignored_names)
        return ", ".join([*names[:MAX_IGNORED], *(["..."] if len(names) > MAX_IGNORED else [])])

    def note_step(self, name: StepName, started: float, ok: bool) -> None:
        """A step that began at ``started`` has just ended."""
        self.steps.append(Step(name, started, perf_counter(), ok))

    def note_image(self, size_bytes: int, pixels: int, tokens: int) -> None:
        """An image's header was read."""
        self.images += 1
        self.image_bytes += size_bytes
        self.image_pixels += pixels
        self.image_tokens += tokens

    def note_prompt(
        self, prompt_tokens: int, image_tokens: list[int], choices: int, max_tokens: int, temperature: float
    ) -> AnswerRecord:
        """A prompt goes to the engine. ``image_tokens``: of each of its images."""
        made = AnswerRecord(
            prompt_tokens,
            len(image_tokens),
            sum(image_tokens),
            choices,
            max_tokens,
            temperature,
            self.observe_queue_wait,
            self.note_first_token,
        )
        self.answers.append(made)
        return made

    def note_first_token(self, moment: float) -> None:
        if not self.first_token:
            self.first_token = moment
            self.observe_first_token(moment - self.started)
            self.on_first_token()

    @property
    def outcome(self) -> Outcome:
        if self.client_gone:
            return "client_gone"
        if self.error == ErrorCode.SERVER_STOPPING and self.answers:
            return "cut"
        if self.status == 500 or self.error in FAILURES or (self.error is not None and self.status < 400):
            return "failed"
        if self.status >= 400:
            return "refused"
        return "ok" if self.complete else "cut"

    @property
    def seconds(self) -> float:
        return self.ended - self.started

    @property
    def first_token_seconds(self) -> float | None:
        """From the request's first byte to the engine's first token."""
        return self.first_token - self.started if self.first_token else None

    @property
    def queue_seconds(self) -> float | None:
        """The longest wait, if several prompts waited."""
        waits = [wait for answer in self.answers if (wait := answer.queue_seconds) is not None]
        return max(waits) if waits else None

    @property
    def prompt_tokens(self) -> int:
        return sum(answer.prompt_tokens for answer in self.answers)

    @property
    def completion_tokens(self) -> int:
        return sum(answer.completion_tokens for answer in self.answers)

    @property
    def finish_reasons(self) -> list[str]:
        return [reason for answer in self.answers for reason in answer.finish_reasons]


RECORD: ContextVar[RequestRecord] = ContextVar("RECORD")
"""The record of the request that this task works for."""


def current() -> RequestRecord:
    found = RECORD.get(None)
    return RequestRecord() if found is None else found
