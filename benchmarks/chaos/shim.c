/* Fails, tears or kills at the k-th call that changes a file below a directory. Loaded by LD_PRELOAD; see shim.py.

   SHIM_DIR  only paths below it count
   SHIM_LOG  file that gets one line per counted call: number, name, path; the call that is struck gets a second one, number 0
   SHIM_AT   number of the call, from 1
   SHIM_NAME, SHIM_PATH  only calls of this name whose path below SHIM_DIR is like this pattern of fnmatch(3) are numbered for
             SHIM_AT; its * stands for no slash, but in a pattern that ends in a slash and a star
   SHIM_DO   KILL; TORN: half of a write is done, then KILL; EIO or ENOSPC: the call fails, once; FULL: after SHIM_AT bytes
             every write and every new file fails with ENOSPC */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long calls, chosen, bytes;

static int is_inside(int dirfd, const char *path, char *full) {
    const char *dir = getenv("SHIM_DIR");
    ssize_t size = 0;
    if (!dir) return 0;
    if (path == NULL || path[0] != '/') {
        char link[64];
        if (path != NULL && dirfd == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
        else snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
        size = readlink(link, full, PATH_MAX - 1);
        if (size < 0) return 0;
        full[size] = 0;
        if (path != NULL) snprintf(full + size, PATH_MAX - size, "/%s", path);
    } else snprintf(full, PATH_MAX, "%s", path);
    size = strlen(dir);
    return strncmp(full, dir, size) == 0 && (full[size] == 0 || full[size] == '/');
}

static void die(void) { syscall(SYS_kill, syscall(SYS_getpid), SIGKILL); for (;;) pause(); }

static int is_chosen(const char *name, const char *full) {
    const char *only = getenv("SHIM_NAME"), *pattern = getenv("SHIM_PATH");
    if (!only || !pattern) return 1;
    size_t size = strlen(pattern);
    int is_tree = size > 1 && !strcmp(pattern + size - 2, "/*");
    return !strcmp(name, only) && !fnmatch(pattern, full + strlen(getenv("SHIM_DIR")), is_tree ? 0 : FNM_PATHNAME);
}

static void note(const char *log, long number, const char *name, const char *full) {
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%ld %s %s\n", number, name, full);
    int fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    if (fd >= 0) { syscall(SYS_write, fd, line, (size_t)length); syscall(SYS_close, fd); }
}

/* What to do at this call: 0 nothing, 1 a torn write, else the errno. Does not return if the process is to die. */
static int reached(const char *name, const char *full, long size) {
    const char *at = getenv("SHIM_AT"), *what = getenv("SHIM_DO"), *log = getenv("SHIM_LOG");
    long number = atomic_fetch_add(&calls, 1) + 1;
    if (log) note(log, number, name, full);
    if (!at || !what) return 0;
    if (!strcmp(what, "FULL")) {
        if (strcmp(name, "unlink") && strcmp(name, "rmdir") && strcmp(name, "rename") && strcmp(name, "fsync"))
            if (atomic_fetch_add(&bytes, size) + size > atol(at)) return ENOSPC;
        return 0;
    }
    if (!is_chosen(name, full) || atomic_fetch_add(&chosen, 1) + 1 != atol(at)) return 0;
    if (log) note(log, 0, name, full);
    if (!strcmp(what, "KILL")) die();
    if (!strcmp(what, "TORN")) { if (size <= 0) die(); return 1; }
    return !strcmp(what, "EIO") ? EIO : ENOSPC;
}

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, name)
#define CHECK(name, dirfd, path, size) \
    char full[PATH_MAX]; int what = 0, kept = errno; \
    if (is_inside(dirfd, path, full)) what = reached(name, full, size); \
    errno = kept; \
    if (what > 1) { errno = what; return -1; }

#define OPENING(flags) (((flags) & O_ACCMODE) != O_RDONLY || ((flags) & O_CREAT))

