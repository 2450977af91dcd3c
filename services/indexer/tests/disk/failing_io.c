/*
 * Makes writes and syncs of files below a directory fail, for a process that has this preloaded.
 *
 *   FAILING_IO_DIR     the directory, without a slash at its end
 *   FAILING_IO_CALLS   "sync" for fsync and fdatasync, "write" for everything that writes
 *   FAILING_IO_AT      which of these calls fails first, from 1
 *   FAILING_IO_TIMES   how many fail from there on; 0: all
 *   FAILING_IO_ERRNO   what they fail with
 *   FAILING_IO_DONE    if set, a call that fails has its effect all the same, like a write that cannot be synced
 *   FAILING_IO_OFF     a path: once something is there, nothing fails any more
 *   FAILING_IO_LOG     gets a line for every call that failed: which call, its number, its offset, its file
 *
 * Calls are counted for the directory and what is below it only.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long calls;

static long number(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

/* Without the functions of this file: they would count. */
static void report(const char *call, long at, long long offset, const char *path) {
    const char *log = getenv("FAILING_IO_LOG");
    if (!log) return;
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%s %ld %lld %s\n", call, at, offset, path);
    int fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0) return;
    syscall(SYS_write, fd, line, (size_t)length);
    close(fd);
}

/* 1 when this call is to fail; errno is set then. */
static int fails(const char *kind, const char *call, int fd, long long offset) {
    const char *dir = getenv("FAILING_IO_DIR"), *wanted = getenv("FAILING_IO_CALLS"), *off = getenv("FAILING_IO_OFF");
    if (!dir || !wanted || strcmp(kind, wanted) != 0) return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    size_t prefix = strlen(dir);
    if (strncmp(path, dir, prefix) != 0 || (path[prefix] != '/' && path[prefix] != 0)) return 0;
    if (off && access(off, F_OK) == 0) return 0;
    long at = atomic_fetch_add(&calls, 1) + 1, first = number("FAILING_IO_AT"), times = number("FAILING_IO_TIMES");
    if (first == 0 || at < first || (times > 0 && at >= first + times)) return 0;
    report(call, at, offset, path);
    errno = (int)number("FAILING_IO_ERRNO");
    return 1;
}

/* The answer of a call that may fail. */
#define CALL(kind, name, shown, fd, offset, ...)                        \
    do {                                                                \
        __typeof__(&name) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name); \
        if (!fails(kind, shown, fd, offset)) return next(__VA_ARGS__);  \
        int error = errno;                                              \
        if (getenv("FAILING_IO_DONE")) (void)!next(__VA_ARGS__);        \
        errno = error;                                                  \
        return -1;                                                      \
    } while (0)

ssize_t write(int fd, const void *bytes, size_t length) {
    CALL("write", write, "write", fd, -1, fd, bytes, length);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    CALL("write", writev, "writev", fd, -1, fd, parts, count);
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset) {
    CALL("write", pwrite, "pwrite", fd, offset, fd, bytes, length, offset);
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset) {
    CALL("write", pwrite64, "pwrite", fd, offset, fd, bytes, length, offset);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    CALL("write", pwritev, "pwritev", fd, offset, fd, parts, count, offset);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) {
    CALL("write", pwritev64, "pwritev", fd, offset, fd, parts, count, offset);
}

int fsync(int fd) {
    CALL("sync", fsync, "fsync", fd, -1, fd);
}

int fdatasync(int fd) {
    CALL("sync", fdatasync, "fdatasync", fd, -1, fd);
}
