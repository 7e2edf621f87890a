"""What an instrumented manager exports, caught by the SDK's own readers."""

import json
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, Metric, NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from spotconn import TokenManager
from spotconn.telemetry import instrument


class Exported:
    """The spans and metrics of the managers that it instruments."""

    def __init__(self) -> None:
        self._spans = InMemorySpanExporter()
        self.tracing = TracerProvider(shutdown_on_exit=False)
        self.tracing.add_span_processor(SimpleSpanProcessor(self._spans))
        self._reader = InMemoryMetricReader()
        self.metering = MeterProvider([self._reader], shutdown_on_exit=False)

    def instrument(self, tokens: TokenManager) -> TokenManager:
        """The manager, whose spans and metrics come here from now on."""
        instrument(tokens, tracer_provider=self.tracing, meter_provider=self.metering)
        return tokens

    def metrics(self) -> dict[str, Metric]:
        """All metrics by name."""
        data = self._reader.get_metrics_data()
        if data is None:
            return {}
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
        return {metric.name: metric for scope in scopes for metric in scope.metrics}

    def points(self, name: str) -> dict[tuple[object, ...], float]:
        """The values, or counts, of a metric by the values of its attributes in the order of their names."""
        metric = self.metrics().get(name)
        found: dict[tuple[object, ...], float] = {}
        for point in metric.data.data_points if metric else ():
            attributes = dict(point.attributes or {})
            key = tuple(attributes[attribute] for attribute in sorted(attributes))
            found[key] = point.value if isinstance(point, NumberDataPoint) else point.count
        return found

    def seconds(self, name: str) -> float:
        """The sum of a histogram."""
        points = self.metrics()[name].data.data_points
        return sum(point.sum for point in points if isinstance(point, HistogramDataPoint))

    def outcomes(self) -> dict[tuple[object, ...], float]:
        """The calls for a token by outcome, or by the type of their error and "error"."""
        return self.points("spotconn.token.requests")

    def series(self) -> int:
        """The number of all combinations of attributes of all metrics."""
        return sum(len(metric.data.data_points) for metric in self.metrics().values())

    def clear(self) -> None:
        """Drop the spans that have ended; metrics have no end."""
        self._spans.clear()

    def spans(self, name: str) -> list[ReadableSpan]:
        """The spans of a name that have ended."""
        return [span for span in self._spans.get_finished_spans() if span.name == name]

    def span(self, name: str) -> ReadableSpan:
        """The only one."""
        (span,) = self.spans(name)
        return span

    def text(self) -> str:
        """All that was exported."""
        data: Any = self._reader.get_metrics_data()
        spans = [json.loads(span.to_json()) for span in self._spans.get_finished_spans()]
        return "\n".join([json.dumps(spans), data.to_json() if data else ""])

    def close(self) -> None:
        """End both providers."""
        self.tracing.shutdown()
        self.metering.shutdown()
