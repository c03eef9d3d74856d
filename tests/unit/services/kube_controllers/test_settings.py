"""The configuration in force: the resource under the environment, and what the status says of it."""

from __future__ import annotations

from typing import Any

import pytest

from libs import model
from libs.kube.api import ACCOUNT_TOKEN
from libs.model.codec import convert, to_dict
from libs.resources import codec
from libs.runtime.config import ConfigError, load
from services.kube_controllers.config import KubeControllersConfig
from services.kube_controllers.core import settings
from services.kube_controllers.core.settings import Environment, Running

TEMPLATE = {"generateName": "lan", "interfaceCIDRs": ["10.0.0.0/8"], "labels": {"net": "lan"}}


def in_force(spec: dict[str, Any], **environment: Any) -> Running:
    return settings.running(convert(model.KubeControllersConfigurationSpec, spec), Environment(**environment))


def by_environment(spec: dict[str, Any], **variables: str) -> Running:
    config = load(KubeControllersConfig, [], variables, prog="test")
    return settings.running(convert(model.KubeControllersConfigurationSpec, spec), config.environment(variables))


def with_host_endpoints(**given: Any) -> dict[str, Any]:
    return {"controllers": {"node": {"hostEndpoint": given}}}


def status(running: Running) -> dict[str, Any]:
    found: dict[str, Any] = to_dict(model.KubeControllersConfiguration(status=running.status))["status"]
    return found


def test_the_default_configuration_is_calicos_and_valid() -> None:
    made = settings.default_configuration()
    assert codec.problems(codec.with_defaults(made)) == []
    assert to_dict(made)["spec"] == {
        "logSeverityScreen": "Info",
        "healthChecks": "Enabled",
        "etcdV3CompactionPeriod": "10m0s",
        "controllers": {
            "node": {
                "reconcilerPeriod": "5m0s",
                "syncLabels": "Enabled",
                "hostEndpoint": {"autoCreate": "Disabled", "createDefaultHostEndpoint": "Enabled"},
                "leakGracePeriod": "15m0s",
            },
            "policy": {"reconcilerPeriod": "5m0s"},
            "workloadEndpoint": {"reconcilerPeriod": "5m0s"},
            "serviceAccount": {"reconcilerPeriod": "5m0s"},
            "namespace": {"reconcilerPeriod": "5m0s"},
            "loadBalancer": {"assignIPs": "AllServices"},
            "migration": {"policyNameMigrator": "Enabled"},
        },
    }


def test_the_resource_decides_where_the_environment_is_silent() -> None:
    found = in_force(
        with_host_endpoints(autoCreate="Enabled", templates=[TEMPLATE])
        | {"logSeverityScreen": "Debug", "healthChecks": "Disabled"}
    )
    assert (found.log_level, found.health_checks) == ("Debug", False)
    assert found.host_endpoints is not None
    assert found.host_endpoints.auto_create == "Enabled"
    assert [one.generate_name for one in found.host_endpoints.templates] == ["lan"]
    assert status(found) == {
        "runningConfig": {
            "logSeverityScreen": "Debug",
            "healthChecks": "Disabled",
            "etcdV3CompactionPeriod": "10m0s",
            "prometheusMetricsPort": 9094,
            "controllers": {
                "node": {
                    "syncLabels": "Disabled",
                    "leakGracePeriod": "15m0s",
                    "hostEndpoint": {
                        "autoCreate": "Enabled",
                        "createDefaultHostEndpoint": "Enabled",
                        "templates": [TEMPLATE],
                    },
                }
            },
        }
    }


def test_the_environment_wins_and_is_named_in_the_status() -> None:
    spec = with_host_endpoints(autoCreate="Disabled", templates=[TEMPLATE]) | {"logSeverityScreen": "Error"}
    variables = {"AUTO_HOST_ENDPOINTS": "ENABLED", "LOG_LEVEL": "warning", "HEALTH_ENABLED": "false"}
    variables["COMPACTION_PERIOD"] = "5m"
    found = by_environment(spec, **variables, PATH="/bin", KUBE_CONTROLLERS_PROMETHEUSMETRICSPORT="0")
    assert (found.log_level, found.health_checks) == ("Warning", False)
    assert found.host_endpoints == model.AutoHostEndpointConfig(
        auto_create="Enabled", create_default_host_endpoint="Enabled"
    )
    assert found.status.environment_vars == variables
    assert (found.upkeep.compaction_s, found.upkeep.metrics_port) == (300, 0)


