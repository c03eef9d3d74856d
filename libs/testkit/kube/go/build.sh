#!/usr/bin/env bash
# build.sh DIRECTORY: Kubernetes' own programs from their published Go modules, into DIRECTORY: the control plane's, and a node's.
# go.mod pins the versions, go.sum the contents. Cold: 18 minutes of processor time, so nine or ten of two cores, 0.7 GB of modules;
# with Go's caches warm: under a minute. Nothing is done when DIRECTORY holds what this go.mod says.
# Only Go's own caches and DIRECTORY are written.
set -euo pipefail
target=$1
cd "$(dirname "$(readlink -f "$0")")"
version=$(sed -n 's|^require k8s.io/kubernetes v||p' go.mod)
stamp="$version $(cat go.mod go.sum | sha256sum | cut -c1-16)"
[ "$(cat "$target/.version" 2>/dev/null)" = "$stamp" ] && exit 0

export PATH="$PATH:/usr/local/go/bin" CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS="-buildvcs=false -trimpath -mod=readonly"
major=${version%%.*} minor=${version#*.} minor=${minor%%.*}
flags="-s -w"
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do  # else it says v0.0.0-master, which kubectl takes for skew
    flags+=" -X $package.gitVersion=v$version -X $package.gitMajor=$major -X $package.gitMinor=$minor -X $package.gitTreeState=clean"
done

mkdir -p "$target"
new=$(mktemp -d "$target/.new.XXXXXX")  # beside its place: whoever looks meanwhile finds the old programs or none
trap 'rm -rf "$new"' EXIT
for program in kube-apiserver kube-controller-manager kubelet kube-proxy kube-scheduler; do
    go build -ldflags "$flags" -o "$new/$program" "k8s.io/kubernetes/cmd/$program"
    mv "$new/$program" "$target/$program"
done
echo "$stamp" >"$target/.version"
