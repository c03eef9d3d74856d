#!/bin/sh
# host_view.sh DIRECTORY NAME KEEP: what a machine is to a kubelet and its runtime, on a network namespace that is there already.
#
# Run as the first process of new mount, UTS, IPC and PID namespaces. The folders that the programs have compiled in are of
# this node alone, below DIRECTORY; where they do not exist an overlay makes room, so that the machine's own stay as they are.
# KEEP, which may lie below /run, stays visible. Says "ready", then reaps what others leave until it is killed.
set -e
at=$1 name=$2 keep=$3
mount --make-rprivate /
mount -t proc proc /proc
hostname "$name"

mkdir -p "$at/run" "$at/over/etc/cni" "$at/over/etc/calico" "$at/over/opt/cni/bin" "$at/over/log/pods" "$at/over/log/containers" "$at/over/log/calico" \
    "$at/over/lib/kubelet" "$at/over/lib/containerd" "$at/over/lib/cni" "$at/over/lib/calico" "$at/over/lib/calico-etcd"
mount -t tmpfs tmpfs "$at/run"
mkdir -p "$at/run/netns" "$at/run/containerd" "$at/run/lock"
case $keep in
    /run/*)
        mkdir -p "$at$keep"
        mount --bind "$keep" "$at$keep" ;;
esac
for pair in etc:/etc opt:/opt log:/var/log lib:/var/lib; do
    mount -t overlay -o "lowerdir=$at/over/${pair%%:*}:${pair#*:}" "node-${pair%%:*}" "${pair#*:}"
done
for pair in over/etc/cni:/etc/cni over/etc/calico:/etc/calico over/opt/cni/bin:/opt/cni/bin over/log/pods:/var/log/pods over/log/containers:/var/log/containers \
    over/log/calico:/var/log/calico over/lib/kubelet:/var/lib/kubelet over/lib/containerd:/var/lib/containerd over/lib/cni:/var/lib/cni \
    over/lib/calico:/var/lib/calico over/lib/calico-etcd:/var/lib/calico-etcd; do
    mount --bind "$at/${pair%%:*}" "${pair#*:}"
done
mount --rbind "$at/run" /run
mount --make-rshared /
echo ready
trap 'exit 0' TERM
while :; do
    sleep 3600 &
    wait $! || :
done
