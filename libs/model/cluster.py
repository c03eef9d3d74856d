"""Cluster-wide facts and the settings of kube-controllers."""

from __future__ import annotations

from typing import ClassVar

from msgspec import field

from libs.model.base import Resource, V3Struct
from libs.model.scalars import Duration


class ClusterInformationSpec(V3Struct):
    """cluster_type: comma list. datastore_ready False stops every Felix from starting."""

    cluster_guid: str = ""
    cluster_type: str = ""
    calico_version: str = ""
    datastore_ready: bool | None = None
    variant: str = ""


class ClusterInformation(Resource):
    kind: ClassVar[str] = "ClusterInformation"
    spec: ClusterInformationSpec = field(default_factory=ClusterInformationSpec)


class HostEndpointTemplate(V3Struct):
    """Makes a host endpoint per node that node_selector takes and interface that matches."""

    generate_name: str = ""
    interface_cidrs: list[str] = field(default_factory=list)
    interface_pattern: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    node_selector: str = ""


class AutoHostEndpointConfig(V3Struct):
    auto_create: str = ""
    create_default_host_endpoint: str = ""
    templates: list[HostEndpointTemplate] = field(default_factory=list)


class NodeControllerConfig(V3Struct):
    reconciler_period: Duration | None = None
    sync_labels: str = ""
    host_endpoint: AutoHostEndpointConfig | None = None
    leak_grace_period: Duration | None = None


class PolicyControllerConfig(V3Struct):
    reconciler_period: Duration | None = None


class WorkloadEndpointControllerConfig(V3Struct):
    reconciler_period: Duration | None = None


class ServiceAccountControllerConfig(V3Struct):
    reconciler_period: Duration | None = None


class NamespaceControllerConfig(V3Struct):
    reconciler_period: Duration | None = None


class LoadBalancerControllerConfig(V3Struct):
    """assign_ips: AllServices or RequestedServicesOnly."""

    assign_ips: str = ""


class MigrationControllerConfig(V3Struct):
    policy_name_migrator: str = ""


class ControllersConfig(V3Struct):
    """A controller that is None does not run."""

    node: NodeControllerConfig | None = None
    policy: PolicyControllerConfig | None = None
    workload_endpoint: WorkloadEndpointControllerConfig | None = None
    service_account: ServiceAccountControllerConfig | None = None
    namespace: NamespaceControllerConfig | None = None
    load_balancer: LoadBalancerControllerConfig | None = None
    migration: MigrationControllerConfig | None = None


class KubeControllersConfigurationSpec(V3Struct):
    """etcdv3_compaction_period: 0 stops compaction."""

    log_severity_screen: str = ""
    health_checks: str = ""
    etcdv3_compaction_period: Duration | None = field(default=None, name="etcdV3CompactionPeriod")
    prometheus_metrics_port: int | None = None
    controllers: ControllersConfig = field(default_factory=ControllersConfig)
    debug_profile_port: int | None = None


class KubeControllersConfigurationStatus(V3Struct):
    """running_config: what the process uses, datastore and environment_vars taken together."""

    running_config: KubeControllersConfigurationSpec | None = None
    environment_vars: dict[str, str] = field(default_factory=dict)


class KubeControllersConfiguration(Resource):
    kind: ClassVar[str] = "KubeControllersConfiguration"
    spec: KubeControllersConfigurationSpec = field(default_factory=KubeControllersConfigurationSpec)
    status: KubeControllersConfigurationStatus = field(default_factory=KubeControllersConfigurationStatus)


__all__ = [
    "AutoHostEndpointConfig",
    "ClusterInformation",
    "ClusterInformationSpec",
    "ControllersConfig",
    "HostEndpointTemplate",
    "KubeControllersConfiguration",
    "KubeControllersConfigurationSpec",
    "KubeControllersConfigurationStatus",
    "LoadBalancerControllerConfig",
    "MigrationControllerConfig",
    "NamespaceControllerConfig",
    "NodeControllerConfig",
    "PolicyControllerConfig",
    "ServiceAccountControllerConfig",
    "WorkloadEndpointControllerConfig",
]
