"""Small pure parts of the front: names of TLS, bounded tables, tier questions, audit texts, settings."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.runtime.config import ConfigError, load
from services.apiserver.config import ApiserverConfig
from services.apiserver.core import audit, tiers, tlsnames
from services.apiserver.core.bounded import Buckets, Recent
from services.apiserver.core.ports import Decision
from services.apiserver.core.request import API_PREFIX, SERVED, Target, User, parse
from services.apiserver.core.status import ApiError
from services.apiserver.metrics import labels
from services.apiserver.shell.front import encode_status

# --- TLS ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tlsnames.SUITES)
def test_openssl_knows_every_suite_that_we_name(name: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers(tlsnames.openssl([name]))
    assert [one["name"] for one in context.get_ciphers() if one["protocol"] != "TLSv1.3"] == [tlsnames.SUITES[name]]


def test_names_of_versions_and_suites() -> None:
    assert [tlsnames.min_version(text) for text in ("VersionTLS12", "1.2", "TLSv1.3")] == [
        "VersionTLS12", "VersionTLS12", "VersionTLS13"
    ]  # fmt: skip
    for bad in ("VersionTLS11", "VersionTLS10", "1.1", "", "SSLv3", "latest"):
        with pytest.raises(ValueError, match="VersionTLS12, VersionTLS13"):
            tlsnames.min_version(bad)
    suite = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"
    assert tlsnames.suites(f" {suite} ,TLS_AES_128_GCM_SHA256") == (suite, "TLS_AES_128_GCM_SHA256")
    assert tlsnames.openssl([suite, "TLS_AES_128_GCM_SHA256"]) == "ECDHE-RSA-AES128-GCM-SHA256"
    with pytest.raises(ValueError, match=r"TLS_RSA_WITH_RC4_128_SHA; there are: TLS_ECDHE"):
        tlsnames.suites("TLS_RSA_WITH_RC4_128_SHA")


# --- bounded tables -------------------------------------------------------------------------------------------------


def test_recent_answers_expire_and_make_room() -> None:
    kept: Recent[str, int] = Recent(2)
    kept.put("a", 1, 10.0)
    kept.put("b", 2, 10.0)
    assert kept.get("a", 5.0) == 1
    kept.put("c", 3, 10.0)
    assert [kept.get(key, 5.0) for key in "abc"] == [1, None, 3], "the one not used for longest went"
    assert [kept.get(key, 10.0) for key in "ac"] == [None, None]
    assert len(kept) == 0


def test_buckets_let_a_burst_through_and_then_the_rate() -> None:
    buckets: Buckets[str] = Buckets(2.0, 3, size=2)
    assert [buckets.take("a", 0.0) for _ in range(4)] == [0, 0, 0, 0.5]
    assert buckets.take("b", 0.0) == 0
    assert [buckets.take("a", now) for now in (0.25, 0.5, 0.5)] == [0.25, 0, 0.5]
    assert buckets.take("c", 1.0) == 0
    assert len(buckets) == 2


@given(st.lists(st.tuples(st.floats(0, 0.3), st.sampled_from("ab")), max_size=200))
def test_no_key_gets_more_than_burst_and_rate(steps: list[tuple[float, str]]) -> None:
    buckets: Buckets[str] = Buckets(5.0, 4)
    now, given_ = 0.0, {"a": 0, "b": 0}
    for pause, key in steps:
        now += pause
        given_[key] += buckets.take(key, now) == 0
        assert given_[key] <= 4 + 5.0 * now + 1e-6


# --- tiers ----------------------------------------------------------------------------------------------------------

YES, NO = Decision(True), Decision(False)


def test_a07_what_is_asked_about_a_policy_in_a_tier() -> None:
    found = tiers.questions("update", Target(SERVED["networkpolicies"], "ns", "web"), "sec")
    assert (found.tier.verb, found.tier.resource, found.tier.name, found.tier.namespace) == ("get", "tiers", "sec", "")
    for asked, name in ((found.policy, "web"), (found.wildcard, "sec.*")):
        assert (asked.verb, asked.resource, asked.namespace, asked.name) == (
            "update",
            "tier.networkpolicies",
            "ns",
            name,
        )
    assert found.allowed(YES, YES, NO)
    assert found.allowed(YES, NO, YES)
    assert not found.allowed(NO, YES, YES)
    assert not found.allowed(YES, NO, NO)


def test_a07_a_refusal_names_the_tier() -> None:
    target = Target(SERVED["globalnetworkpolicies"], "", "web")
    found = tiers.refusal("jane", "delete", target, "sec", True)
    assert found.message == (
        'globalnetworkpolicies.projectcalico.org "web" is forbidden: User "jane" cannot delete'
        ' globalnetworkpolicies.projectcalico.org in tier "sec"'
    )
    found = tiers.refusal("jane", "list", Target(SERVED["networkpolicies"], "ns"), "sec", False)
    assert found.message.endswith('in tier "sec" and namespace "ns" (user cannot get tier)')
    assert (found.code, found.reason) == (403, "Forbidden")


# --- audit ----------------------------------------------------------------------------------------------------------


def test_audit_ids_of_a_front_are_kept_when_they_are_ids() -> None:
    assert audit.audit_id("0a-1.b_C", "fresh") == "0a-1.b_C"
    for bad in ("", "a b", "a\nb", "x" * 65, "ä"):
        assert audit.audit_id(bad, "fresh") == "fresh"


def test_queries_lose_what_sounds_secret() -> None:
    assert audit.safe_uri("/a?labelSelector=x%3Dy&limit=5&continue=abc") == "/a?labelSelector=x=y&limit=5&continue=abc"
    assert audit.safe_uri("/a?access_token=abc&Password=q") == "/a?access_token=***&Password=***"
    assert len(audit.safe_uri("/" + "a" * 5000)) == audit.MAX_TEXT


def test_an_audit_event() -> None:
    record = audit.Record(
        "id", datetime(2026, 1, 2, 3, 4, 5, 6, UTC), "/x", user=User("jane", ("g",), "1", {"k": ("v",)})
    )
    record.info = parse("POST", f"{API_PREFIX}/ippools", {})
    record.name = "pool"
    found = audit.event(record, "ResponseComplete", datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC), 201, {})
    assert found == {
        "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "auditID": "id",
        "stage": "ResponseComplete", "requestURI": "/x", "verb": "create",
        "user": {"username": "jane", "uid": "1", "groups": ["g"], "extra": {"k": ["v"]}},
        "objectRef": {"resource": "ippools", "name": "pool", "apiGroup": "projectcalico.org", "apiVersion": "v3"},
        "responseStatus": {"metadata": {}, "code": 201},
        "requestReceivedTimestamp": "2026-01-02T03:04:05.000006Z", "stageTimestamp": "2026-01-02T03:04:06.000000Z",
    }  # fmt: skip


def test_labels_of_metrics() -> None:
    info = parse("PUT", f"{API_PREFIX}/namespaces/ns/networkpolicies/web", {})
    assert labels(info) == ("PUT", "projectcalico.org", "v3", "networkpolicies", "", "resource", "apiserver")
    assert labels(parse("GET", "/openapi/v3/x", {}))[3] == "openapi"
    assert labels(parse("BREW", "/coffee", {}))[:4] == ("other", "", "", "other")
    assert labels(None)[0] == "other"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "application/json"), ("application/json", "application/json"), ("application/yaml", "application/yaml"),
        ("application/yaml, application/json", "application/yaml"),
        ("application/json, application/yaml", "application/json"),
        ("application/vnd.kubernetes.protobuf", "application/json"),
    ],
)  # fmt: skip
def test_the_form_of_a_status(accept: str, kind: str) -> None:
    body, content_type = encode_status({"kind": "Status", "code": 404}, accept)
    assert content_type == kind
    assert b"Status" in body


# --- settings -------------------------------------------------------------------------------------------------------


def config(*flags: str, **env: str) -> ApiserverConfig:
    return load(ApiserverConfig, list(flags), env, prog="calico-apiserver")


def test_flags_and_environment_of_kubernetes_and_calico() -> None:
    found = config(
        "--secure-port=6443", "--client-ca-file=/ca", "--requestheader-allowed-names=front-proxy-client,other",
        "--token-auth-file=/t", "--tls-cert-file=/c", "--tls-private-key-file=/k", "--request-timeout=1m30s",
        TLS_MIN_VERSION="VersionTLS13", TLS_CIPHER_SUITES="TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        APISERVER_REQUESTHEADER_CLIENT_CA_FILE="/p",
    )  # fmt: skip
    assert (found.secure_port, found.client_ca_file, found.request_timeout) == (6443, Path("/ca"), 90.0)
    assert found.requestheader_allowed_names == ("front-proxy-client", "other")
    assert (found.tls_min_version, found.tls_cipher_suites) == (
        "VersionTLS13",
        ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",),
    )
    assert found.requestheader_client_ca_file == Path("/p")
    assert config().secure_port == 5443


def test_nothing_is_open_by_default() -> None:
    with pytest.raises(ConfigError) as caught:
        config().check({})
    assert len(caught.value.problems) == 3
    config("--development").check({})
    assert config("--development").listens_on == "localhost"
    for address in ("0.0.0.0", "::", "192.0.2.1", "example.com"):
        with pytest.raises(ConfigError, match="loopback alone"):
            config("--development", f"--bind-address={address}").check({})
    for address in ("127.0.0.1", "::1", "127.8.8.8"):
        config("--development", f"--bind-address={address}").check({})
    with pytest.raises(ConfigError, match="set together"):
        config("--development", "--tls-cert-file=/c").check({})
    with pytest.raises(ConfigError, match="nothing to listen on"):
        config("--development", "--secure-port=none").check({})


@pytest.mark.parametrize("rest", ["//tiers", "/tiers//", "//", "/namespaces//networkpolicies", "/tiers//default"])
def test_paths_with_empty_parts_are_no_other_way_to_write_a_path(rest: str) -> None:
    with pytest.raises(ApiError) as refused:
        parse("GET", API_PREFIX + rest, {})
    assert refused.value.code == 404


def test_one_slash_at_the_end_says_nothing() -> None:
    assert parse("GET", API_PREFIX + "/tiers/", {}).target == Target(SERVED["tiers"])
    assert parse("GET", API_PREFIX + "/", {}).target is None
