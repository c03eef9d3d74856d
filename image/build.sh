#!/usr/bin/env bash
# build.sh CACHE PYTHON TAR: the image from this tree and from bases that base.sh makes in CACHE, into TAR (the form of `docker save`, which
# `docker load`, `podman load` and `ctr images import` read). Docker builds where a daemon answers and then has the image too; else Podman,
# from the path or from RUNTIMES (the distribution's packages, unpacked). The same tree is built once: CACHE keeps the last image.
set -euo pipefail
cache=$1 python=$2 tar=$3
mkdir -p "$cache" "$(dirname "$tar")"
cache=$(readlink -f "$cache") tar=$(readlink -f "$tar") python=$(readlink -f "$(dirname "$python")")/$(basename "$python")
cd "$(dirname "$(readlink -f "$0")")/.."

name=localhost/calico-py:$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
content=$(find Dockerfile image libs services pyproject.toml uv.lock README.md LICENSE -type f -not -name '*.pyc' -not -path 'libs/testkit/*' -print0 | sort -z |
    xargs -0 sha256sum | sha256sum | cut -c1-32)
builder=podman
! docker info >/dev/null 2>&1 || builder=docker

podman_settings() {  # its storage and settings in $scratch, for the time of a build
    local runtimes=${RUNTIMES:-/nonexistent} libraries
    export PATH="$runtimes/usr/bin:$runtimes/usr/sbin:$PATH" HOME=$scratch
    command -v podman >/dev/null || { echo "build.sh: neither Docker runs here nor is podman to be had" >&2; exit 1; }
    libraries=$(find "$runtimes/usr/lib" "$runtimes/lib" -name '*.so.*' -printf '%h\n' 2>/dev/null | sort -u | paste -sd:)
    [ -z "$libraries" ] || export LD_LIBRARY_PATH=$libraries
    mkdir -p "$scratch/.config/containers"
    echo '{"default": [{"type": "insecureAcceptAnything"}]}' >"$scratch/.config/containers/policy.json"
    printf '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "runc"\n' >"$scratch/containers.conf"
    printf '[storage]\ndriver = "overlay"\ngraphroot = "%s/root"\nrunroot = "%s/run"\n' "$scratch" "$scratch" >"$scratch/storage.conf"
    export CONTAINERS_CONF=$scratch/containers.conf CONTAINERS_STORAGE_CONF=$scratch/storage.conf
}

if [ "$(cat "$cache/image.version" 2>/dev/null)" != "$content" ]; then
    image/base.sh "$cache" "$python"
    scratch=$(mktemp -d "$cache/.build.XXXXXX")
    trap 'umount "$scratch/root/overlay" 2>/dev/null || :; rm -rf "$scratch"' EXIT
    options=(--network none)
    if [ $builder = podman ]; then
        podman_settings
        options+=(--isolation oci --runtime "$(command -v runc)" --ulimit nofile=1024:1024 --ulimit nproc=4096:4096)  # never more than we have
    fi
    $builder import "$cache/base.tar" localhost/calico-base >/dev/null
    $builder import "$cache/build-base.tar" localhost/calico-build-base >/dev/null
    $builder build "${options[@]}" --build-arg BASE=localhost/calico-base --build-arg BUILD_BASE=localhost/calico-build-base -t "$name" . >&2
    $builder save -o "$scratch/image.tar" "$name" >&2
    rm -f "$cache/image.version"
    mv "$scratch/image.tar" "$cache/image.tar"
    echo "$content" >"$cache/image.version"
elif [ $builder = docker ]; then
    docker load -q -i "$cache/image.tar" >&2
fi
ln -f "$cache/image.tar" "$tar" 2>/dev/null || cp "$cache/image.tar" "$tar"
echo "$name"
