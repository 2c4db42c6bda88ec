/*
 * The floor of the comparison: TCP and epoll, no protocol.
 *
 *     floor -listen HOST:PORT -in BYTES -out BYTES
 *
 * The first bytes of a connection are answered with the 101 of a WebSocket
 * upgrade with the key dGhlIHNhbXBsZSBub25jZQ== (RFC 6455 §1.3), whatever they
 * are. From then on, for every IN bytes received OUT bytes are sent: one text
 * frame of OUT bytes in all. One read and one write for each wake-up.
 *
 * A thread for each core, each with its own epoll and its own listening socket
 * (SO_REUSEPORT): the kernel spreads the connections and nothing is shared.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { READ_BYTES = 64 << 10, EVENTS = 256, ACCEPTS = 64 };

/*
 * A connection is only this, found by its fd and touched by one thread. What is
 * sent is OUT bytes over and over, so the bytes still owed also tell where in
 * the frame to go on after a short write.
 */
struct conn {
    uint64_t owed;
    uint32_t rest; /* received bytes that are not IN yet */
    uint8_t upgraded;
    uint8_t blocked; /* waits for EPOLLOUT */
};

static const char upgrade[] = "HTTP/1.1 101 Switching Protocols\r\n"
                              "Upgrade: websocket\r\n"
                              "Connection: Upgrade\r\n"
                              "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
                              "\r\n";

/* Fixed before the threads start. */
static struct conn *conns;
static size_t max_fds;
static size_t in_bytes, out_bytes;
static char *frames; /* frames_bytes: the frame repeated */
static size_t frames_bytes;

static _Noreturn void die(const char *what) {
    perror(what);
    exit(1);
}

static _Noreturn void usage(const char *what) {
    fprintf(stderr, "floor: %s\nusage: floor -listen HOST:PORT -in BYTES -out BYTES\n", what);
    exit(2);
}

/* fill_header writes the header of a text frame of OUT bytes in all (RFC 6455
 * §5.2) and returns its length, or 0 if no frame has that length. */
static size_t fill_header(unsigned char *frame) {
    frame[0] = 0x81;
    if (out_bytes >= 2 && out_bytes <= 2 + 125) {
        frame[1] = (unsigned char)(out_bytes - 2);
        return 2;
    }
    if (out_bytes < 4 + 126 || out_bytes > 4 + 65535)
        return 0;
    frame[1] = 126;
    frame[2] = (unsigned char)((out_bytes - 4) >> 8);
    frame[3] = (unsigned char)(out_bytes - 4);
    return 4;
}

/* fill_frame writes the frame: JSON, its message padded to the length. */
static void fill_frame(char *frame) {
    static const char head[] = "{\"message\":\"", tail[] = "\"}";
    size_t at = fill_header((unsigned char *)frame);
    if (at == 0 || out_bytes < at + strlen(head) + strlen(tail))
        usage("-out is no length of a frame with JSON: 16 to 127, 130 to 65539");
    memset(frame + at, 'x', out_bytes - at);
    memcpy(frame + at, head, strlen(head));
    memcpy(frame + out_bytes - strlen(tail), tail, strlen(tail));
}

/* fill_frames makes room for as many frames as one read can ask for, up to 1 MiB,
 * and one more, because a write may begin inside the first. */
static void fill_frames(void) {
    size_t most = READ_BYTES / in_bytes + 1;
    if (most * out_bytes > 1 << 20)
        most = (1 << 20) / out_bytes;
    frames_bytes = (most + 1) * out_bytes;
    frames = malloc(frames_bytes + 4);
    if (frames == NULL)
        die("malloc");
    fill_frame(frames);
    for (size_t at = out_bytes; at < frames_bytes; at += out_bytes)
        memcpy(frames + at, frames, out_bytes);
}

static void watch(int epoll, int op, int fd, uint32_t events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(epoll, op, fd, &event) < 0)
        die("epoll_ctl");
}

/* send_owed makes one write and asks for EPOLLOUT while it was not enough. It
 * returns -1 if the connection is to be closed. */
static int send_owed(int epoll, int fd) {
    struct conn *c = &conns[fd];
    size_t from = (out_bytes - c->owed % out_bytes) % out_bytes;
    size_t size = frames_bytes - from;
    if (size > c->owed)
        size = c->owed;
    ssize_t n = write(fd, frames + from, size);
    if (n < 0 && errno != EAGAIN && errno != EINTR)
        return -1;
    if (n > 0)
        c->owed -= (size_t)n;
    if (c->blocked != (c->owed > 0)) {
        c->blocked = c->owed > 0;
        watch(epoll, EPOLL_CTL_MOD, fd, EPOLLIN | (c->blocked ? EPOLLOUT : 0));
    }
    return 0;
}

