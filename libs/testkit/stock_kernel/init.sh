#!/busybox sh
# The first program of the virtual machine: it makes the host's files its own (what it writes to them stays in its memory),
# and goes on with /share/command among them.
/busybox mkdir -p /proc /sys /dev /host /share /upper /root
/busybox mount -t devtmpfs dev /dev
exec >/dev/console 2>&1 </dev/null
trap '/busybox poweroff -f' EXIT # where something is missing
/busybox mount -t proc proc /proc
while read -r module; do /busybox insmod "/modules/$module" || exit; done </modules/order

nine() { /busybox mount -t 9p -o "trans=virtio,version=9p2000.L,msize=524288,$3" "$1" "$2"; }
nine host /host ro,cache=loose || exit
nine share /share rw || exit
/busybox mount -t tmpfs -o size=60% upper /upper
/busybox mkdir /upper/changes /upper/work
/busybox mount -t overlay -o lowerdir=/host,upperdir=/upper/changes,workdir=/upper/work overlay /root || exit

/busybox mount --move /proc /root/proc
/busybox mount --move /dev /root/dev
/busybox mount -t sysfs sys /root/sys
for place in run tmp; do /busybox mount -t tmpfs "$place" "/root/$place"; done
/busybox mkdir -p /root/run/share
/busybox mount --move /share /root/run/share
exec /busybox switch_root /root /bin/sh /run/share/command
