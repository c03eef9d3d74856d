"""Metrics of the apiserver, under Kubernetes' names where it has one (k8s.io/apiserver, pkg/endpoints/metrics)."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.apiserver.core.request import VERSION, RequestInfo, Verb
from services.apiserver.core.status import GROUP

COMPONENT = "apiserver"
_VERBS = {Verb.CREATE: "POST", Verb.UPDATE: "PUT"}
_SECONDS = (0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60)
_WHAT = ("verb", "group", "version", "resource", "subresource", "scope", "component")


class Metrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        self._requests = counter("apiserver_request", "Requests answered.", *_WHAT, "dry_run", "code")
        self._durations = Histogram(
            "apiserver_request_duration_seconds", "From the request's head to its answer; no watches.", _WHAT,
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._terminations = counter(
            "apiserver_request_terminations", "Requests refused to protect the server.", "code", "component"
        )
        self._inflight = gauge("apiserver_current_inflight_requests", "Requests being handled.", "request_kind")
        self._longrunning = gauge("apiserver_longrunning_requests", "Watches being served.", *_WHAT)
        self._watchers = gauge("apiserver_registered_watchers", "Watches of a kind.", "group", "version", "kind")
        self._window_changes = gauge("apiserver_watch_cache_changes", "Recent changes that are kept.", "kind")
        self._window_bytes = gauge("apiserver_watch_cache_bytes", "Their size, encoded.", "kind")
        self._events = counter("apiserver_watch_cache_events_received", "Changes that etcd told.", "kind")
        self._expired = counter("apiserver_terminated_watchers", "Watches ended because they fell behind.", "kind")
        self._lag = gauge("apiserver_watch_cache_lag_revisions", "Of the cache behind etcd, when last looked at.")
        self.audit_events = counter("apiserver_audit_event", "Audit events made.")
        self.audit_errors = counter("apiserver_audit_error", "Audit events that were lost.", "plugin")
        self.tls_errors = counter("apiserver_tls_handshake_errors", "TLS handshakes that failed.")
        self.attempts = counter("authentication_attempts", "Requests by whether their sender is known.", "result")
        self.methods = counter("apiserver_authentications", "Known senders by how they showed who they are.", "method")
        self.delegated_authz = counter(
            "apiserver_delegated_authz_request", "SubjectAccessReviews asked for, by the answer's code.", "code"
        )
        self.delegated_authn = counter(
            "apiserver_delegated_authn_request", "TokenReviews asked for, by the answer's code.", "code"
        )
        self.refused_connections = counter(
            "apiserver_connections_refused", "Connections closed because there were too many."
        )
        self.connections = gauge("apiserver_connections", "Connections that stand, those in their handshake included.")

    # --- of the cache (shell/cache.py, CacheMetrics) ---

    def watchers(self, kind: str, now: int) -> None:
        self._watchers.labels(GROUP, VERSION, kind).set(now)

    def window(self, kind: str, changes: int, size_bytes: int) -> None:
        self._window_changes.labels(kind).set(changes)
        self._window_bytes.labels(kind).set(size_bytes)

    def events(self, kind: str, changes: int) -> None:
        self._events.labels(kind).inc(changes)

    def expired(self, kind: str) -> None:
        self._expired.labels(kind).inc()

    def lag(self, revisions: int) -> None:
        self._lag.set(revisions)

    # --- of requests ---

    def watch_inflight(self, reading: Callable[[], float], mutating: Callable[[], float]) -> None:
        self._inflight.labels("readOnly").set_function(reading)
        self._inflight.labels("mutating").set_function(mutating)

    def begin_watch(self, info: RequestInfo) -> Callable[[], None]:
        """Returns what ends it."""
        gauge = self._longrunning.labels(*labels(info))
        gauge.inc()
        return gauge.dec

    def finish(self, info: RequestInfo | None, code: int, seconds: float, dry_run: bool, *, longrunning: bool) -> None:
        what = labels(info)
        self._requests.labels(*what, "All" if dry_run else "", str(code)).inc()
        if not longrunning:
            self._durations.labels(*what).observe(seconds)
        if code in (429, 504):
            self._terminations.labels(str(code), COMPONENT).inc()


_KNOWN = frozenset({"get", "head", "post", "put", "patch", "delete", "options"})
_PATHS = ("/apis", "/api", "/openapi", "/livez", "/readyz", "/healthz", "/version", "/metrics")


def labels(info: RequestInfo | None) -> tuple[str, ...]:
    """Of a bounded set, whatever strangers ask for: names are not in it, and unknown paths are one."""
    if info is None or info.target is None:
        verb = info.verb.upper() if info is not None and info.verb in _KNOWN else "other"
        path = info.path if info is not None else ""
        known = next((p for p in _PATHS if path == p or path.startswith(p + "/")), "other")
        return (verb, "", "", known.strip("/"), "", "", COMPONENT)
    target = info.target
    verb = _VERBS.get(Verb(info.verb), info.verb.upper())
    scope = "resource" if target.name else "namespace" if target.namespace else "cluster"
    return (verb, GROUP, VERSION, target.kind.plural, target.subresource, scope, COMPONENT)
