# The first program of the virtual machine, among the host's files: what a started system has, then the command.
trap '"$PACKAGES/bin/busybox" poweroff -f' EXIT
mkdir -p /dev/pts /dev/shm /lib/modules
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
mount --bind "$PACKAGES/lib/modules" /lib/modules
ln -sf "$PACKAGES/bin/kmod" /sbin/modprobe
echo /sbin/modprobe >/proc/sys/kernel/modprobe
hostname "$NAME"
ip link set lo up
modprobe tun # /dev/net/tun, which a started system makes when it is first opened
