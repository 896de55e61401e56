/* A disk that fails on demand, under whatever process is started with LD_PRELOAD set to this.
 *
 * It watches the files whose path begins with DISK_FILES. DISK_CONTROL is a page of integers that the test maps
 * too, so that it steers a process that runs: which kinds of call fail, from the how-manieth to the how-manieth,
 * with which errno.
 *
 * With DISK_PLATTER, a directory, it also keeps there what a power cut at this moment would leave of the files: what
 * was written reaches the platter when the file is synced, and a part of it at once, sector by sector, by chance
 * (`early`, of a hundred). A sync that fails loses what it should have written for good, as Linux does: the pages
 * count as clean afterwards, and a later sync that succeeds does not bring them back.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { WRITE = 1, SYNC = 2, TRUNCATE = 4, OPEN = 8 };
enum { SECTOR = 512, FILES = 64 };

struct control {
    int64_t kinds, from, to, error; /* the from-th to the to-th call of these kinds fail with this errno */
    int64_t calls, failed;          /* since the test set them to 0 */
    int64_t early;                  /* of a hundred sectors written, how many are on the platter before the sync */
};

struct range { off_t at; size_t length; };

struct file {
    char name[256];
    ino_t inode;
    int fresh; /* another file of this name: its first sync replaces the platter's */
    struct range *dirty;
    size_t count, room;
};

static struct control *control;
static const char *watched, *platter;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct file files[FILES];
static __thread int half_written = -1; /* the file of which a full disk has just taken half */

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(real))dlsym(RTLD_NEXT, #name)

static ssize_t real_pwrite(int fd, const void *data, size_t length, off_t at) {
    REAL(pwrite);
    return real(fd, data, length, at);
}

static int real_open(const char *path, int flags, mode_t mode) {
    REAL(open);
    return real(path, flags, mode);
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("DISK_CONTROL");
    watched = getenv("DISK_FILES");
    platter = getenv("DISK_PLATTER");
    if (!path || !watched) return;
    int fd = real_open(path, O_RDWR, 0);
    void *page = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (page != MAP_FAILED) control = page;
    if (fd >= 0) close(fd);
}

/* Whether the file is watched; its path then. */
static int path_of(int fd, char path[4096]) {
    if (!control) return 0;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int kept = errno;
    ssize_t length = readlink(link, path, 4095);
    errno = kept;
    path[length < 0 ? 0 : length] = 0;
    return strncmp(path, watched, strlen(watched)) == 0;
}

/* Whether this call is one of those that fail. */
static int fails(int kind) {
    if (!(control->kinds & kind)) return 0;
    int64_t number = __atomic_add_fetch(&control->calls, 1, __ATOMIC_SEQ_CST);
    if (number < control->from || number > control->to) return 0;
    __atomic_add_fetch(&control->failed, 1, __ATOMIC_SEQ_CST);
    return 1;
}

static int refuse(void) {
    errno = (int)control->error;
    return -1;
}

/* ------------------------------------------------------------------ the platter */

static struct file *file_of(int fd, const char *path) {
    const char *name = strrchr(path, '/') + 1;
    struct stat now;
    if (!platter || strstr(name, "-shm") || strlen(name) >= sizeof files[0].name || fstat(fd, &now)) return NULL;
    for (int i = 0; i < FILES; i++) {
        struct file *file = &files[i];
        if (!file->name[0]) strcpy(file->name, name);
        else if (strcmp(file->name, name)) continue;
        if (file->inode != now.st_ino) {
            file->inode = now.st_ino;
            file->fresh = 1;
            file->count = 0;
        }
        return file;
    }
    return NULL;
}

static int platter_fd(const struct file *file, int flags) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", platter, file->name);
    return real_open(path, O_RDWR | O_CREAT | flags, 0600);
}

static void wrote(int fd, const char *path, const void *data, size_t length, off_t at) {
    pthread_mutex_lock(&mutex);
    struct file *file = file_of(fd, path);
    if (file) {
        if (file->count == file->room) {
            file->room = file->room ? 2 * file->room : 64;
            file->dirty = realloc(file->dirty, file->room * sizeof *file->dirty);
        }
        file->dirty[file->count++] = (struct range){at, length};
        if (control->early && !file->fresh) {
            int out = platter_fd(file, 0);
            for (size_t done = 0; done < length; done += SECTOR)
                if (random() % 100 < control->early)
                    real_pwrite(out, (const char *)data + done, length - done < SECTOR ? length - done : SECTOR,
                                at + (off_t)done);
            close(out);
        }
    }
    pthread_mutex_unlock(&mutex);
}

