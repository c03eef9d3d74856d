"""The pair of devices of an attachment."""

from __future__ import annotations

from libs.netlink.podlink import HOST_MAC, VETH, PodVeth, host_interface
from services.felix.core.cni.addressing import Given
from services.felix.core.cni.request import FIRST_IFNAME, Request
from services.felix.core.cni.result import Interface, Ip, Result, Route
from services.felix.core.route_settings import RouteSettings


def pod_link(
    request: Request, host: str, given: Given, mac: str, mtu_bytes: int, routes: RouteSettings | None = None
) -> PodVeth:
    """routes: how those that lead to it are written; needed to make it only."""
    config, routes = request.config, routes or RouteSettings()
    return PodVeth(
        host_name=host,
        netns=request.netns,
        addresses=given.addresses,
        container_name=request.ifname,
        mtu_bytes=mtu_bytes,
        container_mac=mac or None,
        queues=max(1, config.num_queues),
        allow_ip_forwarding=config.container_settings.allow_ip_forwarding,
        device=config.device_type.lower() or VETH,
        route_protocol=routes.protocol,
        route_metrics=(routes.priorities[4], routes.priorities[6]),
        routes=given.routes,
        own_table=request.ifname != FIRST_IFNAME,
    )


def result_of(request: Request, link: PodVeth, given: Given) -> Result:
    """What ADD answers: both ends, the addresses on the container's, and routes that are not the usual ones."""
    made = Result(
        interfaces=(
            Interface(name=link.host_name, mac=HOST_MAC, mtu=link.mtu_bytes),
            Interface(name=request.ifname, mac=link.container_mac or "", mtu=link.mtu_bytes, sandbox=request.netns),
        ),
        ips=tuple(Ip(host_interface(address), interface=1) for address in given.addresses),
        routes=tuple(Route(dst) for dst in given.routes or ()),
        dns=request.config.dns or given.dns,
    )
    before = request.previous()
    return made if before is None else made.after(before)
