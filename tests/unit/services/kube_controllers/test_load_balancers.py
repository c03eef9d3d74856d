"""Addresses of load balancers: whose, which, and what there is to do."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from libs.ipam.block import Allocation
from libs.ipam.pools import Pool, Use
from libs.kube.objects import SERVICES, Service
from services.kube_controllers.core import load_balancers as core
from services.kube_controllers.core.load_balancers import ADDRESSES, POOLS4, POOLS6, Plan


def service(annotations: dict[str, str] | None = None, **spec: Any) -> Service:
    metadata = {"name": "web", "namespace": "shop", "uid": "1", "annotations": annotations or {}}
    return SERVICES.decode({"metadata": metadata, "spec": {"type": "LoadBalancer", "ipFamilies": ["IPv4"]} | spec})


def pool(name: str, cidr: str, **more: Any) -> Pool:
    return Pool(name, ip_network(cidr), 28, uses=frozenset({Use.LOAD_BALANCER}), **more)


POOLS = [pool("a", "10.0.0.0/24"), pool("b", "10.1.0.0/24"), pool("m", "10.2.0.0/24", manual=True),
         pool("six", "fd00::/112")]  # fmt: skip


def has(*addresses: str) -> list[Allocation]:
    return [Allocation(ip_address(one), "lb-x", {"service": "web"}, {}, 1, None) for one in addresses]


def plan(found: Service, held: tuple[str, ...] = (), shown: tuple[str, ...] = ()) -> tuple[set[str], Plan]:
    made = core.plan(core.wish_of(found), has(*held), shown, POOLS)
    return {str(one.address) for one in made.release}, made


def test_handle_is_calicos() -> None:
    """SHA-256 of the text in URL-safe base64 without padding; `-`, `_` and `.` taken out (sha256sum | base64)."""
    # printf 'web-shop-0a1b' | openssl dgst -sha256 -binary | base64 | tr -d '+/=-_'
    assert core.handle_of("Web", "shop", "0A1B") == core.handle_of("web", "shop", "0a1b")
    assert core.handle_of("web", "shop", "0a1b") == "lb-" + HANDLE
    assert core.handle_of("web", "shop", "0a1c") != core.handle_of("web", "shop", "0a1b")


HANDLE = "rLH2PScIMaz0asG0mJBfB7XSLrDF4qMClBkPNkYdriE"


@pytest.mark.parametrize(
    ("annotations", "spec", "everything", "requested"),
    [
        ({}, {}, True, False),
        ({}, {"type": "ClusterIP"}, False, False),
        ({}, {"loadBalancerClass": "calico"}, True, True),
        ({}, {"loadBalancerClass": "other"}, False, False),
        ({POOLS4: '["a"]'}, {}, True, True),
        ({POOLS6: '["six"]'}, {}, True, True),
        ({ADDRESSES: '["10.0.0.1"]'}, {}, True, True),
        ({ADDRESSES: ""}, {}, True, False),
        ({ADDRESSES: '["10.0.0.1"]'}, {"loadBalancerClass": "other"}, False, False),
        ({ADDRESSES: '["10.0.0.1"]'}, {"type": "NodePort"}, False, False),
        ({}, {"loadBalancerIP": "10.0.0.1"}, True, True),
        ({}, {"loadBalancerIP": "10.0.0.1", "loadBalancerClass": "other"}, False, False),
    ],
)
def test_s03_whose_addresses_are_ours_to_give(
    annotations: dict[str, str], spec: dict[str, Any], everything: bool, requested: bool
) -> None:
    found = service(annotations, **spec)
    assert core.managed(found, "AllServices")[0] == everything
    assert core.managed(found, "RequestedServicesOnly")[0] == requested
    assert not core.managed(found, None)[0]
    odd = core.managed(found, "RequestedServicesOnly")[1]
    assert bool(odd) == (spec.get("loadBalancerClass") == "other" and bool(annotations))


@pytest.mark.parametrize(
    ("annotations", "spec", "told"),
    [
        ({ADDRESSES: "10.0.0.1"}, {}, "expected a JSON list"),
        ({ADDRESSES: '["web.example"]'}, {}, "no address"),
        ({ADDRESSES: '["10.0.0.1", "10.0.0.2"]'}, {}, "at most one IPv4"),
        ({POOLS4: '["fd00::/112"]'}, {}, "no IPv4 network"),
        ({POOLS6: '["a/b"]'}, {}, "neither a pool's name nor a network"),
        ({}, {"loadBalancerIP": "one"}, "spec.loadBalancerIP"),
        ({ADDRESSES: '["fd00::1%eth0"]'}, {}, "has a zone"),  # equal to no allocation: taken and released for ever
    ],
)
def test_what_cannot_be_understood_is_named(annotations: dict[str, str], spec: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        core.wish_of(service(annotations, **spec))


def test_one_address_of_each_family_is_drawn_and_what_fits_is_kept() -> None:
    both: dict[str, Any] = {"ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "RequireDualStack"}
    assert plan(service(**both))[1] == Plan(draw=(6, 4))
    assert plan(service(**both), ("10.0.0.1",))[1] == Plan(draw=(6,))
    assert plan(service(**both), ("10.0.0.1", "fd00::1"))[1].empty
    assert plan(service(), ("10.0.0.1", "fd00::1"))[0] == {"fd00::1"}  # not dual stack any more
    released, made = plan(service(), ("10.0.0.1", "10.0.0.2"), ("10.0.0.2",))
    assert (released, made.draw) == ({"10.0.0.1"}, ())  # of two it keeps the one that clients know
    wish = core.wish_of(service(**both))
    assert core.in_order({ip_address("10.0.0.1"), ip_address("fd00::1")}, wish) == ["fd00::1", "10.0.0.1"]


def test_s04_exact_addresses_win_over_pools_and_pools_over_chance() -> None:
    exact = service({ADDRESSES: '["10.1.0.7"]', POOLS4: '["a"]'})
    released, made = plan(exact, ("10.0.0.1",))
    assert (released, [str(a) for a in made.take], made.draw) == ({"10.0.0.1"}, ["10.1.0.7"], ())
    assert plan(exact, ("10.1.0.7",))[1].empty
    assert plan(service(loadBalancerIP="10.1.0.7"))[1].take == (ip_address("10.1.0.7"),)
    pooled = service({POOLS4: '["b", "10.2.0.0/24"]'})
    assert plan(pooled, ("10.0.0.1",)) == ({"10.0.0.1"}, Plan(tuple(has("10.0.0.1")), draw=(4,)))
    assert plan(pooled, ("10.1.0.1",))[1].empty
    assert plan(pooled, ("10.2.0.1",))[1].empty
    assert plan(service(), ("10.2.0.1",))[0] == {"10.2.0.1"}  # of a manual pool, and nobody asks for it any more


def test_nothing_is_released_for_a_pool_that_nobody_can_read() -> None:
    pooled, elsewhere = service({POOLS4: '["damaged"]'}), has("10.9.0.1")
    wish = core.wish_of(pooled)
    assert core.plan(wish, elsewhere, (), POOLS, all_known=False).empty
    assert core.plan(wish, elsewhere, (), POOLS).release, "there is no such pool, that is sure"
    assert core.plan(wish, has("10.0.0.1"), (), POOLS, all_known=False).release, "of another pool, that is sure"
    exact = core.wish_of(service({ADDRESSES: '["10.9.0.2"]'}))
    assert core.plan(exact, elsewhere, (), POOLS, all_known=False).release, "whatever its pool"


def test_an_address_that_was_lost_is_preferred_when_it_suits() -> None:
    assert plan(service(), (), ("10.0.0.9",))[1].prefer == (ip_address("10.0.0.9"),)
    assert plan(service(), (), ("192.0.2.1", "lb.example", "10.2.0.1"))[1].prefer == ()
    assert plan(service({POOLS4: '["b"]'}), (), ("10.0.0.9",))[1].prefer == ()
