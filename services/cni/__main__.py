"""`python -m services.cni install|build`, `calico-cni`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from libs.runtime import logs
from libs.runtime.compile_c import CompileError
from libs.runtime.config import ConfigError, load
from services.cni.build import build
from services.cni.config import InstallConfig
from services.cni.install import InstallError, install

USAGE = """\
usage: calico-cni install [--help | options]   put the plugin and its configuration where the container runtime looks
       calico-cni build                        compile the plugin and print its path
"""


def main(argv: Sequence[str] | None = None) -> int:
    verb, *rest = [*(sys.argv[1:] if argv is None else argv), ""]
    rest = [a for a in rest if a]
    try:
        if verb == "build" and not rest:
            print(build())
            return 0
        if verb == "install":
            config = load(InstallConfig, rest, prog="calico-cni install", description="Install the CNI plugin.")
            logs.setup("calico-cni")
            for path in install(config):
                print(path)
            return 0
    except (CompileError, ConfigError, InstallError) as error:
        print(f"calico-cni: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    finally:
        logs.close()
    print(USAGE, end="", file=sys.stdout if verb in ("-h", "--help") else sys.stderr)
    return 0 if verb in ("-h", "--help") else 2


if __name__ == "__main__":
    sys.exit(main())
