"""Accept headers, as clients of Kubernetes send them."""

from __future__ import annotations

import pytest

from services.apiserver.core import accept, discovery
from services.apiserver.core.accept import JSON, MediaType

V2, V2BETA1 = discovery.AGGREGATED["v2"], discovery.AGGREGATED["v2beta1"]
OFFERS = [JSON, V2, V2BETA1]
AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=%s;as=APIGroupDiscoveryList"


@pytest.mark.parametrize(
    ("header", "chosen"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("application/json", JSON),
        ("application/json; charset=utf-8", JSON),
        ("APPLICATION/JSON", JSON),
        ("application/json, */*", JSON),
        ("text/html, */*;q=0.1", JSON),
        (AGGREGATED % "v2" + "," + AGGREGATED % "v2beta1" + ",application/json", V2),
        (AGGREGATED % "v2beta1" + ",application/json", V2BETA1),
        ("application/json;as=APIGroupDiscoveryList;v=v2;g=apidiscovery.k8s.io", V2),
        (AGGREGATED % "v3" + ",application/json", JSON),
        ("application/json;q=0.5," + AGGREGATED % "v2" + ";q=0.9", V2),
        ("application/vnd.kubernetes.protobuf;q=0.9,application/json;q=0.8", JSON),
        ("application/json;q=0", None),
        ("application/json;q=many", None),
        (AGGREGATED % "v3", None),
        ("application/json;as=Table;v=v1;g=meta.k8s.io", None),
        ("text/html", None),
        ("application/com.github.proto-openapi.spec.v2@v1.0+protobuf", None),
        ("nonsense", None),
        (";;;,,/,a/,/b", None),
    ],
)
def test_the_best_offer_is_chosen(header: str, chosen: MediaType | None) -> None:
    assert accept.choose(header, OFFERS) == chosen


def test_types_are_written_as_clients_compare_them() -> None:
    assert str(V2) == "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    assert str(JSON) == "application/json"


@pytest.mark.parametrize(
    ("header", "taken"),
    [("gzip", True), ("deflate, gzip;q=0.5", True), ("*", True), ("GZIP", True), ("", False), ("identity", False),
     ("gzip;q=0", False), ("br;q=1.0, gzip;q=0.0", False)],
)  # fmt: skip
def test_gzip_is_sent_to_who_takes_it(header: str, taken: bool) -> None:
    assert accept.takes_gzip(header) is taken
