"""Spans and metrics of a `TokenManager`, through the OpenTelemetry API (extra `otel`).

Names and units follow OpenTelemetry's semantic conventions (opentelemetry.io/docs/specs/semconv). Nothing here is given
a token or a secret, and no user id is exported.
"""

try:
    from opentelemetry import metrics, trace
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider
except ModuleNotFoundError:
    raise ImportError('spotconn.telemetry needs an extra: pip install "spotconn[otel]"') from None

from spotconn import __version__
from spotconn.manager import TokenManager
from spotconn.telemetry._observer import Telemetry

__all__ = ["instrument"]


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
    tokens._source.observe(Telemetry(tracer, meter), tokens)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  our own interface
