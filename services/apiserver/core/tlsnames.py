"""Names of TLS versions and cipher suites as Kubernetes' components take them (Go's), in OpenSSL's words.

crypto/tls/cipher_suites.go; the OpenSSL names are those of ciphers(1).
"""

from __future__ import annotations

from collections.abc import Sequence

MIN_VERSIONS = {"VersionTLS12": "TLSv1_2", "VersionTLS13": "TLSv1_3"}
"""Go's name -> member of ssl.TLSVersion. Older versions are not offered at all."""

TLS13_SUITES = frozenset({"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"})
"""Always on, here as in Go: TLS 1.3 has no others."""

SUITES = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
}
DEFAULT = tuple(name for name in SUITES if "GCM" in name or name.endswith("_SHA256"))
"""Forward secret and authenticated: all but the CBC suites, which must be asked for."""


def min_version(text: str) -> str:
    """`VersionTLS12`, `1.2`, `TLSv1.2` … -> Go's name. Raises ValueError that lists what there is."""
    digits = "".join(char for char in text if char.isdigit())
    name = f"VersionTLS{digits}"
    if not text or name not in MIN_VERSIONS:
        raise ValueError(f"{text!r} is not one of {', '.join(MIN_VERSIONS)}")
    return name


def suites(text: str) -> tuple[str, ...]:
    """Go's names, separated by commas. Raises ValueError that lists what there is."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in SUITES and name not in TLS13_SUITES]
    if unknown:
        raise ValueError(f"no such cipher suite: {', '.join(unknown)}; there are: {', '.join(sorted(SUITES))}")
    return names


def openssl(names: Sequence[str]) -> str:
    """For SSLContext.set_ciphers; those of TLS 1.3 are not for that list. "" leaves none for TLS 1.2."""
    return ":".join(dict.fromkeys(SUITES[name] for name in names if name in SUITES))
