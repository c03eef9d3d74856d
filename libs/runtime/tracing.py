"""Spans over OpenTelemetry, at no cost when nobody collects them.

Off unless OTEL_EXPORTER_OTLP_ENDPOINT (or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT) is set: then `span` hands out one shared
object that does nothing and OpenTelemetry is not even imported (its SDK takes some 0.2 s). On: spans go in batches over
OTLP/HTTP; a collector that is away costs dropped spans, nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

AttributeValue = str | bool | int | float
_provider: TracerProvider | None = None


class Span(Protocol):
    def set(self, name: str, value: AttributeValue) -> None: ...

    def event(self, name: str, attributes: Mapping[str, AttributeValue] | None = None) -> None: ...

    @property
    def traceparent(self) -> str | None:
        """W3C header value that makes a span elsewhere a child of this one; None when tracing is off."""
        ...


class _NoSpan:
    traceparent: str | None = None

    def set(self, name: str, value: AttributeValue) -> None:
        pass

    def event(self, name: str, attributes: Mapping[str, AttributeValue] | None = None) -> None:
        pass

    def __enter__(self) -> _NoSpan:
        return self

    def __exit__(self, *_: object) -> None:
        return None


_NO_SPAN = _NoSpan()


class Tracer:
    """Asks for the provider at each span, so one made when a module is imported works after `setup`."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def span(
        self, name: str, attributes: Mapping[str, AttributeValue] | None = None, *, parent: str | None = None
    ) -> AbstractContextManager[Span]:
        """A span around the with block; an exception marks it failed and goes on.

        parent: a `traceparent` that came with a message or request; a malformed one is ignored, as the W3C text asks.
        """
        if _provider is None:
            return _NO_SPAN
        return _live_span(_provider, self._name, name, attributes, parent)


def tracer(name: str) -> Tracer:
    return Tracer(name)


def enabled(environ: Mapping[str, str]) -> bool:
    if environ.get("OTEL_SDK_DISABLED", "").casefold() == "true":
        return False
    return bool(environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))


def setup(service: str, *, instance: str = "", environ: Mapping[str, str] | None = None) -> bool:
    """Start exporting when the environment names a collector; True when it does. The second call changes nothing."""
    global _provider
    environ = os.environ if environ is None else environ
    if _provider is not None or not enabled(environ):
        return _provider is not None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    attributes: dict[str, str] = {"service.namespace": "calico"}
    if instance:
        attributes["service.instance.id"] = instance
    if not environ.get("OTEL_SERVICE_NAME"):
        attributes["service.name"] = service
    endpoint = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if not endpoint:
        endpoint = environ["OTEL_EXPORTER_OTLP_ENDPOINT"].rstrip("/") + "/v1/traces"
    provider = TracerProvider(resource=Resource.create(attributes))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=5)))
    _provider = provider
    return True


def shutdown() -> None:
    """Send what is buffered (bounded by the exporter's time-out) and switch off. Blocks: call it last."""
    global _provider
    provider, _provider = _provider, None
    if provider is not None:
        provider.shutdown()


def current_ids() -> tuple[str, str] | None:
    """(trace id, span id) in hex of the active span, None when there is none."""
    if _provider is None:
        return None
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    return (f"{context.trace_id:032x}", f"{context.span_id:016x}") if context.is_valid else None


@contextmanager
def _live_span(
    provider: TracerProvider,
    library: str,
    name: str,
    attributes: Mapping[str, AttributeValue] | None,
    parent: str | None,
) -> Iterator[Span]:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = TraceContextTextMapPropagator().extract({"traceparent": parent}) if parent else None
    with provider.get_tracer(library).start_as_current_span(name, context=context, attributes=attributes) as span:

        class Live:
            def set(self, name: str, value: AttributeValue) -> None:
                span.set_attribute(name, value)

            def event(self, name: str, attributes: Mapping[str, AttributeValue] | None = None) -> None:
                span.add_event(name, attributes)

            @property
            def traceparent(self) -> str | None:
                carrier: dict[str, str] = {}
                TraceContextTextMapPropagator().inject(carrier)
                return carrier.get("traceparent")

        yield Live()
