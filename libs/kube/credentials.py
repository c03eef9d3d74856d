"""Files that a kubeconfig's credentials are in, to see when they were renewed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

RELOAD_CHECK_S = 5.0
"""Between two looks whether the files have changed."""


def files_of(configuration: Any, kubeconfig: Path) -> tuple[Path, ...]:
    """configuration: kubernetes_asyncio.client.Configuration, as read from that kubeconfig."""
    named = (configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file)
    return (kubeconfig, *(Path(name) for name in named if name), *token_files(kubeconfig))


def token_files(kubeconfig: Path) -> tuple[Path, ...]:
    """Those of all users, which are one as a rule; relative ones beside the kubeconfig, as client-go has it
    (tools/clientcmd/loader.go, GetAuthInfoFileReferences).
    """
    import yaml

    try:
        found = yaml.safe_load(kubeconfig.read_bytes())
        users = [one["user"] for one in found["users"] if one.get("user")]
        return tuple(kubeconfig.parent / user["tokenFile"] for user in users if user.get("tokenFile"))
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return ()  # in a cluster, or of a shape that the library has its own word for