@pytest.mark.parametrize(
    ("spec", "enabled", "runs"),
    [
        ({}, None, False),
        ({"controllers": {"node": {}}}, None, True),
        ({"controllers": {"node": {}}}, "policy,namespace", False),
        ({}, "node,loadbalancer", True),
    ],
)
def test_enabled_controllers_replaces_the_list_of_the_resource(
    spec: dict[str, Any], enabled: str | None, runs: bool
) -> None:
    found = by_environment(spec, **({"ENABLED_CONTROLLERS": enabled} if enabled else {}))
    assert (found.host_endpoints is not None) == runs
    running = found.status.running_config
    assert running is not None
    assert (running.controllers.node is not None) == runs
    if runs:
        assert found.host_endpoints is not None
        assert found.host_endpoints.auto_create == "Disabled"


@pytest.mark.parametrize("given", [{}, {"autoCreate": ""}, {"autoCreate": "enabled"}, {"autoCreate": "Disabled"}])
def test_host_endpoints_are_made_only_when_that_is_said(given: dict[str, str]) -> None:
    found = in_force(with_host_endpoints(**given)).host_endpoints
    assert found == model.AutoHostEndpointConfig(auto_create="Disabled", create_default_host_endpoint="Enabled")


def test_what_this_version_does_not_have_is_named_and_not_said_to_run() -> None:
    spec = settings.default_configuration().spec
    assert set(settings.running(spec, Environment(kubernetes=True)).without_effect) == {"controllers.migration"}
    alone = settings.running(spec, Environment())
    assert alone.sync == {}
    assert status(alone)["runningConfig"]["controllers"].keys() == {"node"}
    assert {text for text in alone.without_effect if "no access to a Kubernetes API" in text} == {
        f"{name} (no access to a Kubernetes API)"
        for name in (
            "policy", "namespace", "serviceAccount", "workloadEndpoint", "service", "loadBalancer",
            "syncLabels and the deletion of nodes",
        )
    }  # fmt: skip


def test_k03_each_field_of_the_resource_switches_its_controllers_alone() -> None:
    everything = {"controllers": {name: {} for name in ("node", "policy", "workloadEndpoint", "serviceAccount",
                                                          "namespace")}}  # fmt: skip
    whole = in_force(everything, kubernetes=True)
    assert set(whole.sync) == set(settings.SYNCHRONIZED)
    assert set(whole.sync.values()) == {settings.Sync()}
    for name in everything["controllers"]:
        spec = {"controllers": {other: {} for other in everything["controllers"] if other != name}}
        left = in_force(spec, kubernetes=True)
        gone = {controller for controller, switch in settings.SYNCHRONIZED.items() if switch == name}
        assert set(whole.sync) - set(left.sync) == gone
        assert name not in status(left)["runningConfig"]["controllers"]
    assert set(in_force(everything, kubernetes=True, sync_services=False).sync) == {
        name for name, switch in settings.SYNCHRONIZED.items() if switch != settings.SERVICE
    }


def test_k05_periods_workers_and_labels_come_from_the_resource_and_the_environment_wins() -> None:
    spec = {
        "controllers": {
            "node": {"syncLabels": "Disabled", "reconcilerPeriod": "1m"}, "policy": {"reconcilerPeriod": "0s"},
            "namespace": {},
        }
    }  # fmt: skip
    found = in_force(spec, kubernetes=True, workers={"policy": 9})
    assert found.sync["policy"] == settings.Sync(period=settings.Duration("0s"), workers=9)
    assert found.sync["cluster-policy"] == found.sync["policy"]
    assert found.sync["node"].period_s == 60
    assert not found.sync["node"].labels
    assert status(found)["runningConfig"]["controllers"] == {
        "node": {
            "syncLabels": "Disabled", "reconcilerPeriod": "1m0s", "leakGracePeriod": "15m0s",
            "hostEndpoint": {"autoCreate": "Disabled", "createDefaultHostEndpoint": "Enabled"},
        },
        "policy": {"reconcilerPeriod": "0s"},
        "namespace": {"reconcilerPeriod": "5m0s"},
    }  # fmt: skip
    given = {
        "RECONCILER_PERIOD": "30s", "SYNC_NODE_LABELS": "true", "POLICY_WORKERS": "2", "SYNC_SERVICES": "false",
        "KUBECONFIG": "/etc/kubeconfig",
    }  # fmt: skip
    won = by_environment(spec, **given)
    assert set(won.sync) == {"policy", "cluster-policy", "namespace", "node"}
    assert won.sync["policy"] == settings.Sync(period=settings.Duration("30s"), workers=2)
    assert won.sync["node"] == settings.Sync(period=settings.Duration("30s"))
    assert won.status.environment_vars == {name: text for name, text in given.items() if name != "KUBECONFIG"}
    listed = by_environment(spec, KUBECONFIG="/etc/kubeconfig", ENABLED_CONTROLLERS="serviceaccount,service")
    assert set(listed.sync) == {"service-account", "service", "endpoint-slice"}
    assert listed.host_endpoints is None


