"""What is in force: the resource KubeControllersConfiguration `default` under the environment, which wins.

    spec, Environment ──► running() ──► which controllers run and how, and the status that says so

Pure. Rules: facts/kubernetes-conversion.md section 9.1. The status tells what is really in force: a controller or field
that this version does not have is not in `runningConfig`, and is named in `without_effect` instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from libs import model
from libs.model.scalars import Duration
from libs.model.validation.cluster import LOG_LEVELS
from services.kube_controllers.core.upkeep import EXTRA_CONTROLLERS, Upkeep, upkeep

NAME = "default"
CONTROLLERS = {
    "workloadendpoint": "workloadEndpoint",
    "profile": "namespace",
    "namespace": "namespace",
    "policy": "policy",
    "node": "node",
    "serviceaccount": "serviceAccount",
    "loadbalancer": "loadBalancer",
    **EXTRA_CONTROLLERS,
}
"""Name in ENABLED_CONTROLLERS -> field of `spec.controllers`."""
USED_VARIABLES = ("ENABLED_CONTROLLERS", "LOG_LEVEL", "HEALTH_ENABLED", "AUTO_HOST_ENDPOINTS", "COMPACTION_PERIOD")
UNUSED_VARIABLES = ("RECONCILER_PERIOD", "SYNC_NODE_LABELS")
_DEFAULT_LEVEL = "Info"


@dataclass(frozen=True, slots=True)
class Environment:
    """What was given to the process and so wins over the resource; None: not given. variables: the whole environment.

    enabled: names as in `CONTROLLERS`.
    """

    enabled: tuple[str, ...] | None = None
    auto_host_endpoints: bool | None = None
    health_checks: bool | None = None
    log_level: str | None = None
    compaction_s: float | None = None
    metrics_port: int | None = None
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Running:
    """host_endpoints: None when the node controller does not run, which is not the same as switched off: then nothing
    is removed either. problems: what was ignored, and why.
    """

    log_level: str
    health_checks: bool
    host_endpoints: model.AutoHostEndpointConfig | None
    status: model.KubeControllersConfigurationStatus
    without_effect: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    upkeep: Upkeep = field(default_factory=Upkeep)


def default_configuration() -> model.KubeControllersConfiguration:
    """What is created when there is none."""
    minutes_5 = Duration("5m")
    return model.KubeControllersConfiguration(
        metadata=model.ObjectMeta(name=NAME),
        spec=model.KubeControllersConfigurationSpec(
            log_severity_screen=_DEFAULT_LEVEL,
            health_checks="Enabled",
            etcdv3_compaction_period=Duration("10m"),
            controllers=model.ControllersConfig(
                node=model.NodeControllerConfig(
                    reconciler_period=minutes_5,
                    sync_labels="Enabled",
                    host_endpoint=_host_endpoints(False),
                    leak_grace_period=Duration("15m"),
                ),
                policy=model.PolicyControllerConfig(reconciler_period=minutes_5),
                workload_endpoint=model.WorkloadEndpointControllerConfig(reconciler_period=minutes_5),
                service_account=model.ServiceAccountControllerConfig(reconciler_period=minutes_5),
                namespace=model.NamespaceControllerConfig(reconciler_period=minutes_5),
                load_balancer=model.LoadBalancerControllerConfig(assign_ips="AllServices"),
                migration=model.MigrationControllerConfig(policy_name_migrator="Enabled"),
            ),
        ),
    )


def running(spec: model.KubeControllersConfigurationSpec, environment: Environment) -> Running:
    problems: list[str] = []
    level = _level(spec, environment, problems)
    health = spec.health_checks != "Disabled" if environment.health_checks is None else environment.health_checks
    runs_node = spec.controllers.node is not None if environment.enabled is None else "node" in environment.enabled
    host_endpoints = _in_force(spec.controllers.node, environment) if runs_node else None
    node = model.NodeControllerConfig(sync_labels="Disabled", host_endpoint=host_endpoints) if runs_node else None
    kept = upkeep(
        spec,
        enabled=environment.enabled,
        compaction_s=environment.compaction_s,
        metrics_port=environment.metrics_port,
        problems=problems,
    )
    config = model.KubeControllersConfigurationSpec(
        log_severity_screen=level, health_checks=_word(health), controllers=model.ControllersConfig(node=node)
    )
    kept.report(config)
    return Running(
        log_level=level,
        health_checks=health,
        host_endpoints=host_endpoints,
        upkeep=kept,
        status=model.KubeControllersConfigurationStatus(
            running_config=config,
            environment_vars={name: text for name in USED_VARIABLES if (text := environment.variables.get(name))},
        ),
        without_effect=tuple(_without_effect(spec, environment)),
        problems=tuple(problems),
    )


def _word(on: bool) -> str:
    return "Enabled" if on else "Disabled"


def _level(spec: model.KubeControllersConfigurationSpec, environment: Environment, problems: list[str]) -> str:
    if environment.log_level is not None:
        return environment.log_level.title()
    if spec.log_severity_screen in LOG_LEVELS:
        return spec.log_severity_screen
    if spec.log_severity_screen:
        problems.append(f"logSeverityScreen {spec.log_severity_screen!r} is not a level: {_DEFAULT_LEVEL} is taken")
    return _DEFAULT_LEVEL


def _host_endpoints(on: bool) -> model.AutoHostEndpointConfig:
    return model.AutoHostEndpointConfig(auto_create=_word(on), create_default_host_endpoint="Enabled")


def _in_force(node: model.NodeControllerConfig | None, environment: Environment) -> model.AutoHostEndpointConfig:
    """The environment knows only on and off; with it, templates are out of force too, as in Calico."""
    if environment.auto_host_endpoints is not None:
        return _host_endpoints(environment.auto_host_endpoints)
    if node is None or node.host_endpoint is None:
        return _host_endpoints(False)
    given = node.host_endpoint
    return msgspec.structs.replace(
        given,
        auto_create=_word(given.auto_create == "Enabled"),
        create_default_host_endpoint=_word(given.create_default_host_endpoint != "Disabled"),
    )


def _without_effect(spec: model.KubeControllersConfigurationSpec, environment: Environment) -> Iterator[str]:
    """Names of what is set and not part of this version."""
    controllers, node = spec.controllers, spec.controllers.node
    for name, value in (
        ("debugProfilePort", spec.debug_profile_port),
        ("controllers.migration", controllers.migration),
    ):
        if value is not None:
            yield name
    if node is not None and node.sync_labels != "Disabled":
        yield "controllers.node.syncLabels"
    fields = {
        "policy": controllers.policy,
        "workloadEndpoint": controllers.workload_endpoint,
        "serviceAccount": controllers.service_account,
        "namespace": controllers.namespace,
    }
    if environment.enabled is None:
        yield from (f"controllers.{name}" for name, value in fields.items() if value is not None)
    else:
        wanted = dict.fromkeys(CONTROLLERS[name] for name in environment.enabled)
        yield from (f"ENABLED_CONTROLLERS {name}" for name in wanted if name in fields)
    yield from (name for name in UNUSED_VARIABLES if environment.variables.get(name))
