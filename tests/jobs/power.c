/* Writes down what a process does to the files below $POWER_ROOT, in the order in which it does it, into $POWER_LOG.
   Loaded with LD_PRELOAD. A record: kind, lengths of two paths, place, length of the data; then paths and data. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

struct head { int32_t kind, first, second; int64_t at, size; } __attribute__((packed));

static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;

static void put(int log, const void *data, size_t size) {
    if (syscall(SYS_write, log, data, size) != (long)size) abort();
}

static void note(int kind, const char *first, const char *second, int64_t at, const void *data, size_t size) {
    static int log = -1;
    const char *root = getenv("POWER_ROOT"), *file = getenv("POWER_LOG");
    if (!root || !file || strncmp(first, root, strlen(root))) return;
    pthread_mutex_lock(&one);
    if (log < 0) log = syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    struct head head = {kind, strlen(first), strlen(second), at, size};
    put(log, &head, sizeof head);
    put(log, first, head.first);
    put(log, second, head.second);
    if (size) put(log, data, size);
    pthread_mutex_unlock(&one);
}

static const char *path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    path[size < 0 ? 0 : size] = 0;
    return path;
}

#define NEXT(name) static __typeof__(name) *next; if (!next) next = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        NEXT(name); \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        int is_new = (flags & O_CREAT) && access(path, F_OK); \
        int fd = next(path, flags, mode); \
        char full[PATH_MAX]; \
        if (fd >= 0 && is_new) note('c', path_of(fd, full), "", 0, "", 0); \
        if (fd >= 0 && !is_new && (flags & O_TRUNC)) note('t', path_of(fd, full), "", 0, "", 0); \
        return fd; \
    }
OPEN(open)
OPEN(open64)

#define WRITE_AT(name, offset) \
    ssize_t name(int fd, const void *data, size_t size, offset at) { \
        NEXT(name); \
        ssize_t done = next(fd, data, size, at); \
        char full[PATH_MAX]; \
        if (done > 0) note('w', path_of(fd, full), "", at, data, done); \
        return done; \
    }
WRITE_AT(pwrite, off_t)
WRITE_AT(pwrite64, off64_t)

ssize_t write(int fd, const void *data, size_t size) {
    NEXT(write);
    ssize_t done = next(fd, data, size);
    char full[PATH_MAX];
    if (done > 0) note('w', path_of(fd, full), "", lseek(fd, 0, SEEK_CUR) - done, data, done);
    return done;
}

#define CUT(name, offset) \
    int name(int fd, offset size) { \
        NEXT(name); \
        int failed = next(fd, size); \
        char full[PATH_MAX]; \
        if (!failed) note('t', path_of(fd, full), "", size, "", 0); \
        return failed; \
    }
CUT(ftruncate, off_t)
CUT(ftruncate64, off64_t)

#define SYNC(name) \
    int name(int fd) { \
        NEXT(name); \
        int failed = next(fd); \
        char full[PATH_MAX]; \
        if (!failed) note('s', path_of(fd, full), "", 0, "", 0); \
        return failed; \
    }
SYNC(fsync)
SYNC(fdatasync)

int unlink(const char *path) {
    NEXT(unlink);
    int failed = next(path);
    if (!failed) note('u', path, "", 0, "", 0);
    return failed;
}

int mkdir(const char *path, mode_t mode) {
    NEXT(mkdir);
    int failed = next(path, mode);
    if (!failed) note('d', path, "", 0, "", 0);
    return failed;
}

int rename(const char *from, const char *to) {
    NEXT(rename);
    int failed = next(from, to);
    if (!failed) note('r', from, to, 0, "", 0);
    return failed;
}
