"""What every service shares: configuration, logs, health, metrics, tracing, signals, queues and timers.

A service's `__main__` is three lines:

    def main() -> int:
        return start(run, FelixConfig, prog="calico-felix")

where `run(config, service)` builds the parts, spawns its tasks on `service` and waits for `service.stop`.

Import the modules, not this package: a command line tool that only logs must not load an HTTP server.
"""