/* receive makes one read and notes what is owed for it. It returns -1 if the
 * connection is to be closed. */
static int receive(int fd, char *buffer) {
    struct conn *c = &conns[fd];
    ssize_t n = read(fd, buffer, READ_BYTES);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -1;
    if (n == 0)
        return -1;
    if (!c->upgraded) {
        c->upgraded = 1;
        ssize_t size = sizeof upgrade - 1;
        return write(fd, upgrade, (size_t)size) == size ? 0 : -1;
    }
    size_t received = c->rest + (size_t)n;
    c->rest = (uint32_t)(received % in_bytes);
    c->owed += received / in_bytes * out_bytes;
    return 0;
}

static void on_event(int epoll, int fd, uint32_t events, char *buffer) {
    if ((events & ~(uint32_t)EPOLLOUT && receive(fd, buffer) < 0) ||
        (conns[fd].owed > 0 && send_owed(epoll, fd) < 0))
        close(fd);
}

static void accept_all(int epoll, int listener) {
    for (int i = 0; i < ACCEPTS; i++) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        if ((size_t)fd >= max_fds) {
            close(fd);
            continue;
        }
        conns[fd] = (struct conn){0};
        watch(epoll, EPOLL_CTL_ADD, fd, EPOLLIN);
    }
}

static _Noreturn void *serve(void *argument) {
    int listener = *(int *)argument;
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    char *buffer = malloc(READ_BYTES);
    struct epoll_event events[EVENTS];
    if (epoll < 0 || buffer == NULL)
        die("epoll_create1");
    watch(epoll, EPOLL_CTL_ADD, listener, EPOLLIN);
    for (;;) {
        int n = epoll_wait(epoll, events, EVENTS, -1);
        if (n < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < n; i++) {
            if (events[i].data.fd == listener)
                accept_all(epoll, listener);
            else
                on_event(epoll, events[i].data.fd, events[i].events, buffer);
        }
    }
}

/* listen_on opens one of the listening sockets. Accepted sockets inherit
 * TCP_NODELAY, which costs no call for each of them so. */
static int listen_on(const struct addrinfo *address) {
    int on = 1;
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket");
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) < 0 ||
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0)
        die("setsockopt");
    if (bind(fd, address->ai_addr, address->ai_addrlen) < 0)
        die("bind");
    if (listen(fd, 4096) < 0)
        die("listen");
    return fd;
}

/* resolve splits HOST:PORT; no host is every address. */
static struct addrinfo *resolve(char *text) {
    struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *address;
    char *colon = strrchr(text, ':');
    if (colon == NULL)
        usage("-listen is not HOST:PORT");
    *colon = '\0';
    int failed = getaddrinfo(*text ? text : NULL, colon + 1, &hints, &address);
    if (failed)
        usage(gai_strerror(failed));
    return address;
}

/* raise_limit lifts the limit of open files and makes room for their state. */
static void raise_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        die("getrlimit");
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
        die("setrlimit");
    max_fds = limit.rlim_cur < 1 << 20 ? limit.rlim_cur : 1 << 20;
    conns = calloc(max_fds, sizeof *conns);
    if (conns == NULL)
        die("calloc");
}

static struct addrinfo *parse(int argc, char **argv) {
    static const struct option options[] = {
        {"listen", required_argument, NULL, 'l'},
        {"in", required_argument, NULL, 'i'},
        {"out", required_argument, NULL, 'o'},
        {0},
    };
    char *listen = NULL;
    int option;
    while ((option = getopt_long_only(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'l':
            listen = optarg;
            break;
        case 'i':
            in_bytes = strtoul(optarg, NULL, 10);
            break;
        case 'o':
            out_bytes = strtoul(optarg, NULL, 10);
            break;
        default:
            usage("unknown argument");
        }
    }
    if (listen == NULL || in_bytes == 0 || in_bytes > 1 << 20 || out_bytes == 0)
        usage("-listen, -in (1 to 1048576) and -out are needed");
    return resolve(listen);
}

int main(int argc, char **argv) {
    struct addrinfo *address = parse(argc, argv);
    fill_frames();
    raise_limit();
    signal(SIGPIPE, SIG_IGN);

    /* All of them listen before any of them accepts: a connection that came in
     * between would find fewer sockets to be spread over. */
    long threads = sysconf(_SC_NPROCESSORS_ONLN);
    int *listeners = calloc((size_t)threads, sizeof *listeners);
    if (listeners == NULL)
        die("calloc");
    for (long i = 0; i < threads; i++)
        listeners[i] = listen_on(address);
    for (long i = 1; i < threads; i++) {
        pthread_t thread;
        errno = pthread_create(&thread, NULL, serve, &listeners[i]);
        if (errno != 0)
            die("pthread_create");
    }
    serve(&listeners[0]);
}
