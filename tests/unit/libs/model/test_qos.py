"""Limits from the annotations of pods."""

from __future__ import annotations

import pytest

from libs import model
from libs.model.qos import qos_controls, quantity

P = "qos.projectcalico.org/"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1000", 1000), ("10M", 10**7), ("4Gi", 1 << 32), ("1.5k", 1500), ("1e6", 10**6), ("2E3", 2000), ("1E", 10**18),
        ("0.5", 1), ("1m", 1), ("1001m", 2), ("-1.5", -1), ("+3", 3), (".5Ki", 512), ("3.", 3),
    ],
)  # fmt: skip
def test_quantities_are_read_as_kubernetes_reads_them(text: str, value: int) -> None:
    assert quantity(text) == value


@pytest.mark.parametrize("text", ["", "M", "1 M", "10MB", "ten", "1e", "1e999", "--1", "1,5", "٣", "0x10"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no quantity"):
        quantity(text)


def test_no_annotation_is_no_limit() -> None:
    assert qos_controls({}) == (None, [])
    assert qos_controls({"cni.projectcalico.org/ipAddrs": "[]"}) == (None, [])


def test_every_limit_has_its_annotation() -> None:
    values = {
        "Bandwidth": "1M", "Burst": "2M", "Peakrate": "3M", "Minburst": "4k",
        "PacketRate": "500", "PacketBurst": "60", "MaxConnections": "7",
    }  # fmt: skip
    annotations = {f"{P}ingress{name}": value for name, value in values.items()}
    annotations |= {f"{P}egress{name}": value.replace("M", "G") for name, value in values.items()}
    controls, problems = qos_controls(annotations | {f"{P}dscp": "EF"})
    assert problems == []
    assert controls == model.QoSControls(
        ingress_bandwidth=10**6, ingress_burst=2 * 10**6, ingress_peakrate=3 * 10**6, ingress_minburst=4000,
        ingress_packet_rate=500, ingress_packet_burst=60, ingress_max_connections=7,
        egress_bandwidth=10**9, egress_burst=2 * 10**9, egress_peakrate=3 * 10**9, egress_minburst=4000,
        egress_packet_rate=500, egress_packet_burst=60, egress_max_connections=7,
        dscp=model.DSCP("EF"),
    )  # fmt: skip


def test_bandwidth_of_kubernetes_counts_where_calico_says_nothing() -> None:
    kubernetes = {"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "20M"}
    controls, problems = qos_controls(kubernetes | {f"{P}egressBandwidth": "30M"})
    assert problems == []
    assert controls == model.QoSControls(
        ingress_bandwidth=10**7, ingress_burst=1 << 32, egress_bandwidth=3 * 10**7, egress_burst=1 << 32
    )


@pytest.mark.parametrize(
    ("annotations", "limits", "said"),
    [
        ({"ingressBandwidth": "1"}, {"ingress_bandwidth": 1000, "ingress_burst": 1 << 32}, "ingressBandwidth: 1 is"),
        ({"egressBandwidth": "5P"}, {"egress_bandwidth": 10**15, "egress_burst": 1 << 32}, "egressBandwidth: 50000"),
        ({"ingressBandwidth": "fast"}, None, "no quantity"),
        ({"ingressBurst": "1M"}, None, "needs ingressBandwidth"),
        ({"ingressPacketBurst": "9"}, None, "needs ingressPacketRate"),
        ({"egressPacketRate": "9"}, {"egress_packet_rate": 9, "egress_packet_burst": 5}, ""),
        (
            {"egressBandwidth": "2M", "egressBurst": "3M", "egressPeakrate": "2M", "egressMinburst": "2k"},
            {"egress_bandwidth": 2 * 10**6, "egress_burst": 3 * 10**6},
            "Peakrate is not above",
        ),
        ({"dscp": "64"}, None, "no code point"),
    ],
)
def test_what_cannot_be_used_is_named_and_the_rest_holds(
    annotations: dict[str, str], limits: dict[str, int] | None, said: str
) -> None:
    controls, problems = qos_controls({P + name: value for name, value in annotations.items()})
    assert controls == (None if limits is None else model.QoSControls(**limits))
    assert said in " ".join(problems)
    assert bool(problems) == bool(said)
