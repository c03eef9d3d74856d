"""What every service shares: configuration, logs, health, metrics, tracing, signals, queues and timers.

A service's `__main__` is three lines:

    def main() -> int:
        return start(run, FelixConfig, prog="calico-felix")

where `run(config, service)` builds the parts, spawns its tasks on `service` and waits for `service.stop`.
"""

from libs.runtime.backoff import Backoff
from libs.runtime.config import ConfigError, RuntimeConfig, load, required, setting
from libs.runtime.health import Aggregator, Reporter
from libs.runtime.keyed_queue import KeyedQueue
from libs.runtime.redact import Secret
from libs.runtime.service import Service, ServiceExit, run_service, start
from libs.runtime.timers import every
from libs.runtime.tracing import tracer

__all__ = [
    "Aggregator",
    "Backoff",
    "ConfigError",
    "KeyedQueue",
    "Reporter",
    "RuntimeConfig",
    "Secret",
    "Service",
    "ServiceExit",
    "every",
    "load",
    "required",
    "run_service",
    "setting",
    "start",
    "tracer",
]