def test_k03_each_controller_of_upkeep_is_switched_alone() -> None:
    everything = {"controllers": {"node": {"leakGracePeriod": "90s"}, "loadBalancer": {}}}
    found = in_force(everything, kubernetes=True).upkeep
    assert found == settings.Upkeep(90, "AllServices", True, True, 600, 9094)
    assert in_force({"controllers": {"loadBalancer": {}}}, kubernetes=True).upkeep.leak_grace_s is None
    assert in_force({"controllers": {"node": {}}}, kubernetes=True).upkeep.load_balancers is None
    assert in_force(everything).upkeep.load_balancers is None  # no Kubernetes, no services
    none = {
        "etcdV3CompactionPeriod": "0s",
        "prometheusMetricsPort": 0,
        "controllers": {"node": {"leakGracePeriod": "0s"}},
    }
    assert in_force(none).upkeep == settings.Upkeep(0, None, True, True, 0, 0)
    listed = by_environment(everything, KUBECONFIG="/etc/kubeconfig", ENABLED_CONTROLLERS="loadbalancer,tier")
    assert listed.upkeep == settings.Upkeep(None, "AllServices", False, True, 600, 9094)
    only = in_force({"controllers": {"loadBalancer": {"assignIPs": "RequestedServicesOnly"}}}, kubernetes=True)
    assert only.upkeep.load_balancers == "RequestedServicesOnly"
    assert status(only)["runningConfig"]["controllers"] == {"loadBalancer": {"assignIPs": "RequestedServicesOnly"}}


def test_a_pod_without_a_service_accounts_token_has_no_kubernetes() -> None:
    """automountServiceAccountToken: false; the variables are there all the same."""
    assert not ACCOUNT_TOKEN.exists()
    assert not by_environment({"controllers": {"policy": {}}}, KUBERNETES_SERVICE_HOST="10.96.0.1").sync


def test_the_port_of_gos_profiles_is_told_to_have_no_effect() -> None:
    (problem,) = in_force({"debugProfilePort": 9095}).problems
    assert "debugProfilePort 9095 has no effect" in problem
    assert "debugProfilePort" not in status(in_force({"debugProfilePort": 9095}))["runningConfig"]
    assert not in_force({"debugProfilePort": 0}).problems


def test_an_unknown_level_is_told_and_the_default_taken() -> None:
    found = in_force({"logSeverityScreen": "Loud"})
    assert found.log_level == "Info"
    assert "Loud" in found.problems[0]


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"ENABLED_CONTROLLERS": "node,flannelmigration"}, "no such controller: flannelmigration; there are: ippool"),
        ({"AUTO_HOST_ENDPOINTS": "yes please"}, "AUTO_HOST_ENDPOINTS"),
        ({"HEALTH_ENABLED": "maybe"}, "neither true nor false"),
        ({"SYNC_NODE_LABELS": "maybe"}, "expected enabled or disabled"),
        ({"RECONCILER_PERIOD": "5 apples"}, "RECONCILER_PERIOD"),
        ({"POLICY_WORKERS": "0"}, "POLICY_WORKERS"),
    ],
)
def test_a_variable_that_means_nothing_ends_the_start(variables: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load(KubeControllersConfig, [], variables, prog="test")
