/* probe PARENT-PID NAME tcp:PORT… udp:PORT…: what a pretend pod serves, over IPv4 and IPv6.
 *
 * TCP: a request that begins with GET is answered with "200" and NAME, and the connection closed; any other bytes come back
 * (for connections that live long). UDP: every packet comes back, from the address that it was sent to.
 * Prints "ready" once all ports are open. 200 kB and no threads, because tests start dozens. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LISTENER = 1, DATAGRAM = 2, STREAM = 3 };
static char chunk[65536], hello[512];

static int open_port(int kind, int port) {
    struct sockaddr_in6 any6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    struct sockaddr_in any4 = {.sin_family = AF_INET, .sin_port = htons(port)};
    int on = 1, off = 0, big = 4 << 20, fd = socket(AF_INET6, kind | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), six = fd >= 0;
    if (!six) fd = socket(AF_INET, kind | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &big, sizeof big);
    if (six) {
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
        setsockopt(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof on);
    }
    if (bind(fd, six ? (void *)&any6 : (void *)&any4, six ? sizeof any6 : sizeof any4)) return -1;
    return kind == SOCK_STREAM && listen(fd, 1024) ? -1 : fd;
}

static void echo_datagrams(int fd) {
    for (;;) {
        struct sockaddr_storage from;
        char control[256];
        struct iovec part = {chunk, sizeof chunk};
        struct msghdr m = {.msg_name = &from, .msg_namelen = sizeof from, .msg_iov = &part, .msg_iovlen = 1,
                           .msg_control = control, .msg_controllen = sizeof control};
        ssize_t n = recvmsg(fd, &m, 0);
        if (n < 0) return;
        part.iov_len = n; /* the control message goes back as it came: "to this address" becomes "from this address" */
        sendmsg(fd, &m, 0);
    }
}

static void serve_stream(int fd) {
    ssize_t n = read(fd, chunk, sizeof chunk);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n >= 4 && !memcmp(chunk, "GET ", 4)) {
        n = write(fd, hello, strlen(hello)) < 0 ? -1 : 0;
    } else if (n > 0) {
        n = write(fd, chunk, n);
    }
    if (n <= 0) close(fd);
}

static void down(int signal) { _exit(signal != SIGTERM); }

int main(int argc, char **argv) {
    if (argc < 3) return fprintf(stderr, "usage: probe PARENT-PID NAME tcp:PORT... udp:PORT...\n"), 2;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != atoi(argv[1])) return 1;
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, down); /* as a container's first process it would not hear it otherwise; PARENT-PID is 0 then */
    snprintf(hello, sizeof hello, "HTTP/1.0 200 OK\r\nContent-Length: %zu\r\n\r\n%.200s\n", strlen(argv[2]) + 1, argv[2]);
    int poll_fd = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 3; i < argc; i++) {
        int tcp = !strncmp(argv[i], "tcp:", 4), fd = open_port(tcp ? SOCK_STREAM : SOCK_DGRAM, atoi(argv[i] + 4));
        if (fd < 0) return perror(argv[i]), 1;
        struct epoll_event e = {.events = EPOLLIN, .data.u64 = (unsigned long)(tcp ? LISTENER : DATAGRAM) << 32 | fd};
        epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &e);
    }
    puts("ready");
    fflush(stdout);
    for (struct epoll_event got[64];;) {
        int n = epoll_wait(poll_fd, got, 64, -1);
        for (int i = 0; i < n; i++) {
            int kind = got[i].data.u64 >> 32, fd = (int)got[i].data.u64;
            if (kind == DATAGRAM) echo_datagrams(fd);
            if (kind == STREAM) serve_stream(fd);
            for (int one; kind == LISTENER && (one = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
                struct epoll_event e = {.events = EPOLLIN, .data.u64 = (unsigned long)STREAM << 32 | one};
                epoll_ctl(poll_fd, EPOLL_CTL_ADD, one, &e);
            }
        }
    }
}