#define OPEN(name) \
int name(const char *path, int flags, ...) { \
    va_list list; va_start(list, flags); mode_t mode = va_arg(list, int); va_end(list); \
    REAL(int, #name, const char *, int, ...); \
    if (OPENING(flags)) { CHECK("open", AT_FDCWD, path, 0); } \
    return real(path, flags, mode); }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
int name(int dirfd, const char *path, int flags, ...) { \
    va_list list; va_start(list, flags); mode_t mode = va_arg(list, int); va_end(list); \
    REAL(int, #name, int, const char *, int, ...); \
    if (OPENING(flags)) { CHECK("open", dirfd, path, 0); } \
    return real(dirfd, path, flags, mode); }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    CHECK("write", fd, NULL, (long)size);
    if (what == 1) { real(fd, data, size / 2); die(); }
    return real(fd, data, size); }

#define PWRITE(name) \
ssize_t name(int fd, const void *data, size_t size, off_t offset) { \
    REAL(ssize_t, #name, int, const void *, size_t, off_t); \
    CHECK("write", fd, NULL, (long)size); \
    if (what == 1) { real(fd, data, size / 2, offset); die(); } \
    return real(fd, data, size, offset); }
PWRITE(pwrite)
PWRITE(pwrite64)

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    long size = 0;
    for (int i = 0; i < count; i++) size += parts[i].iov_len;
    CHECK("write", fd, NULL, size);
    if (what == 1) { real(fd, parts, (count + 1) / 2); die(); }
    return real(fd, parts, count); }

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *); CHECK("rename", AT_FDCWD, to, 0); return real(from, to); }
int renameat(int a, const char *from, int b, const char *to) {
    REAL(int, "renameat", int, const char *, int, const char *); CHECK("rename", b, to, 0); return real(a, from, b, to); }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    REAL(int, "renameat2", int, const char *, int, const char *, unsigned);
    CHECK("rename", b, to, 0); return real(a, from, b, to, flags); }
int link(const char *from, const char *to) {
    REAL(int, "link", const char *, const char *); CHECK("link", AT_FDCWD, to, 0); return real(from, to); }
int fsync(int fd) { REAL(int, "fsync", int); CHECK("fsync", fd, NULL, 0); return real(fd); }
int fdatasync(int fd) { REAL(int, "fdatasync", int); CHECK("fsync", fd, NULL, 0); return real(fd); }
int ftruncate(int fd, off_t size) {
    REAL(int, "ftruncate", int, off_t); CHECK("truncate", fd, NULL, 0); return real(fd, size); }
int ftruncate64(int fd, off_t size) {
    REAL(int, "ftruncate64", int, off_t); CHECK("truncate", fd, NULL, 0); return real(fd, size); }
int truncate(const char *path, off_t size) {
    REAL(int, "truncate", const char *, off_t); CHECK("truncate", AT_FDCWD, path, 0); return real(path, size); }
int truncate64(const char *path, off_t size) {
    REAL(int, "truncate64", const char *, off_t); CHECK("truncate", AT_FDCWD, path, 0); return real(path, size); }
int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t); CHECK("mkdir", AT_FDCWD, path, 0); return real(path, mode); }
int mkdirat(int dirfd, const char *path, mode_t mode) {
    REAL(int, "mkdirat", int, const char *, mode_t); CHECK("mkdir", dirfd, path, 0); return real(dirfd, path, mode); }
int unlink(const char *path) { REAL(int, "unlink", const char *); CHECK("unlink", AT_FDCWD, path, 0); return real(path); }
int unlinkat(int dirfd, const char *path, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    CHECK(flags & AT_REMOVEDIR ? "rmdir" : "unlink", dirfd, path, 0); return real(dirfd, path, flags); }
int rmdir(const char *path) { REAL(int, "rmdir", const char *); CHECK("rmdir", AT_FDCWD, path, 0); return real(path); }
