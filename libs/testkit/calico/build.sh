#!/usr/bin/env bash
# build.sh DIRECTORY: a real Calico's calicoctl, calico, calico-ipam and calico-felix (3.28.5; felix without eBPF, which
# takes C) from its published Go module, into DIRECTORY. Its go.sum and the checksum database hold what is fetched. Cold:
# seven minutes of processor time. Nothing is done when DIRECTORY holds what is named here.
set -euo pipefail
target=$1 release=v3.28.5
calico=github.com/projectcalico/calico@v1.11.0-cni-plugin.0.20250813170300-a0db560f0520
api=github.com/projectcalico/api@v0.0.0-20240708202104-e3f70b269c2c # in the source a directory, which modules leave out
stamp="$calico $api calicoctl calico calico-felix"
[ "$(cat "$target/.version" 2>/dev/null)" = "$stamp" ] && exit 0

export PATH="$PATH:/usr/local/go/bin" CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS="-buildvcs=false -trimpath -mod=mod"
mkdir -p "$target"
new=$(mktemp -d "$target/.new.XXXXXX")
trap 'rm -rf "$new"' EXIT
cd "$new"
source=$(cd / && go mod download -json "$calico" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
cp -r --no-preserve=mode "$source" source
cd source
go mod edit -replace "${api%@*}=$api"
command=github.com/projectcalico/calico/calicoctl/calicoctl/commands
go build -ldflags "-s -w -X $command.VERSION=$release -X $command/common.VERSION=$release" -o "$new/calicoctl" ./calicoctl/calicoctl
go build -ldflags "-s -w -X main.VERSION=$release" -o "$new/calico" ./cni-plugin/cmd/calico
ln -f "$new/calico" "$new/calico-ipam"
go build -ldflags "-s -w -X github.com/projectcalico/calico/felix/buildinfo.GitVersion=$release" -o "$new/calico-felix" ./felix/cmd/calico-felix
mv "$new/calicoctl" "$new/calico" "$new/calico-ipam" "$new/calico-felix" "$target/"
echo "$stamp" >"$target/.version"
