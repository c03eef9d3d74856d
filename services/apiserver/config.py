"""Settings of apiserver. Flags are those of Kubernetes' API servers where there is one of that meaning, so that who
knows Calico's apiserver finds them; TLS_MIN_VERSION and TLS_CIPHER_SUITES are Calico's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import ClassVar

from libs.runtime.config import ConfigError, RuntimeConfig, setting
from services.apiserver.core import tlsnames

LOOPBACK = ("localhost", "127.0.0.1", "::1")
IN_CLUSTER = "in-cluster"


@dataclass(frozen=True, kw_only=True)
class ApiserverConfig(RuntimeConfig):
    env_prefix: ClassVar[str] = "APISERVER_"

    instance: str = setting("", "Name of this replica on the bus; empty takes the host's name and a random part.")

    # --- where it listens
    bind_address: str = setting(
        "", "Address or host name to listen on; empty is all addresses, in development localhost."
    )
    secure_port: int | None = setting(
        5443, "Port of HTTPS; 0 takes a free one, none switches it off.", minimum=0, maximum=65535
    )
    insecure_port: int | None = setting(
        None, "Port of plain HTTP, on loopback alone; 0 takes a free one.", minimum=0, maximum=65535
    )
    development: bool = setting(
        False,
        "On loopback only: who shows no credentials is system:admin, and a certificate is made where none is given.",
    )

    # --- TLS
    tls_cert_file: Path | None = setting(None, "The server's certificate and its intermediates, PEM.")
    tls_private_key_file: Path | None = setting(None, "Its private key, PEM.")
    tls_min_version: str = setting(
        "VersionTLS12", "VersionTLS12 or VersionTLS13.", env=("TLS_MIN_VERSION",), parse=tlsnames.min_version
    )
    tls_cipher_suites: tuple[str, ...] = setting(
        tlsnames.DEFAULT, "Of TLS 1.2, by Go's names; those of 1.3 are always on.", env=("TLS_CIPHER_SUITES",),
        parse=tlsnames.suites,
    )  # fmt: skip
    reload_interval_s: float = setting(
        2.0, "How often certificates, tokens and roles are looked at for changes.", unit="s", minimum=0.05
    )

    # --- who asks
    client_ca_file: Path | None = setting(None, "Authorities of client certificates: CN is the user, each O a group.")
    token_auth_file: Path | None = setting(None, 'Tokens, as lines of token,user,uid,"group1,group2".')
    anonymous_auth: bool = setting(
        True, "Who shows no credentials may ask for the paths that are always allowed, and /readyz and /version."
    )
    requestheader_client_ca_file: Path | None = setting(
        None,
        "Authorities of the front proxy's certificate; none: what the cluster's ConfigMap says, where there is one.",
    )
    requestheader_allowed_names: tuple[str, ...] = setting(
        (), "Common names of the front proxy's certificate; empty: any that its authority signed."
    )
    requestheader_username_headers: tuple[str, ...] = setting(("X-Remote-User",), "Headers with the user's name.")
    requestheader_group_headers: tuple[str, ...] = setting(("X-Remote-Group",), "Headers with a group each.")
    requestheader_extra_headers_prefix: tuple[str, ...] = setting(
        ("X-Remote-Extra-",), "Prefixes of headers with more about the user."
    )
    requestheader_uid_headers: tuple[str, ...] = setting(("X-Remote-Uid",), "Headers with the user's uid.")

    # --- a kube-apiserver that knows more
    kubeconfig: Path | None = setting(
        None, "Of the kube-apiserver that authenticates and authorises; `in-cluster` is the pod's service account."
    )
    authentication_kubeconfig: Path | None = setting(None, "Another one, for tokens and the front proxy's authority.")
    authorization_kubeconfig: Path | None = setting(None, "Another one, for authorization.")
    authentication_skip_lookup: bool = setting(
        False, "Do not read the ConfigMap kube-system/extension-apiserver-authentication."
    )
    authentication_token_webhook_cache_ttl: float = setting(
        10.0, "How long a token's user is remembered.", unit="s", minimum=0
    )
    authorization_webhook_cache_authorized_ttl: float = setting(
        10.0, "How long a yes is remembered.", unit="s", minimum=0
    )
    authorization_webhook_cache_unauthorized_ttl: float = setting(
        10.0, "How long a no is remembered.", unit="s", minimum=0
    )
    trust_refresh_s: float = setting(15.0, "How often that ConfigMap is read.", unit="s", minimum=0.05)

    # --- what may be done
    authorization_role_file: Path | None = setting(
        None, "Roles and bindings of rbac.authorization.k8s.io/v1 as YAML documents, for a server that stands alone."
    )
    authorization_always_allow_paths: tuple[str, ...] = setting(
        ("/healthz", "/livez"), "Paths that anybody may ask for; a * at the end stands for the rest."
    )

    # --- limits
    max_requests_inflight: int = setting(400, "Requests that read, at the same time; 0: no limit.", minimum=0)
    max_mutating_requests_inflight: int = setting(200, "Requests that write, the same.", minimum=0)
    max_request_body_bytes: int = setting(3 * 1024 * 1024, "Largest body of a request.", unit="bytes", minimum=1024)
    max_connections: int = setting(10_000, "Connections at the same time; 0: no limit.", minimum=0)
    request_timeout: float = setting(60.0, "For all requests but watches.", unit="s", minimum=0.01)
    head_timeout_s: float = setting(10.0, "In which a request's head must arrive.", unit="s", minimum=0.01)
    body_timeout_s: float = setting(30.0, "In which its body must arrive.", unit="s", minimum=0.01)
    idle_timeout_s: float = setting(180.0, "After which an idle connection is closed.", unit="s", minimum=0.01)
    user_rate_per_s: float = setting(
        1000.0, "Requests of one user on the long run; 0: no limit.", unit="1/s", minimum=0
    )
    user_burst: int = setting(2000, "Requests of one user at once.", minimum=1)
    shutdown_delay_duration: float = setting(
        0.0, "Between /readyz failing and the end of service, for load balancers to see it.", unit="s", minimum=0
    )

    def check(self, environ: Mapping[str, str]) -> None:
        """What one setting alone does not tell. Raises ConfigError with all that is wrong."""
        problems = []
        if self.secure_port is None and self.insecure_port is None:
            problems.append("nothing to listen on: secure_port and insecure_port are both none")
        if bool(self.tls_cert_file) != bool(self.tls_private_key_file):
            problems.append("tls_cert_file and tls_private_key_file must be set together")
        if self.development and not is_loopback(self.listens_on):
            problems.append(f"development is for loopback alone, not for bind_address {self.listens_on or '(all)'!r}")
        if not self.development:
            if self.secure_port is not None and self.tls_cert_file is None:
                problems.append(
                    "no certificate: set tls_cert_file and tls_private_key_file (or development, on loopback)"
                )
            if not self.knows_senders:
                problems.append(
                    "nobody could be authenticated: set kubeconfig, client_ca_file, token_auth_file or"
                    " requestheader_client_ca_file (or development, on loopback)"
                )
            if not self.access_api and self.authorization_role_file is None:
                problems.append(
                    "nothing could be authorized: set kubeconfig or authorization_role_file (or development)"
                )
        if problems:
            raise ConfigError(problems)

    @property
    def listens_on(self) -> str:
        return self.bind_address or ("localhost" if self.development else "")

    @property
    def knows_senders(self) -> bool:
        return bool(
            self.identity_api or self.client_ca_file or self.token_auth_file or self.requestheader_client_ca_file
        )

    @property
    def identity_api(self) -> Path | None:
        """Kubeconfig of who knows tokens and the proxy."""
        return self.authentication_kubeconfig or self.kubeconfig

    @property
    def access_api(self) -> Path | None:
        """Kubeconfig of who decides."""
        return self.authorization_kubeconfig or self.kubeconfig


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
