"""apiserver behind a kube-apiserver: its reviews and its ConfigMap (rows A07, A12), by a small HTTPS server with
just these. What a real kube-apiserver makes of it is for the suites that have one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from libs.kube.api import KubeApi, KubeError
from services.apiserver.core.ports import Decision
from services.apiserver.core.request import API_PREFIX, SERVED, Target, User
from services.apiserver.core.status import ApiError
from services.apiserver.shell.authz import Tiered
from tests.contract.apiserver_stage import POLICIES, Pki, Reviewer, Stage, issue, stage
from tests.contract.test_apiserver_front import bearer, until


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


@pytest.fixture
async def reviewer(pki: Pki) -> AsyncIterator[Reviewer]:
    made = Reviewer(
        tokens={
            "tok-jane": {"username": "jane", "uid": "j", "groups": ["devs"], "extra": {"Scopes": ["a", "b"]}},
            "tok-root": {"username": "root", "groups": ["system:masters"]},
        },
        trust={
            "client-ca-file": pki.people.pem.decode(), "requestheader-client-ca-file": pki.proxy.pem.decode(),
            "requestheader-allowed-names": '["front-proxy"]', "requestheader-username-headers": '["X-Remote-User"]',
            "requestheader-group-headers": '["X-Remote-Group"]',
            "requestheader-extra-headers-prefix": '["X-Remote-Extra-"]',
        },
    )  # fmt: skip
    async with made.serving(pki):
        yield made


@pytest.fixture
async def front(pki: Pki, reviewer: Reviewer) -> AsyncIterator[Stage]:
    settings = {"kubeconfig": reviewer.kubeconfig(pki), "trust_refresh_s": 0.05}
    async with stage(pki, **settings) as made:
        await until(lambda: made.parts.trust.proxy is not None, "the ConfigMap is read")
        yield made


JANE = bearer("tok-jane")


async def test_a_closed_client_says_so(pki: Pki, reviewer: Reviewer) -> None:
    async with await KubeApi.open(reviewer.kubeconfig(pki)) as api:
        assert await api.get("/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication")
    with pytest.raises(KubeError, match="closed") as caught:
        await api.get("/version")
    assert caught.value.transient


async def test_a_token_is_reviewed_and_its_user_is_authorized(front: Stage, reviewer: Reviewer) -> None:
    status, body, _ = await front.ask(headers=JANE)
    assert (status, body["name"], body["uid"], body["extra"]) == (200, "jane", "j", {"scopes": ["a", "b"]})
    assert body["groups"] == ["devs", "system:authenticated"]
    assert reviewer.asked == [
        {
            "user": "jane", "uid": "j", "groups": ["devs", "system:authenticated"], "extra": {"scopes": ["a", "b"]},
            "resourceAttributes": {
                "verb": "list", "group": "projectcalico.org", "version": "v3", "resource": "networkpolicies",
                "namespace": "default",
            },
        }
    ]  # fmt: skip
    assert (await front.ask(headers=bearer("tok-nobody")))[0] == 401
    await front.ask("/apis", headers=JANE)
    assert reviewer.asked[-1]["nonResourceAttributes"] == {"path": "/apis", "verb": "get"}


async def test_a_list_of_one_name_is_authorized_for_that_name(front: Stage, reviewer: Reviewer) -> None:
    await front.ask(POLICIES + "?fieldSelector=metadata.name%3Dweb", headers=JANE)
    assert reviewer.asked[-1]["resourceAttributes"]["name"] == "web"
    await front.ask(f"{API_PREFIX}/ippools/p1/status", method="PUT", headers=JANE, data=b"{}")
    assert reviewer.asked[-1]["resourceAttributes"]["subresource"] == "status"
    assert reviewer.asked[-1]["resourceAttributes"]["verb"] == "update"


async def test_a_refusal_carries_the_reviews_reason(front: Stage, reviewer: Reviewer) -> None:
    reviewer.allow = lambda spec: False
    status, body, _ = await front.ask(headers=JANE)
    assert (status, body["reason"]) == (403, "Forbidden")
    assert body["message"].endswith('in the namespace "default": no rule')
    assert (await front.ask(headers=bearer("tok-root")))[0] == 200, "masters are not asked about"
    assert len(reviewer.asked) == 1


async def test_answers_are_remembered_and_asked_once_by_many(front: Stage, reviewer: Reviewer) -> None:
    reviewer.delay_s = 0.2
    answers = await asyncio.gather(*(front.ask(headers=JANE) for _ in range(20)))
    assert [status for status, _, _ in answers] == [200] * 20
    assert (reviewer.reviewed, len(reviewer.asked)) == (1, 1)
    await front.ask(headers=JANE)
    assert (reviewer.reviewed, len(reviewer.asked)) == (1, 1)
    assert front.metric("apiserver_delegated_authz_request_total", code="201") == 1
    await front.ask("/apis", headers=JANE)
    assert (reviewer.reviewed, len(reviewer.asked)) == (1, 2), "another question is another one"


async def test_what_was_remembered_expires(pki: Pki, reviewer: Reviewer) -> None:
    settings = {
        "kubeconfig": reviewer.kubeconfig(pki), "authorization_webhook_cache_authorized_ttl": 0.05,
        "authorization_webhook_cache_unauthorized_ttl": 0.05, "authentication_token_webhook_cache_ttl": 0.05,
    }  # fmt: skip
    async with stage(pki, **settings) as front:
        assert (await front.ask(headers=JANE))[0] == 200
        reviewer.allow = lambda spec: False
        deadline = time.monotonic() + 30
        while (await front.ask(headers=JANE))[0] != 403:
            assert time.monotonic() < deadline
        del reviewer.tokens["tok-jane"]
        while (await front.ask(headers=JANE))[0] != 401:
            assert time.monotonic() < deadline


async def test_no_answer_is_a_refusal(front: Stage, reviewer: Reviewer) -> None:
    assert (await front.ask(headers=JANE))[0] == 200
    reviewer.down = True
    assert (await front.ask(headers=JANE))[0] == 200, "what is remembered still counts, for its ten seconds"
    status, body, headers = await front.ask("/apis", headers=JANE)
    assert (status, body["reason"], headers["Retry-After"]) == (503, "ServiceUnavailable", "1")
    assert (await front.ask(headers=bearer("tok-root")))[0] == 401, "nor can a token be reviewed"
    assert (await front.ask("/livez"))[0] == 200
    reviewer.down = False
    assert (await front.ask("/apis", headers=JANE))[0] == 200, "a failure is not remembered"


async def test_readyz_is_authorized_by_the_kube_apiserver(front: Stage, reviewer: Reviewer) -> None:
    assert (await front.ask("/readyz"))[0] == 200
    assert reviewer.asked[-1] == {
        "user": "system:anonymous", "groups": ["system:unauthenticated"],
        "nonResourceAttributes": {"path": "/readyz", "verb": "get"},
    }  # fmt: skip
    reviewer.allow = lambda spec: False
    assert (await front.ask("/readyz?verbose"))[0] == 200, "remembered"
    assert (await front.ask("/livez"))[0] == 200, "which is open without asking"


async def test_the_clusters_configmap_says_who_may_speak_for_others(front: Stage, reviewer: Reviewer, pki: Pki) -> None:
    proxy = issue("front-proxy", pki.proxy)
    headers = [("X-Remote-User", "jane"), ("X-Remote-Group", "devs")]
    assert (await front.ask(pair=proxy, headers=headers))[1]["name"] == "jane"
    assert (await front.ask(pair=pki.person("carl")))[1]["name"] == "carl"
    assert (await front.ask(pair=issue("other", pki.proxy), headers=headers))[0] == 401
    reviewer.trust = {
        "requestheader-client-ca-file": pki.other.pem.decode(), "requestheader-username-headers": '["X-Who"]',
        "requestheader-group-headers": "[]", "requestheader-extra-headers-prefix": "[]",
    }  # fmt: skip
    await until(lambda: front.parts.trust.names.usernames == ("X-Who",), "the new one is read")
    assert (await front.ask(pair=issue("any", pki.other), headers=[("X-Who", "joe")]))[1]["name"] == "joe"
    assert (await front.ask(pair=issue("any", pki.other), headers=headers))[0] == 401, "old headers say nothing now"
    reviewer.trust = {"requestheader-client-ca-file": "nonsense"}
    reporter = "cluster-authentication"
    deadline = time.monotonic() + 30
    while "Unable to load PEM" not in front.service.health.readiness().table():
        assert time.monotonic() < deadline, front.service.health.readiness().table()
        await asyncio.sleep(0.02)
    assert (await front.ask(f"/readyz/{reporter}", headers=bearer("tok-root")))[0] == 200, "the last good one stays"
    assert (await front.ask(pair=issue("any", pki.other), headers=[("X-Who", "joe")]))[0] == 200


async def test_until_the_configmap_was_read_the_server_is_not_ready(pki: Pki, reviewer: Reviewer) -> None:
    kubeconfig = reviewer.kubeconfig(pki)
    reviewer.down = True
    async with stage(pki, kubeconfig=kubeconfig, trust_refresh_s=0.05) as front:
        await until(lambda: "503" in front.service.health.readiness().table(), "the failure is told")
        assert not front.service.health.readiness().ok
        proxy = issue("front-proxy", pki.proxy)
        reviewer.down = False
        await until(lambda: front.service.health.readiness().ok, "ready once it was read")
        assert (await front.ask(pair=proxy, headers=[("X-Remote-User", "jane")]))[0] == 200


async def test_a_kubeconfig_that_is_no_good_ends_the_start(pki: Pki) -> None:
    path = pki.home / "bad-kubeconfig"
    path.write_text("{}")
    with pytest.raises(BaseExceptionGroup) as caught:
        async with stage(pki, kubeconfig=path):
            pass
    assert "bad-kubeconfig" in str(caught.value.exceptions[0])


# --- tier RBAC by reviews (A07) -------------------------------------------------------------------------------------


def tier_rules(spec: dict[str, Any]) -> bool:
    """Jane: gets tiers a and c; all of a's policies, one policy by name anywhere, nothing in c."""
    asked = spec.get("resourceAttributes", {})
    resource, name = asked.get("resource"), asked.get("name")
    if resource == "tiers":
        return asked["verb"] == "get" and name in ("a", "c")
    return resource == "tier.networkpolicies" and name in ("a.*", "b.*", "web")


