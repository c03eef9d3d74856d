"""node run: the docker command, exactly."""

from __future__ import annotations

import pytest

from services.calicoctl.host.node_run import Options, RunProblem, as_number, command
from tests.unit.services.calicoctl.ctl import Ctl

PLAIN = (
    "docker run --net=host --privileged --name=calico-node -d --restart=always -e CALICO_NETWORKING_BACKEND=bird "
    "-e ETCD_ENDPOINTS=http://10.0.0.1:2379 -e NODENAME=n1 -v /var/log/calico:/var/log/calico "
    "-v /var/run/calico:/var/run/calico -v /var/lib/calico:/var/lib/calico -v /lib/modules:/lib/modules -v /run:/run "
    "img:1"
)
ETCD = {"ETCD_ENDPOINTS": "http://10.0.0.1:2379"}


def test_the_plain_command(ctl: Ctl) -> None:
    ctl.variables = ETCD
    assert ctl.good("node", "run", "--dryrun", "--name", "n1", "--node-image", "img:1") == (
        f"Use the following command to start the calico/node container:\n\n{PLAIN}\n\n"
        "If you are running calico/node in an init system, use the --init-system flag\n"
        "to display the appropriate start and stop commands.\n"
    )


def test_the_container_finds_etcd_by_dns_as_calicoctl_does(ctl: Ctl) -> None:
    ctl.variables = {"CALICO_ETCD_DISCOVERY_SRV": "example.org"}
    shown = ctl.good("node", "run", "--dryrun", "--name", "n1", "--node-image", "img:1")
    assert PLAIN.replace("ETCD_ENDPOINTS=http://10.0.0.1:2379", "ETCD_DISCOVERY_SRV=example.org") in shown


def test_for_an_init_system(ctl: Ctl) -> None:
    ctl.variables = ETCD
    shown = ctl.good("node", "run", "--dryrun", "--init-system", "--name", "n1", "--node-image", "img:1")
    assert PLAIN.replace("-d --restart=always", "--rm") in shown
    assert shown.endswith("\ndocker stop calico-node\n\n")


def test_every_option_has_its_place() -> None:
    made = command(
        Options(
            name="n1", image="i", log_dir="/logs", ip="192.0.2.1", ip6="2001:db8::1", as_number="1.10",
            ip_method="can-reach=192.0.2.9", ip6_method="skip-interface=docker.*,eth1", backend="none",
            felix_config="/felix.cfg", no_default_pools=True,
        ),
        {**ETCD, "ETCD_CA_CERT_FILE": "/ca", "ETCD_CERT_FILE": "/cert", "ETCD_KEY_FILE": "/key", "ETCD_USERNAME": "u",
         "ETCD_PASSWORD": "p", "ETCD_DISCOVERY_SRV": "", "OTHER": "x"},
    )  # fmt: skip
    environment = {made[index + 1] for index, part in enumerate(made) if part == "-e"}
    assert environment == {
        "NODENAME=n1", "CALICO_NETWORKING_BACKEND=none", "IP=192.0.2.1", "IP6=2001:db8::1", "AS=65546",
        "IP_AUTODETECTION_METHOD=can-reach=192.0.2.9", "IP6_AUTODETECTION_METHOD=skip-interface=docker.*,eth1",
        "NO_DEFAULT_POOLS=true", "ETCD_ENDPOINTS=http://10.0.0.1:2379", "ETCD_USERNAME=u", "ETCD_PASSWORD=p",
        "ETCD_CA_CERT_FILE=/etc/calico/certs/ca_cert.crt", "ETCD_CERT_FILE=/etc/calico/certs/cert.crt",
        "ETCD_KEY_FILE=/etc/calico/certs/key.pem",
    }  # fmt: skip
    volumes = {made[index + 1] for index, part in enumerate(made) if part == "-v"}
    assert {"/logs:/var/log/calico", "/felix.cfg:/etc/calico/felix.cfg", "/ca:/etc/calico/certs/ca_cert.crt"} < volumes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ip": "2001:db8::1"}, "--ip is wrong IP version"),
        ({"ip6": "192.0.2.1"}, "--ip6 is wrong IP version"),
        ({"ip": "here"}, "--ip: 'here' is no IP address"),
        ({"ip_method": "guess"}, "invalid IP autodetection method"),
        ({"ip_method": "interface="}, "invalid IP autodetection method"),
        ({"ip6_method": "interface=eth(0"}, "no regular expression"),
        ({"as_number": "-1"}, "--as"),
    ],
)
def test_options_that_cannot_be(options: dict[str, str], message: str) -> None:
    with pytest.raises(RunProblem, match=message.replace("(", r"\(")):
        command(Options(name="n", image="i", **options), {})  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "number"), [("64512", 64512), ("4294967295", 2**32 - 1), ("0.5", 5), ("1.0", 65536)])
def test_as_numbers(text: str, number: int) -> None:
    assert as_number(text) == number


@pytest.mark.parametrize("text", ["4294967296", "1.65536", "a", "1.2.3", "", "1."])
def test_bad_as_numbers(text: str) -> None:
    with pytest.raises(RunProblem):
        as_number(text)


def test_autodetection_is_passed_on(ctl: Ctl) -> None:
    assert "-e IP=autodetect -e IP6=autodetect" in ctl.good(
        "node", "run", "--dryrun", "--ip=autodetect", "--ip6=autodetect"
    )


def test_with_kubernetes_it_is_not_the_way(ctl: Ctl) -> None:
    ctl.variables = {"DATASTORE_TYPE": "kubernetes"}
    assert "the daemon set starts it" in ctl.bad("node", "run", "--dryrun")
