/* CNI plugin: hands the request of the container runtime to the Felix of this node and prints its answer.
 *
 * In:  CNI_* in the environment, the network configuration on stdin.
 * Out: POST /cni (/ipam when called as calico-ipam) on Felix's unix socket, HTTP/1.0, with the body
 *      {"env":{"CNI_COMMAND":"ADD",…},"config":"<stdin as a JSON string>"}; bytes above 0x7f pass as they are, so that a
 *      configuration that is not UTF-8 is refused by Felix, not here.
 * Answer 200: body to stdout, exit 0. Other status with a JSON object (a CNI error): the object to stdout, exit 1. Anything
 * else (no socket, refused, too slow, cut short, not HTTP) is CNI error 11, "try again later", for STATUS 50, "not
 * available", and exit 1. Nothing is printed before the answer is complete. VERSION needs no Felix. In C because hosts
 * often have no Python. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef CALICO_CNI_SOCKET
#define CALICO_CNI_SOCKET "/var/run/calico/felix-cni.sock"
#endif
#define NEWEST "1.1.0"
enum { BAD_ENVIRONMENT = 4, TRY_AGAIN = 11, NOT_AVAILABLE = 50 };

struct buf { char *p; size_t n, cap; }; /* p[n] is always 0, so that the str* functions may search it */
extern char **environ;
static struct buf config;
static double deadline_s;

static void put(struct buf *b, const void *data, size_t n) {
    if (b->cap - b->n < n + 1 && !(b->p = realloc(b->p, b->cap = (b->n + n + 1) * 2))) _exit(1);
    memcpy(b->p + b->n, data, n);
    b->p[b->n += n] = 0;
}

static void putf(struct buf *b, const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    put(b, text, n < (int)sizeof text ? (size_t)n : sizeof text - 1);
}

static void put_json(struct buf *b, const char *s, size_t n) {
    put(b, "\"", 1);
    for (size_t i = 0; i < n; i++) {
        if (s[i] == '"' || s[i] == '\\') putf(b, "\\%c", s[i]);
        else if ((unsigned char)s[i] < 0x20) putf(b, "\\u%04x", s[i]);
        else put(b, s + i, 1);
    }
    put(b, "\"", 1);
}

/* The first "cniVersion" of the configuration when it looks like one: enough for an error; Felix parses for real. */
static const char *version_or(const char *otherwise) {
    static char v[16];
    char *at = config.n ? memmem(config.p, config.n, "\"cniVersion\"", 12) : NULL;
    if (!at) return otherwise;
    at += 12 + strspn(at + 12, " \t\r\n:");
    size_t n = *at == '"' ? strspn(at + 1, "0123456789.") : 0;
    return n > 0 && n < sizeof v && at[n + 1] == '"' ? memcpy(v, at + 1, n) : otherwise;
}

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/* 0 when fd can be read or written, else -1: ETIMEDOUT once the deadline of the whole call has passed. */
static int wait_for(int fd, short events) {
    struct pollfd p = {.fd = fd, .events = events};
    for (double left; (left = deadline_s - now_s()) > 0;) {
        int n = poll(&p, 1, left < 1e6 ? (int)(left * 1000) + 1 : 1000000000);
        if (n > 0) return 0;
        if (n < 0 && errno != EINTR) return -1;
    }
    return errno = ETIMEDOUT, -1;
}

static int read_all(int fd, struct buf *b) {
    char chunk[65536];
    for (ssize_t n; !wait_for(fd, POLLIN);) {
        if ((n = read(fd, chunk, sizeof chunk)) == 0) return 0;
        if (n > 0) put(b, chunk, n);
        else if (errno != EINTR && errno != EAGAIN) return -1;
    }
    return -1;
}

/* A closed pipe is no failure: an early answer ("too large") may come while we still write, and reading will tell. */
static int write_all(int fd, const struct buf *b) {
    for (size_t done = 0; done < b->n;) {
        if (wait_for(fd, POLLOUT)) return -1;
        ssize_t n = write(fd, b->p + done, b->n - done);
        if (n > 0) done += n;
        else if (errno == EPIPE || errno == ECONNRESET) return 0;
        else if (errno != EINTR && errno != EAGAIN) return -1;
    }
    return 0;
}