async def test_a07_tiers_are_asked_for_in_parallel_and_narrow_lists(front: Stage, reviewer: Reviewer) -> None:
    reviewer.allow = tier_rules
    reviewer.delay_s = 0.05
    tiers = [*"abc", *(f"t{number}" for number in range(30))]

    async def all_tiers() -> list[str]:
        return tiers

    access = Tiered(front.parts.authorization, all_tiers)
    jane = User("jane", ("devs",))
    target = Target(SERVED["networkpolicies"], "default")
    assert await access.readable(jane, "list", target, None) == {"a"}
    questions = [spec["resourceAttributes"] for spec in reviewer.asked]
    assert {q["name"] for q in questions if q["resource"] == "tiers"} == set(tiers)
    assert await access.readable(jane, "list", target, ["a", "c"]) == {"a"}
    with pytest.raises(ApiError, match='in tier "c"') as caught:
        await access.readable(jane, "watch", target, ["c"])
    assert caught.value.code == 403
    await access.check(jane, "update", Target(SERVED["networkpolicies"], "default", "anything"), "a")
    await access.check(jane, "update", Target(SERVED["networkpolicies"], "default", "web"), "c")
    with pytest.raises(ApiError) as caught:
        await access.check(jane, "update", Target(SERVED["networkpolicies"], "default", "web"), "b")
    assert caught.value.message == (
        'networkpolicies.projectcalico.org "web" is forbidden: User "jane" cannot update'
        ' networkpolicies.projectcalico.org in tier "b" and namespace "default" (user cannot get tier)'
    )
    reviewer.down = True
    with pytest.raises(ApiError) as caught:
        await access.check(jane, "delete", Target(SERVED["networkpolicies"], "default", "web"), "a")
    assert caught.value.code == 503
    with pytest.raises(ApiError) as caught:  # of many questions at once, and not a group of their faults
        await access.readable(User("john", ("devs",)), "list", target, None)
    assert caught.value.code == 503


async def test_a07_masters_read_all_tiers(front: Stage) -> None:
    async def all_tiers() -> list[str]:
        return ["a", "b"]

    access = Tiered(front.parts.authorization, all_tiers)
    root = User("root", ("system:masters",))
    assert await access.readable(root, "list", Target(SERVED["tiers"]), None) == {"a", "b"}
    assert await front.parts.authorization.authorize(root, None) == Decision(True, "member of system:masters")  # type: ignore[arg-type]
