"""/livez, /readyz and /healthz in Kubernetes' text form, made of the service's reporters.

`?verbose` lists the checks, `?exclude=NAME` leaves some out, `/readyz/NAME` asks for one. Why a check failed is told on
the health port (`/readiness`), not here: these paths are open to anybody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aiohttp import web

from libs.runtime.health import Aggregator

PATHS = ("/livez", "/readyz", "/healthz")
_PLAIN = {"Cache-Control": "no-cache, private", "X-Content-Type-Options": "nosniff"}


class Probes:
    """stopping: True from the first signal on; then /readyz fails, so that no new clients come."""

    def __init__(self, health: Aggregator, stopping: Callable[[], bool]) -> None:
        self._health, self._stopping = health, stopping

    def routes(self) -> list[web.RouteDef]:
        return [web.get(pattern, self._answer) for path in PATHS for pattern in (path, f"{path}/{{check}}")]

    def _checks(self, path: str) -> Mapping[str, bool]:
        summary = self._health.liveness() if path == "/livez" else self._health.readiness()
        checks = {"ping": True} | {_name(name): word == "ok" for name, word, _ in summary.rows}
        return checks if path == "/livez" else checks | {"shutdown": not self._stopping()}

    async def _answer(self, request: web.Request) -> web.Response:
        path = "/" + request.path.split("/")[1]
        checks = self._checks(path)
        wanted = request.match_info.get("check")
        if wanted is not None:
            if wanted not in checks:
                raise web.HTTPNotFound
            checks = {wanted: checks[wanted]}
        excluded = set(request.query.getall("exclude", []))
        lines, failed = [], []
        for name, good in checks.items():
            if name in excluded:
                lines.append(f"[+]{name} excluded: ok")
            elif good:
                lines.append(f"[+]{name} ok")
            else:
                failed.append(name)
                lines.append(f"[-]{name} failed: reason withheld")
        if unknown := sorted(excluded - checks.keys()):
            lines.append(f"warn: some health checks cannot be excluded: no matches for {', '.join(unknown)}")
        title = path[1:]
        if failed:
            text = "\n".join([*lines, f"{title} check failed"]) + "\n"
            return web.Response(status=500, text=text, headers=_PLAIN)
        if "verbose" in request.query:
            return web.Response(text="\n".join([*lines, f"{title} check passed"]) + "\n", headers=_PLAIN)
        return web.Response(text="ok", headers=_PLAIN)


def _name(reporter: str) -> str:
    """`Request Headers` -> `request-headers`."""
    return reporter.lower().replace(" ", "-")
