/* nsrun PARENT-PID COMMAND…: run a service of a pretend node, started in the node's network namespace.
 *
 * It dies with the thread that started it, sees the /sys of its own network namespace, and has a bpffs of its own, so that two
 * nodes' pinned maps never meet. Mounts come from the host (slave), so pods' namespaces that are made later are seen. */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc < 3) return fprintf(stderr, "usage: nsrun PARENT-PID COMMAND...\n"), 2;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != atoi(argv[1])) return 1; /* it died before we asked to be told */
    if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_SLAVE, NULL)) return perror("nsrun: mounts"), 1;
    /* Where these are not allowed the service says what it misses. */
    if (!mount("sysfs", "/sys", "sysfs", 0, NULL)) {
        mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, NULL);
        mount("bpf", "/sys/fs/bpf", "bpf", 0, NULL);
    }
    execvp(argv[2], argv + 2);
    return perror(argv[2]), 127;
}