static int fail(int code, const char *what, const char *detail) {
    struct buf out = {0}, text = {0};
    putf(&text, "%s: %s", what, detail);
    putf(&out, "{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":", version_or("1.0.0"), code);
    put_json(&out, text.p, text.n);
    putf(&out, "}\n");
    deadline_s = now_s() + 5; /* the one of the call may be over */
    write_all(1, &out);
    return 1;
}

static int open_socket(const char *path) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof to.sun_path) return errno = ENAMETOOLONG, -1;
    strcpy(to.sun_path, path);
    for (;; poll(NULL, 0, 20)) {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), why;
        if (fd < 0 || !connect(fd, (struct sockaddr *)&to, sizeof to)) return fd;
        why = errno;
        close(fd);
        /* EAGAIN: Felix's queue of connections is full, as when many pods start at once. */
        if (why != EAGAIN || now_s() > deadline_s) return errno = why, -1;
    }
}

int main(int argc, char **argv) {
    const char *command = getenv("CNI_COMMAND"), *path = getenv("CALICO_CNI_SOCKET");
    const char *limit = getenv("CALICO_CNI_TIMEOUT_S"), *self = argc ? strrchr(argv[0], '/') : NULL;
    const int no_felix = command && !strcmp(command, "STATUS") ? NOT_AVAILABLE : TRY_AGAIN;
    const char *no_answer = "the Calico agent of this node gave no proper answer";
    struct buf body = {0}, out = {0}, in = {0};
    signal(SIGPIPE, SIG_IGN);
    double limit_s = limit ? atof(limit) : 0;
    deadline_s = now_s() + (limit_s > 0 ? limit_s : 90);
    self = self ? self + 1 : argc ? argv[0] : "";
    path = path && *path ? path : CALICO_CNI_SOCKET;

    if (!command || !*command) return fail(BAD_ENVIRONMENT, "CNI_COMMAND is not set", "this is run by container runtimes");
    if (read_all(0, &config)) return fail(no_felix, "reading the network configuration", strerror(errno));
    if (!strcmp(command, "VERSION")) {
        putf(&out, "{\"cniVersion\":\"%s\",\"supportedVersions\":", version_or(NEWEST));
        putf(&out, "[\"0.1.0\",\"0.2.0\",\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"%s\"]}\n", NEWEST);
        return write_all(1, &out) ? 1 : 0;
    }

    putf(&body, "{\"env\":{");
    for (char **e = environ, *comma = "", *equals; *e; e++) {
        if (strncmp(*e, "CNI_", 4) || !(equals = strchr(*e, '='))) continue;
        putf(&body, "%s", comma);
        put_json(&body, *e, equals - *e);
        putf(&body, ":");
        put_json(&body, equals + 1, strlen(equals + 1));
        comma = ",";
    }
    putf(&body, "},\"config\":");
    put_json(&body, config.p, config.n);
    putf(&body, "}");
    putf(&out, "POST %s HTTP/1.0\r\nHost: felix\r\n", strcmp(self, "calico-ipam") ? "/cni" : "/ipam");
    putf(&out, "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n", body.n);
    put(&out, body.p, body.n);

    int status = 0, fd = open_socket(path);
    if (fd < 0) {
        body.n = 0;
        putf(&body, "%s: %s", path, strerror(errno));
        return fail(no_felix, "the Calico agent of this node is not there", body.p);
    }
    if (write_all(fd, &out) || read_all(fd, &in))
        return fail(no_felix, "waiting for the Calico agent of this node", strerror(errno));

    char *head_end = in.n ? memmem(in.p, in.n, "\r\n\r\n", 4) : NULL, *length, *end;
    if (!head_end || sscanf(in.p, "HTTP/1.%*1[01] %3d", &status) != 1 || status < 100)
        return fail(no_felix, no_answer, in.n ? "not HTTP, or cut short" : "it closed the connection");
    struct buf answer = {head_end + 4, in.n - (head_end + 4 - in.p), 0};
    head_end[2] = 0;
    /* The length is demanded: without it an answer that was cut short would look complete. */
    length = strcasestr(in.p, "\r\nContent-Length:");
    if (!length || strtoull(length + 17, &end, 10) != answer.n || end == length + 17)
        return fail(no_felix, no_answer, length ? "cut short" : "it has no length");
    /* Only DEL and its like may succeed without a word; everything else is a JSON object. */
    int object = answer.n && answer.p[strspn(answer.p, " \t\r\n")] == '{';
    if (!object && (answer.n || status != 200 || !strcmp(command, "ADD"))) {
        body.n = 0;
        putf(&body, "status %d without a JSON object", status);
        return fail(no_felix, no_answer, body.p);
    }
    return write_all(1, &answer) || status != 200;
}
