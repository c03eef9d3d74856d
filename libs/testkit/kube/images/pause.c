/* pause: what holds a pod's namespaces. Ends when asked to, and reaps what the pod's processes leave. */
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static void down(int signal) { _exit(signal == 0); }
static void reap(int signal) {
    (void)signal;
    while (waitpid(-1, 0, WNOHANG) > 0) {}
}

int main(void) {
    struct sigaction end = {.sa_handler = down}, child = {.sa_handler = reap, .sa_flags = SA_NOCLDSTOP};
    sigaction(SIGINT, &end, 0);
    sigaction(SIGTERM, &end, 0);
    sigaction(SIGCHLD, &child, 0);
    for (;;) pause();
}
