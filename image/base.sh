#!/usr/bin/env bash
# base.sh DIRECTORY PYTHON: two bases for the Dockerfile, made of the distribution's packages without any image registry:
#   base.tar        what runs: libc, Python, nft, ip, iptables, etcd, busybox for everything else; no package manager
#   build-base.tar  the same, a C compiler, and in /wheels what uv.lock names, so that building needs no network
# PYTHON has pip and stands beside uv. Both are file systems for `docker import` or `podman import`. Packages are unpacked, not installed, so no script of theirs runs
# and root is needed for nothing but the owner's name in the tar. Nothing is done when DIRECTORY holds what this script says.
set -euo pipefail
target=$1 python=$2
script=$(readlink -f "$0")
mkdir -p "$target"
target=$(readlink -f "$target")
cd "$(dirname "$script")/.."

runs=(dash libstdc++6 python3 python3-minimal iproute2 nftables iptables etcd-server busybox ca-certificates)
builds=(gcc musl-tools libc6-dev)
# Dependencies that only maintainer scripts, package management and translations have.
left_out='^(perl.*|libperl.*|perl-base|adduser|passwd|debconf|dpkg|tar|usrmerge|init-system-helpers|libpam.*|libsemanage.*|libsepol.*|libaudit.*'
left_out+='|libfile-find.*|libnumber-compare.*|libtext-glob.*|debianutils|readline-common|libreadline.*|openssl|libcap2-bin|libgdbm.*|gcc-.*-base'
left_out+='|libnsl2|libcap-ng.*|libncursesw.*|media-types|lsb-base|sysvinit-utils|libcc1-0|libgomp1|libitm1|libasan.*|liblsan.*|libtsan.*|libubsan.*'
left_out+='|libquadmath.*|libatomic.*|libcrypt-dev|libnsl-dev|libtirpc-dev|rpcsvc-proto|manpages.*)$'

stamp=$(cat "$script" uv.lock | sha256sum | cut -c1-32)
[ "$(cat "$target/.version" 2>/dev/null)" = "$stamp" ] && exit 0
command -v apt-get >/dev/null || { echo "base.sh: apt-get is not here; give --build-arg BASE=… an image of Debian's or Python's" >&2; exit 1; }

scratch=$(mktemp -d "$target/.new.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

# fetch NAMES…: with all they depend on, as on a machine that has nothing.
fetch() {
    mkdir -p "$target/archives/partial"
    apt-get install -y -qq --no-install-recommends --download-only -o Dir::State::status=/dev/null -o Dir::Cache::archives="$target/archives" \
        -o APT::Sandbox::User=root -o Debug::NoLocking=1 "$@" >/dev/null 2>"$scratch/said"
}
# unpack DIRECTORY NAMES…: those that apt would have installed for them, without the ones that are left out.
unpack() {
    local root=$1 name version file
    shift
    for name in bin sbin lib lib64; do  # one /usr, as on today's systems
        mkdir -p "$root/usr/$name"
        [ -e "$root/$name" ] || ln -s "usr/$name" "$root/$name"
    done
    apt-get install -s --no-install-recommends -o Dir::State::status=/dev/null "$@" 2>/dev/null | sed -n 's/^Inst \([^ ]*\) (\([^ ]*\) .*/\1 \2/p' |
        sort -u | while read -r name version; do
            ! grep -Eqx "$left_out" <<<"$name" || continue
            for file in "$target/archives/${name}_${version//:/%3a}"_*.deb; do  # older versions may lie beside it
                dpkg-deb --fsys-tarfile "$file" | tar -x -C "$root" --keep-directory-symlink \
                    --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' --exclude='./usr/share/info/*' \
                    --exclude='./usr/share/lintian' --exclude='*/gconv/*' --exclude='*/__pycache__' --exclude='./usr/share/bash-completion'
                # For scanners of vulnerabilities: what is in here, in the form of images without a package manager.
                mkdir -p "$root/var/lib/dpkg/status.d"
                dpkg-deb -f "$file" >"$root/var/lib/dpkg/status.d/$name"
            done
        done
}
# pack ROOT TAR: the same content gives the same bytes.
pack() { tar -c -C "$1" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -f "$2" .; }

fetch "${runs[@]}" "${builds[@]}" || { apt-get update -qq >&2; fetch "${runs[@]}" "${builds[@]}" || { cat "$scratch/said" >&2; exit 1; }; }

# wheels DIRECTORY VERSION: the locked dependencies for that Python, checked against the lock's hashes; uv and the build backend.
wheels() {
    local uv
    uv=$(dirname "$python")/uv
    "$uv" export -q --frozen --no-dev --no-emit-project -o "$scratch/requirements.txt" >/dev/null
    set -- "$1" "$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: --python-version "$2" -d "$1"
    "${@:2}" --require-hashes -r "$scratch/requirements.txt" >&2
    "${@:2}" "uv==$("$uv" --version | cut -d' ' -f2)" "setuptools>=77" >&2
}

root=$scratch/root
mkdir -p "$root"
unpack "$root" "${runs[@]}"
mkdir -p "$root"/{usr/local/bin,dev,proc,sys,tmp,run,root,var/tmp,etc/ssl/certs}
chmod 1777 "$root/tmp" "$root/var/tmp"
[ -e "$root/var/run" ] || ln -s /run "$root/var/run"
ln -sf dash "$root/usr/bin/sh"  # busybox as a shell prefers its own ip, ls, … to those of packages
chroot "$root" busybox --list | while read -r applet; do
    [ -e "$root/usr/bin/$applet" ] || [ -e "$root/usr/sbin/$applet" ] || ln -s busybox "$root/usr/bin/$applet"
done
cat "$root"/usr/share/ca-certificates/*/*.crt >"$root/etc/ssl/certs/ca-certificates.crt"
rm -rf "$root/usr/share/ca-certificates" "$root"/usr/lib/python3.*/{lib2to3,idlelib,tkinter,turtledemo,pydoc_data,test,ensurepip}
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$root/etc/passwd"
printf 'root:x:0:\nnobody:x:65534:\n' >"$root/etc/group"
printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
pack "$root" "$scratch/base.tar"
unpack "$root" "${builds[@]}"
version=$(basename "$root"/usr/lib/python3.[0-9]* | tr -d a-z)
wheels "$root/wheels" "$version"
pack "$root" "$scratch/build-base.tar"

mv "$scratch/base.tar" "$scratch/build-base.tar" "$target/"
echo "$stamp" >"$target/.version"
