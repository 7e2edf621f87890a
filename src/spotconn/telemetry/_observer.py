"""What a manager and its parts report, as spans and metrics."""

import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Generator, Sized
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar
from uuid import UUID

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import Histogram, Meter
from opentelemetry.trace import Link, Span, Status, StatusCode, Tracer

from spotconn._observer import Observer
from spotconn.errors import SpotconnError
from spotconn.telemetry._instruments import Instruments, count_entries

_P = ParamSpec("_P")
_T = TypeVar("_T")

OUTCOME = "spotconn.outcome"
REASON = "spotconn.reason"
ERROR_TYPE = "error.type"
STATUS_CODE = "http.response.status_code"
CLIENT_ID = "spotconn.client_id"


class _Call:
    """One call for a token, from its beginning to its end.

    Attributes:
        outcome: cache, fresh, refreshed or waited, as known so far.
        span: of a call that the cache does not answer.
        over: whether it has ended; tasks that it started may outlive it and still know it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.begun = time.time_ns()
        self.outcome = "cache"
        self.span: Span | None = None
        self.over = False


# Tasks inherit it, so a refresh knows the call that started it.
_call: ContextVar[_Call | None] = ContextVar("spotconn_call", default=None)


class Telemetry(Observer):
    """Exports what is reported.

    Args:
        tracer: of the spans.
        meter: of the metrics.
    """

    def __init__(self, tracer: Tracer, meter: Meter) -> None:
        self._tracer = tracer
        self._waiting: dict[UUID, set[_Call]] = defaultdict(set)
        self._refused_apps: set[tuple[str | None, str]] = set()
        self._instruments = Instruments(meter)

    def remembers(self, cache: Sized) -> None:
        count_entries(cache)

    def counted(self, call: Callable[_P, Awaitable[_T]]) -> Callable[_P, Awaitable[_T]]:
        name = f"spotconn.{getattr(call, '__name__', 'call')}"

        @wraps(call)
        async def counted(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            outer = _call.get()
            if outer is not None and not outer.over:  # replace_rejected asks get_valid_token
                return await call(*args, **kwargs)
            this = _Call(name)
            before = _call.set(this)
            try:
                token = await call(*args, **kwargs)
            except BaseException as error:
                del args, kwargs
                self._ended(this, error)
                raise
            finally:
                _call.reset(before)
            self._ended(this, None)
            return token

        return counted

    @contextmanager
    def waiting(self, user_id: UUID) -> Generator[None]:
        call = _call.get()
        if call is None:  # it began before the manager was instrumented
            yield
            return
        if call.span is None:
            call.outcome = "fresh"
            call.span = self._tracer.start_span(call.name, start_time=call.begun)
        self._waiting[user_id].add(call)
        try:
            with _current(call.span):
                yield
        finally:
            self._waiting[user_id].discard(call)
            if not self._waiting[user_id]:
                del self._waiting[user_id]

    @contextmanager
    def refreshing(self, user_id: UUID) -> Generator[None]:
        call = _call.get()
        waited_for = call is not None and call in self._waiting.get(user_id, ())
        span = self._refresh_span(waited_for=waited_for)
        outcome = None
        try:
            with _timed(self._instruments.refresh_duration), _current(span):
                yield
            outcome = "refreshed"
        except BaseException as error:
            _failed(span, error)
            raise
        finally:
            span.end()
            self._record_outcome(user_id, outcome, linked=span, parent=call)

    def leased(self, user_id: UUID, seconds: float) -> None:
        self._instruments.lease_wait.record(seconds)
        for call in self._waiting.get(user_id, ()):
            if call.outcome == "fresh":
                call.outcome = "waited"

    def clock(self, offset: float) -> None:
        self._instruments.clock_offset.set(offset)

    def refused(self, client_id: str | None, reason: str) -> None:
        self._instruments.reauthorize.add(1, {REASON: reason, **_app(client_id)})
        if reason != "expired":
            self._instruments.refusals.add(1, _app(client_id))

    def restored(self, client_id: str | None) -> None:
        self._instruments.restored.add(1, _app(client_id))

    def app_refused(self, client_id: str | None, reason: str) -> None:
        self._instruments.app_refusals.add(1, {REASON: reason, **_app(client_id)})

    def app_state(self, client_id: str | None, reason: str, *, refused: bool) -> None:
        if refused != ((client_id, reason) in self._refused_apps):  # it may have begun before this was instrumented
            self._refused_apps ^= {(client_id, reason)}
            self._instruments.app_refused.add(1 if refused else -1, {REASON: reason, **_app(client_id)})

    def acquiring(self) -> AbstractContextManager[None]:
        return _timed(self._instruments.pool_wait)

    @contextmanager
    def asking(self, client_id: str) -> Generator[Callable[[int], None]]:
        statuses: list[int] = []
        try:
            yield statuses.append
        except BaseException as error:
            if not statuses:
                self._instruments.responses.add(1, {ERROR_TYPE: _kind(error), CLIENT_ID: client_id})
            raise
        finally:
            for status in statuses:
                self._instruments.responses.add(1, {STATUS_CODE: status, CLIENT_ID: client_id})

    def _refresh_span(self, *, waited_for: bool) -> Span:
        """Return a child of the call that waits for the refresh, or the root of a trace that may outlive it."""
        if waited_for:
            return self._tracer.start_span("spotconn.refresh")
        cause = Link(trace.get_current_span().get_span_context())
        return self._tracer.start_span("spotconn.refresh", context=Context(), links=[cause])

    def _record_outcome(self, user_id: UUID, outcome: str | None, *, linked: Span, parent: _Call | None) -> None:
        """Record the outcome of a refresh in all calls that have waited for it."""
        for call in self._waiting.get(user_id, ()):
            call.outcome = outcome or call.outcome
            if call is not parent and call.span is not None:
                call.span.add_link(linked.get_span_context())

    def _ended(self, call: _Call, error: BaseException | None) -> None:
        call.over = True
        attributes = {OUTCOME: call.outcome} if error is None else {OUTCOME: "error", ERROR_TYPE: _kind(error)}
        self._instruments.requests.add(1, attributes)
        if call.span is None:
            return
        call.span.set_attribute(OUTCOME, attributes[OUTCOME])
        if error is not None:
            _failed(call.span, error)
        call.span.end()


def _current(span: Span) -> AbstractContextManager[Span]:
    """Context manager: spans that start in the block are children of this span."""
    return trace.use_span(span, record_exception=False, set_status_on_exception=False)


@contextmanager
def _timed(histogram: Histogram) -> Generator[None]:
    begun, attributes = time.perf_counter(), dict[str, str]()
    try:
        yield
    except BaseException as error:
        attributes[ERROR_TYPE] = _kind(error)
        raise
    finally:
        histogram.record(time.perf_counter() - begun, attributes)


def _app(client_id: str | None) -> dict[str, str]:
    return {} if client_id is None else {CLIENT_ID: client_id}


def _kind(error: BaseException) -> str:
    """Return the name of the class; that of an error of this library is in its documentation."""
    return type(error).__qualname__


def _failed(span: Span, error: BaseException) -> None:
    """Mark a span as failed; of a foreign error only the class is recorded, because its text may hold anything."""
    span.set_attribute(ERROR_TYPE, _kind(error))
    span.set_status(Status(StatusCode.ERROR, str(error) if isinstance(error, SpotconnError) else None))