static void synced(int fd, const char *path, int well) {
    pthread_mutex_lock(&mutex);
    struct file *file = file_of(fd, path);
    struct stat now;
    if (file && well && !fstat(fd, &now)) {
        int out = platter_fd(file, file->fresh ? O_TRUNC : 0);
        /* The descriptor given is used: closing another one would give up SQLite's locks on the file. */
        for (size_t i = 0; i < file->count; i++) {
            char *data = malloc(file->dirty[i].length);
            ssize_t length = pread(fd, data, file->dirty[i].length, file->dirty[i].at);
            if (length > 0) real_pwrite(out, data, (size_t)length, file->dirty[i].at);
            free(data);
        }
        if (ftruncate(out, now.st_size)) abort();
        close(out);
        file->fresh = 0;
    }
    if (file) file->count = 0;
    pthread_mutex_unlock(&mutex);
}

/* The watched files' folder was synced: only now is a file that was removed gone for good. */
static void folder_synced(const char *folder) {
    size_t length = strlen(folder);
    if (!platter || strncmp(watched, folder, length) || watched[length] != '/' || strchr(watched + length + 1, '/'))
        return;
    pthread_mutex_lock(&mutex);
    DIR *list = opendir(platter);
    for (struct dirent *entry = list ? readdir(list) : NULL; entry; entry = readdir(list)) {
        char here[4096], there[4096];
        snprintf(here, sizeof here, "%s/%s", folder, entry->d_name);
        snprintf(there, sizeof there, "%s/%s", platter, entry->d_name);
        if (entry->d_name[0] != '.' && access(here, F_OK)) unlink(there);
    }
    if (list) closedir(list);
    pthread_mutex_unlock(&mutex);
}

/* ------------------------------------------------------------------ the calls */

/* Whether this is the second half of a write that a full disk took half of. */
static int other_half(int fd) {
    int same = half_written == fd;
    half_written = -1;
    return same && control->kinds & WRITE;
}

/* -2: go on; else what to return. A full disk takes half and refuses the rest; a broken one leaves half behind. */
static ssize_t faulty_write(int fd, const void *data, size_t length, off_t at, char path[4096]) {
    if (other_half(fd)) return refuse();
    if (!fails(WRITE)) return -2;
    if (length < 2) return refuse();
    ssize_t done = real_pwrite(fd, data, length / 2, at);
    if (done > 0) wrote(fd, path, data, (size_t)done, at);
    if (control->error != ENOSPC || done < 0) return refuse();
    half_written = fd;
    return done;
}

static ssize_t positioned(int fd, const void *data, size_t length, off_t at) {
    char path[4096];
    if (!path_of(fd, path)) return real_pwrite(fd, data, length, at);
    ssize_t done = faulty_write(fd, data, length, at, path);
    if (done != -2) return done;
    done = real_pwrite(fd, data, length, at);
    if (done > 0) wrote(fd, path, data, (size_t)done, at);
    return done;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t at) { return positioned(fd, data, length, at); }
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t at) { return positioned(fd, data, length, at); }

ssize_t write(int fd, const void *data, size_t length) {
    REAL(write);
    char path[4096];
    if (!path_of(fd, path)) return real(fd, data, length);
    int appends = fcntl(fd, F_GETFL) & O_APPEND;
    off_t at = lseek(fd, 0, appends ? SEEK_END : SEEK_CUR);
    if (other_half(fd)) return refuse();
    if (fails(WRITE)) {
        if (length < 2) return refuse();
        ssize_t done = real(fd, data, length / 2);
        if (done > 0) wrote(fd, path, data, (size_t)done, at);
        if (control->error != ENOSPC) return refuse();
        half_written = fd;
        return done;
    }
    ssize_t done = real(fd, data, length);
    if (done > 0) wrote(fd, path, data, (size_t)done, at);
    return done;
}

static int sync_with(int fd, int (*real)(int)) {
    char path[4096];
    if (!path_of(fd, path)) {
        int done = real(fd);
        if (control && !done) folder_synced(path);
        return done;
    }
    int failed = fails(SYNC);
    synced(fd, path, !failed);
    if (failed) return refuse();
    return platter ? 0 : real(fd); /* the platter stands for the disk, which need not be waited for */
}

int fsync(int fd) { REAL(fsync); return sync_with(fd, real); }
int fdatasync(int fd) { REAL(fdatasync); return sync_with(fd, real); }

int ftruncate(int fd, off_t length) {
    REAL(ftruncate);
    char path[4096];
    if (path_of(fd, path) && fails(TRUNCATE)) return refuse();
    return real(fd, length);
}

int ftruncate64(int fd, off64_t length) { return ftruncate(fd, length); }

static int opened(const char *path, int flags, mode_t mode) {
    int writes = flags & (O_WRONLY | O_RDWR | O_CREAT);
    if (control && writes && strncmp(path, watched, strlen(watched)) == 0 && fails(OPEN)) return refuse();
    return real_open(path, flags, mode);
}

#define MODE(flags, mode) \
    mode_t mode = 0; \
    if (flags & O_CREAT) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }

int open(const char *path, int flags, ...) { MODE(flags, mode) return opened(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags, mode) return opened(path, flags | O_LARGEFILE, mode); }
