"""A real Kubernetes control plane for tests: kube-apiserver, kube-controller-manager and kubectl over a real etcd.

    with ControlPlane() as cp:
        cp.kubectl("get", "namespaces")
        cp.kubectl("get", "tiers", user=cp.user("alice", groups=["dev"]))

`programs` says where the programs come from and what it means when they are not there, `kubectl` runs the client,
`control_plane` starts and ends the servers, `aggregation` puts an API server of ours behind kube-apiserver.
Certificates are made by `libs.testkit.pki`.
"""
