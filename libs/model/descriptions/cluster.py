"""The cluster's own facts, settings of kube-controllers, and what Kubernetes puts into every object."""

from __future__ import annotations

from libs.model import base as m_base
from libs.model import cluster as m
from libs.model.descriptions.notes import About, Abouts, Note
from libs.model.validation import checks
from libs.model.validation import cluster as rules

_ON_OFF = ("Enabled", "Disabled")
_PERIOD = Note("How often everything is compared; 5m when absent.")


def _periodic(text: str) -> About:
    return About(text, {"reconciler_period": _PERIOD})


CLUSTER: Abouts = {
    m.ClusterInformation: About("What the cluster is; there is one, named default. Written by Calico itself.", {}),
    m.ClusterInformationSpec: About(
        "Facts about the cluster.",
        {
            "cluster_guid": Note("Identity of the cluster: 32 hexadecimal digits."),
            "cluster_type": Note("What the cluster is made of, with commas between, such as k8s,bgp."),
            "calico_version": Note("Version that the cluster runs."),
            "datastore_ready": Note("False while data is migrated: components wait, and the data must not change."),
            "variant": Note("Which product this is."),
        },
    ),
    m.KubeControllersConfiguration: About("Settings of kube-controllers; there is one, named default.", {}),
    m.KubeControllersConfigurationSpec: About(
        "What kube-controllers do.",
        {
            "log_severity_screen": Note(
                "Least severity of what is logged; Info when absent.", choices=rules.LOG_LEVELS
            ),
            "health_checks": Note("Whether health reports are served.", choices=_ON_OFF, default="Enabled"),
            "etcdv3_compaction_period": Note("How often etcd's history is compacted; 0 never, 10m when absent."),
            "prometheus_metrics_port": Note("Port of metrics; 0 for none, 9094 when absent.", low=0, high=65535),
            "controllers": Note("The controllers, each with its settings; one that is absent does not run."),
            "debug_profile_port": Note("Port of profiling data; none when absent.", low=0, high=65535),
        },
    ),
    m.KubeControllersConfigurationStatus: About(
        "What kube-controllers make of their settings.",
        {
            "running_config": Note("Settings in use, those of the environment included."),
            "environment_vars": Note("Settings that came from the environment."),
        },
    ),
    m.ControllersConfig: About(
        "The controllers; one that is absent does not run.",
        {
            "node": Note("Removes what deleted nodes leave behind, and makes host endpoints."),
            "policy": Note("Brings Kubernetes network policies in."),
            "workload_endpoint": Note("Keeps endpoints in line with their pods."),
            "service_account": Note("Brings Kubernetes service accounts in, as profiles."),
            "namespace": Note("Brings Kubernetes namespaces in, as profiles."),
            "load_balancer": Note("Assigns addresses to services of type LoadBalancer."),
            "migration": Note("Moves data of older versions to today's form."),
        },
    ),
    m.NodeControllerConfig: About(
        "Settings of the node controller.",
        {
            "reconciler_period": _PERIOD,
            "sync_labels": Note("Whether labels of Kubernetes nodes are copied.", choices=_ON_OFF),
            "host_endpoint": Note("Host endpoints that are made for every node."),
            "leak_grace_period": Note(
                "How long an address without an owner is left before it is released; 0 never, 15m when absent."
            ),
        },
    ),
    m.AutoHostEndpointConfig: About(
        "Host endpoints that are made for every node.",
        {
            "auto_create": Note("Whether they are made; Disabled when absent.", choices=_ON_OFF),
            "create_default_host_endpoint": Note(
                "Whether the endpoint for all interfaces of a node is made; Enabled when absent.", choices=_ON_OFF
            ),
            "templates": Note("Further host endpoints, by interface."),
        },
    ),
    m.HostEndpointTemplate: About(
        "Makes a host endpoint on each node that is selected, for interfaces that match.",
        {
            "generate_name": Note(
                "Part of the endpoints' names; different in every template.", longest=checks.MAX_NAME_CHARS
            ),
            "interface_cidrs": Note("Networks: an interface with an address in one of them matches."),
            "interface_pattern": Note("Regular expression: an interface whose name it fits matches."),
            "labels": Note("Labels of the endpoints."),
            "annotations": Note("Annotations of the endpoints."),
            "node_selector": Note("Nodes, by their labels; all when absent.", longest=checks.MAX_SELECTOR_CHARS),
        },
    ),
    m.PolicyControllerConfig: _periodic("Settings of the policy controller."),
    m.WorkloadEndpointControllerConfig: _periodic("Settings of the workload endpoint controller."),
    m.ServiceAccountControllerConfig: _periodic("Settings of the service account controller."),
    m.NamespaceControllerConfig: _periodic("Settings of the namespace controller."),
    m.LoadBalancerControllerConfig: About(
        "Settings of the load balancer controller.",
        {
            "assign_ips": Note(
                "Which services get addresses: all, or only those that ask.",
                choices=("AllServices", "RequestedServicesOnly"), default="AllServices",
            )
        },
    ),
    m.MigrationControllerConfig: About(
        "Settings of the migration controller.",
        {
            "policy_name_migrator": Note(
                "Whether policies with names of older versions are renamed.", choices=_ON_OFF, default="Enabled"
            )
        },
    ),
    m_base.ObjectMeta: About(
        "What every object has.",
        {
            "name": Note("Name, unique among the objects of its kind (and namespace). It cannot be changed."),
            "generate_name": Note("Beginning of a name that the server completes when name is absent."),
            "namespace": Note("Namespace, for kinds that have one. It cannot be changed."),
            "self_link": Note("Not used any more."),
            "uid": Note("Identity of the object, set by the server."),
            "resource_version": Note(
                "Version of the object's content, set by the server. A write that carries an old one is refused."
            ),
            "generation": Note("Counts changes of the wanted state."),
            "creation_timestamp": Note("When the object was created, set by the server."),
            "deletion_timestamp": Note("When deletion was asked for, set by the server."),
            "deletion_grace_period_seconds": Note("How long the object may take to end, set by the server."),
            "labels": Note("Keys and values that selectors look at."),
            "annotations": Note("Keys and values for tools and people."),
            "owner_references": Note("Objects whose deletion deletes this one."),
            "finalizers": Note("What must be done before the object goes; deletion waits until the list is empty."),
            "managed_fields": Note("Who set which fields, kept by the server for server-side apply."),
        },
    ),
    m_base.OwnerReference: About(
        "An object that owns this one.",
        {
            "api_version": Note("API version of the owner.", required=True),
            "kind": Note("Kind of the owner.", required=True),
            "name": Note("Name of the owner.", required=True),
            "uid": Note("Identity of the owner.", required=True),
            "controller": Note("Whether the owner is the controller of this object."),
            "block_owner_deletion": Note("Whether the owner waits for this object to go, when deleted in foreground."),
        },
    ),
    m_base.Condition: About(
        "One observation about an object.",
        {
            "type": Note("What was observed.", required=True),
            "status": Note("True, False or Unknown.", required=True),
            "observed_generation": Note("The generation that the observation is about."),
            "last_transition_time": Note("When the status last changed, RFC 3339.", required=True),
            "reason": Note("Why, in one word for programs.", required=True),
            "message": Note("Why, for people.", required=True),
        },
    ),
}  # fmt: skip
