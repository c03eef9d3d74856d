"""`python -m services.cni install|build|pod`, `calico-cni`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from libs.runtime import logs
from libs.runtime.compile_c import CompileError
from libs.runtime.config import ConfigError, load
from libs.runtime.service import run_service
from services.cni.build import build
from services.cni.config import InstallConfig
from services.cni.install import install
from services.cni.keeper import run
from services.cni.network import InstallError
from services.cni.token import TokenError, request_token

USAGE = """\
usage: calico-cni install [--help | options]   put the plugin and its configuration where the container runtime looks
       calico-cni install --watch              the same, and stay: put back what changes, refresh the plugin's token
       calico-cni build                        compile the plugin and print its path
       calico-cni pod [--help | …]             pretend pods on this node, to try it without an orchestrator
"""


def main(argv: Sequence[str] | None = None) -> int:
    verb, *rest = [*(sys.argv[1:] if argv is None else argv), ""]
    rest = [a for a in rest if a]
    if verb == "pod":
        from services.cni.pods import pod  # the installer does without

        pod.main(rest, prog_name="calico-cni pod")
    try:
        if verb == "build" and not rest:
            print(build())
            return 0
        if verb == "install":
            config = load(InstallConfig, rest, prog="calico-cni install", description="Install the CNI plugin.")
            logs.parse_level(config.log_level)
            return run_service(run, config, name="calico-cni") if config.watch else _once(config)
    except (CompileError, ConfigError, InstallError, TokenError) as error:
        print(f"calico-cni: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except ValueError as error:
        print(f"calico-cni: log level: {error}", file=sys.stderr)
        return 2
    finally:
        logs.close()
    print(USAGE, end="", file=sys.stdout if verb in ("-h", "--help") else sys.stderr)
    return 0 if verb in ("-h", "--help") else 2


def _once(config: InstallConfig) -> int:
    logs.setup("calico-cni", level=config.log_level)
    token = asyncio.run(request_token(config)).text if config.in_cluster else ""
    for path in install(config, token):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
