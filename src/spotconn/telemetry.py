"""Spans and metrics of a `TokenManager`, through the OpenTelemetry API (extra `otel`).

Names and units follow OpenTelemetry's semantic conventions (opentelemetry.io/docs/specs/semconv). Nothing here is given
a token or a secret, and no user id is exported.
"""

import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Generator, Iterable, Sized
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar
from uuid import UUID
from weakref import ref

try:
    from opentelemetry import metrics, trace
    from opentelemetry.context import Context
    from opentelemetry.metrics import CallbackOptions, Histogram, Meter, MeterProvider, Observation
    from opentelemetry.trace import Link, Span, Status, StatusCode, Tracer, TracerProvider
except ModuleNotFoundError:
    raise ImportError('spotconn.telemetry needs an extra: pip install "spotconn[otel]"') from None

from spotconn import __version__
from spotconn._observer import Observer
from spotconn.errors import SpotconnError
from spotconn.manager import TokenManager

__all__ = ["instrument"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

OUTCOME = "spotconn.outcome"
REASON = "spotconn.reason"
ERROR_TYPE = "error.type"
STATUS_CODE = "http.response.status_code"
CLIENT_ID = "spotconn.client_id"

# Seconds. The conventions' own for durations of requests, and one more: a lease lasts 15 s, a refresh 10 s.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 15)

# Of all instrumented managers of the process: a meter keeps the first callback of a name and drops all others.
_caches: "list[ref[Sized]]" = []


def instrument(
    tokens: TokenManager,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> None:
    """Export spans and metrics of a manager, of its store and of its accounts, from now on.

    Call it once, before the first call of the manager. A manager that is not instrumented has no extra cost.

    Args:
        tokens: whose calls, refreshes and waits.
        tracer_provider: where the spans go; None for the global one.
        meter_provider: where the metrics go; None for the global one.

    Raises:
        RuntimeError: the manager is instrumented already.
    """
    tracer = trace.get_tracer("spotconn", __version__, tracer_provider)
    meter = metrics.get_meter("spotconn", __version__, meter_provider)
    tokens._source.observe(_Telemetry(tracer, meter), tokens)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  our own interface


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


class _Telemetry(Observer):
    def __init__(self, tracer: Tracer, meter: Meter) -> None:
        self._tracer = tracer
        self._waiting: dict[UUID, set[_Call]] = defaultdict(set)
        self._refused_apps: set[tuple[str | None, str]] = set()
        self._requests = meter.create_counter(
            "spotconn.token.requests", "{request}", "Calls for an access token, by where it came from."
        )
        self._responses = meter.create_counter(
            "spotconn.spotify.responses", "{response}", "Requests to Spotify, by app and status of the answer."
        )
        self._reauthorize = meter.create_counter(
            "spotconn.connections.reauthorize", "{connection}", "Connections that Spotify was found to have ended."
        )
        self._refusals = meter.create_counter(
            "spotconn.spotify.unexpected_refusals",
            "{refusal}",
            "Refresh tokens that Spotify refused before their time; each is tried again.",
        )
        self._app_refusals = meter.create_counter(
            "spotconn.app.refusals", "{refusal}", "Answers of Spotify that refuse an app itself, by reason."
        )
        # No gauge: older versions of the SDK export its value once after each change, and then no more.
        self._app_refused = meter.create_up_down_counter(
            "spotconn.app.refused", "{app}", "Whether Spotify refuses an app to all of its users: 1, or 0 again."
        )
        self._clock_offset = meter.create_gauge(
            "spotconn.database.clock.offset", "s", "Seconds by which the clock of the database is ahead of this host's."
        )
        self._refresh_duration = _histogram(
            meter, "spotconn.refresh.duration", "Refreshes by this process, from the turn to the saved connection."
        )
        self._lease_wait = _histogram(
            meter, "spotconn.lease.wait.duration", "Waits for another process that was refreshing."
        )
        self._pool_wait = _histogram(
            meter, "spotconn.pool.wait.duration", "Waits for a connection of the pool of the database."
        )
        meter.create_observable_up_down_counter(
            "spotconn.cache.entries", [_entries], "{entry}", "Connections remembered by this process."
        )

    def remembers(self, cache: Sized) -> None:
        _caches.append(ref(cache, _caches.remove))

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
            with _timed(self._refresh_duration), _current(span):
                yield
            outcome = "refreshed"
        except BaseException as error:
            _failed(span, error)
            raise
        finally:
            span.end()
            self._record_outcome(user_id, outcome, linked=span, parent=call)

    def leased(self, user_id: UUID, seconds: float) -> None:
        self._lease_wait.record(seconds)
        for call in self._waiting.get(user_id, ()):
            if call.outcome == "fresh":
                call.outcome = "waited"

    def clock(self, offset: float) -> None:
        self._clock_offset.set(offset)

    def refused(self, client_id: str | None, reason: str) -> None:
        self._reauthorize.add(1, {REASON: reason, **_app(client_id)})
        if reason != "expired":
            self._refusals.add(1, _app(client_id))

    def app_refused(self, client_id: str | None, reason: str) -> None:
        self._app_refusals.add(1, {REASON: reason, **_app(client_id)})

    def app_state(self, client_id: str | None, reason: str, *, refused: bool) -> None:
        if refused != ((client_id, reason) in self._refused_apps):  # it may have begun before this was instrumented
            self._refused_apps ^= {(client_id, reason)}
            self._app_refused.add(1 if refused else -1, {REASON: reason, **_app(client_id)})

    def acquiring(self) -> AbstractContextManager[None]:
        return _timed(self._pool_wait)

    @contextmanager
    def asking(self, client_id: str) -> Generator[Callable[[int], None]]:
        statuses: list[int] = []
        try:
            yield statuses.append
        except BaseException as error:
            if not statuses:
                self._responses.add(1, {ERROR_TYPE: _kind(error), CLIENT_ID: client_id})
            raise
        finally:
            for status in statuses:
                self._responses.add(1, {STATUS_CODE: status, CLIENT_ID: client_id})

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
        self._requests.add(1, attributes)
        if call.span is None:
            return
        call.span.set_attribute(OUTCOME, attributes[OUTCOME])
        if error is not None:
            _failed(call.span, error)
        call.span.end()


def _histogram(meter: Meter, name: str, description: str) -> Histogram:
    return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=BUCKETS)


def _entries(_options: CallbackOptions) -> Iterable[Observation]:
    """Observe the number of entries; called by the thread of the exporter, too, so it reads a copy."""
    caches = [cache() for cache in tuple(_caches)]
    return [Observation(sum(len(cache) for cache in caches if cache is not None))]


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
