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
SERVICE = "service"
CONTROLLERS = {
    "workloadendpoint": "workloadEndpoint",
    "profile": "namespace",
    "namespace": "namespace",
    "policy": "policy",
    "node": "node",
    "serviceaccount": "serviceAccount",
    "loadbalancer": "loadBalancer",
    "service": SERVICE,
    **EXTRA_CONTROLLERS,
}
"""Name in ENABLED_CONTROLLERS -> field of `spec.controllers`; services have none, since Calico does not store them."""
SYNCHRONIZED = {
    "policy": "policy",
    "cluster-policy": "policy",
    "namespace": "namespace",
    "service-account": "serviceAccount",
    "workload-endpoint": "workloadEndpoint",
    "node": "node",
    "service": SERVICE,
    "endpoint-slice": SERVICE,
}
"""Controllers that bring Kubernetes' objects -> what switches them."""
WORKERS_VARIABLES = {
    "policy": "POLICY_WORKERS",
    "namespace": "PROFILE_WORKERS",
    "serviceAccount": "PROFILE_WORKERS",
    "workloadEndpoint": "WORKLOAD_ENDPOINT_WORKERS",
    "node": "NODE_WORKERS",
    SERVICE: "SERVICE_WORKERS",
}
USED_VARIABLES = (
    "ENABLED_CONTROLLERS", "LOG_LEVEL", "HEALTH_ENABLED", "AUTO_HOST_ENDPOINTS", "RECONCILER_PERIOD",
    "SYNC_NODE_LABELS", "SYNC_SERVICES", "COMPACTION_PERIOD", *dict.fromkeys(WORKERS_VARIABLES.values()),
)  # fmt: skip
_DEFAULT_LEVEL = "Info"
_DEFAULT_PERIOD = Duration("5m")
_DEFAULT_WORKERS = 4


@dataclass(frozen=True, slots=True)
class Environment:
    """What was given to the process and so wins over the resource; None: not given. variables: the whole environment.

    enabled: names as in `CONTROLLERS`. workers: by what switches the controller. kubernetes: there is a Kubernetes API
    to read; without one only what lives in etcd is looked after.
    """

    enabled: tuple[str, ...] | None = None
    auto_host_endpoints: bool | None = None
    health_checks: bool | None = None
    log_level: str | None = None
    compaction_s: float | None = None
    metrics_port: int | None = None
    reconciler_period: Duration | None = None
    sync_labels: bool | None = None
    sync_services: bool = True
    workers: Mapping[str, int] = field(default_factory=dict)
    kubernetes: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sync:
    """How a controller that brings Kubernetes' objects runs. period: between two looks at everything; 0 for the first
    one only. workers: objects at a time. labels: of the node controller, whether it brings them.
    """

    period: Duration = _DEFAULT_PERIOD
    workers: int = _DEFAULT_WORKERS
    labels: bool = True

    @property
    def period_s(self) -> float:
        return self.period.seconds


@dataclass(frozen=True, slots=True)
class Running:
    """sync: of the controllers in `SYNCHRONIZED`, those that run. host_endpoints: None when the node controller does
    not run, which is not the same as switched off: then nothing is removed either. problems: what was ignored, and why.
    """

    log_level: str
    health_checks: bool
    host_endpoints: model.AutoHostEndpointConfig | None
    status: model.KubeControllersConfigurationStatus
    sync: Mapping[str, Sync] = field(default_factory=dict)
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
    if spec.debug_profile_port:
        problems.append(
            f"debugProfilePort {spec.debug_profile_port} has no effect: it is for Go's profiles, and nobody listens"
            " there (py-spy looks into a running Python process)"
        )
    switched_on = _switched_on(spec.controllers, environment)
    host_endpoints = _in_force(spec.controllers.node, environment) if "node" in switched_on else None
    sync = {
        name: _sync(switch, spec.controllers, environment)
        for name, switch in SYNCHRONIZED.items()
        if switch in switched_on and environment.kubernetes
    }
    kept = upkeep(
        spec,
        enabled=environment.enabled,
        compaction_s=environment.compaction_s,
        metrics_port=environment.metrics_port,
        kubernetes=environment.kubernetes,
        problems=problems,
    )
    config = model.KubeControllersConfigurationSpec(
        log_severity_screen=level, health_checks=_word(health), controllers=_told(sync, host_endpoints)
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
        sync=sync,
        without_effect=tuple(_without_effect(spec, environment)),
        problems=tuple(problems),
    )


def _switched_on(controllers: model.ControllersConfig, environment: Environment) -> frozenset[str]:
    """Fields of `spec.controllers`, and SERVICE. The environment's list is the whole list."""
    if environment.enabled is not None:
        return frozenset(CONTROLLERS[name] for name in environment.enabled)
    on = {name for name in CONTROLLERS.values() if getattr(controllers, _snake(name), None) is not None}
    return frozenset(on | ({SERVICE} if environment.sync_services else set()))


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def _sync(switch: str, controllers: model.ControllersConfig, environment: Environment) -> Sync:
    given = getattr(controllers, _snake(switch), None)
    period = environment.reconciler_period or getattr(given, "reconciler_period", None) or _DEFAULT_PERIOD
    labels = True
    if switch == "node":
        of_node = controllers.node
        labels = of_node is None or of_node.sync_labels != "Disabled"
        labels = environment.sync_labels if environment.sync_labels is not None else labels
    return Sync(period, environment.workers.get(switch, _DEFAULT_WORKERS), labels)


def _told(sync: Mapping[str, Sync], host_endpoints: model.AutoHostEndpointConfig | None) -> model.ControllersConfig:
    """For `status.runningConfig`: what runs, and nothing else."""
    periods = {name: one.period for name, one in sync.items()}
    node = sync.get("node")
    told = model.ControllersConfig()
    if host_endpoints is not None:
        labels = _word(node is not None and node.labels)
        told.node = model.NodeControllerConfig(
            sync_labels=labels, reconciler_period=periods.get("node"), host_endpoint=host_endpoints
        )
    if "policy" in periods:
        told.policy = model.PolicyControllerConfig(reconciler_period=periods["policy"])
    if "workload-endpoint" in periods:
        told.workload_endpoint = model.WorkloadEndpointControllerConfig(reconciler_period=periods["workload-endpoint"])
    if "service-account" in periods:
        told.service_account = model.ServiceAccountControllerConfig(reconciler_period=periods["service-account"])
    if "namespace" in periods:
        told.namespace = model.NamespaceControllerConfig(reconciler_period=periods["namespace"])
    return told


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
    controllers = spec.controllers
    if controllers.migration is not None:
        yield "controllers.migration"
    on = _switched_on(controllers, environment)
    if not environment.kubernetes:
        names = dict.fromkeys(switch for switch in SYNCHRONIZED.values() if switch in on and switch != "node")
        yield from (f"{name} (no access to a Kubernetes API)" for name in names)
        if "loadBalancer" in on:
            yield "loadBalancer (no access to a Kubernetes API)"
        if "node" in on:
            yield "syncLabels and the deletion of nodes (no access to a Kubernetes API)"
