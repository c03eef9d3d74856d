#!/usr/bin/env bash
# build.sh DIRECTORY: Docker Compose from its published Go module, into DIRECTORY. go.mod pins versions, go.sum contents.
# Cold: five minutes of processor time. Nothing is done when DIRECTORY holds what this go.mod says.
set -euo pipefail
target=$1
cd "$(dirname "$(readlink -f "$0")")"
version=$(grep -oP 'github.com/docker/compose/v2 \K\S+' go.mod)
stamp="$version $(cat go.mod go.sum | sha256sum | cut -c1-16)"
[ "$(cat "$target/.version" 2>/dev/null)" = "$stamp" ] && exit 0

export PATH="$PATH:/usr/local/go/bin" CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS="-buildvcs=false -trimpath -mod=readonly"
mkdir -p "$target"
new=$(mktemp -d "$target/.new.XXXXXX")
trap 'rm -rf "$new"' EXIT
go build -ldflags "-s -w -X github.com/docker/compose/v2/internal.Version=$version" -o "$new/docker-compose" github.com/docker/compose/v2/cmd
mv "$new/docker-compose" "$target/"
echo "$stamp" >"$target/.version"
