/*
 * Preloaded into a Python process: fails or kills at the Nth call that concerns the directory under test.
 *
 * Every interposed function is declared with six words and returns one, which the calling conventions of the
 * 64-bit machines allow for all functions that take and return integers and pointers; that is why no header that
 * declares them is included here.
 */
#define RTLD_NEXT ((void *)-1L)
#define EVERYTHING_SHARED 0x21 /* MAP_SHARED | MAP_ANONYMOUS */
#define CURRENT_DIRECTORY (-100)
#define ROOM 4096

typedef long word;

extern void *dlsym(void *, const char *);
extern int *__errno_location(void);
extern int getpid(void);
extern int kill(int, int);
extern int strncmp(const char *, const char *, unsigned long);
extern unsigned long strlen(const char *);
extern char *strncpy(char *, const char *, unsigned long);
extern int snprintf(char *, unsigned long, const char *, ...);
extern int atoi(const char *);
extern int dirfd(void *);

typedef word (*function)(word, word, word, word, word, word);

static function real(function *known, const char *name)
{
    if (!*known)
        *known = (function)dlsym(RTLD_NEXT, name);
    return *known;
}

/* Shared with the process that forked this one: how many calls there were, and whether one was failed, and its name. */
static word *shared;
static int armed;
static word target;
static int failure;
static char place[ROOM];
static unsigned long place_length;

word *fault_state(void)
{
    static function map;
    if (!shared)
        shared = (word *)real(&map, "mmap")(0, ROOM, 3, EVERYTHING_SHARED, -1, 0);
    return shared;
}

/* From now on the call number *nth* below *directory* fails with *number*; 0 kills the process instead. */
void fault_arm(const char *directory, word nth, int number)
{
    strncpy(place, directory, ROOM - 1);
    place_length = strlen(place);
    target = nth;
    failure = number;
    fault_state()[0] = 0;
    fault_state()[1] = fault_state()[2] = 0;
    armed = 1;
}

static int inside(const char *path)
{
    return !strncmp(path, place, place_length);
}

static int file_inside(int fd)
{
    static function readlink_;
    char link[64], path[ROOM];
    if (fd == CURRENT_DIRECTORY)
        return 1; /* the process stands in the directory under test */
    if (fd <= 2)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    word length = real(&readlink_, "readlink")((word)link, (word)path, ROOM - 1, 0, 0, 0);
    if (length < 0)
        return 0;
    path[length] = 0;
    return inside(path);
}

static int path_inside(int directory, const char *path)
{
    if (!path)
        return 0;
    if (!strncmp(path, "/proc/self/fd/", 14))
        return file_inside(atoi(path + 14));
    return path[0] == '/' ? inside(path) : file_inside(directory);
}

/* Counts a call; whether it is the one that must fail. */
static int fails(const char *name)
{
    word number = __atomic_add_fetch(&shared[0], 1, __ATOMIC_SEQ_CST);
    if (number != target)
        return 0;
    shared[1] = 1;
    strncpy((char *)(shared + 2), name, 64);
    if (!failure)
        kill(getpid(), 9);
    *__errno_location() = failure;
    return 1;
}

#define INTERPOSE(name, concerns, failed)                                                                              \
    word name(word a, word b, word c, word d, word e, word f)                                                          \
    {                                                                                                                  \
        static function known;                                                                                         \
        int before = *__errno_location();                                                                              \
        if (armed && (concerns) && fails(#name))                                                                       \
            return failed;                                                                                             \
        *__errno_location() = before;                                                                                  \
        return real(&known, #name)(a, b, c, d, e, f);                                                                  \
    }

/* What is closed is closed, whatever is said about it. */
#define CLOSES(name, concerns)                                                                                         \
    word name(word a)                                                                                                  \
    {                                                                                                                  \
        static function known;                                                                                         \
        int before = *__errno_location();                                                                              \
        int failed = armed && (concerns) && fails(#name);                                                              \
        int wanted = *__errno_location();                                                                              \
        *__errno_location() = before;                                                                                  \
        word result = real(&known, #name)(a, 0, 0, 0, 0, 0);                                                           \
        if (!failed)                                                                                                   \
            return result;                                                                                             \
        *__errno_location() = wanted;                                                                                  \
        return -1;                                                                                                     \
    }

#define BY_PATH(name) INTERPOSE(name, path_inside(CURRENT_DIRECTORY, (const char *)a), -1)
#define BY_DIRECTORY(name) INTERPOSE(name, path_inside((int)a, (const char *)b), -1)
#define BY_FILE(name) INTERPOSE(name, file_inside((int)a), -1)
#define BY_TWO(name)                                                                                                   \
    INTERPOSE(name, path_inside((int)a, (const char *)b) || path_inside((int)c, (const char *)d), -1)

BY_PATH(open) BY_PATH(open64) BY_PATH(stat) BY_PATH(stat64) BY_PATH(lstat) BY_PATH(lstat64) BY_PATH(mkdir)
BY_PATH(rmdir) BY_PATH(unlink) BY_PATH(rename) BY_PATH(link) BY_PATH(chmod) BY_PATH(truncate64) BY_PATH(readlink)
BY_PATH(listxattr) BY_PATH(llistxattr) BY_PATH(getxattr) BY_PATH(lgetxattr)
BY_DIRECTORY(openat) BY_DIRECTORY(openat64) BY_DIRECTORY(fstatat) BY_DIRECTORY(fstatat64) BY_DIRECTORY(statx)
BY_DIRECTORY(mkdirat) BY_DIRECTORY(unlinkat) BY_DIRECTORY(readlinkat) BY_DIRECTORY(fchmodat) BY_DIRECTORY(utimensat)
BY_DIRECTORY(mknodat) BY_DIRECTORY(fchownat)
BY_PATH(setxattr) BY_PATH(lsetxattr)
BY_TWO(linkat) BY_TWO(renameat) BY_TWO(renameat2)
BY_FILE(read) BY_FILE(pread) BY_FILE(pread64) BY_FILE(readv) BY_FILE(preadv) BY_FILE(preadv64) BY_FILE(write)
BY_FILE(pwrite) BY_FILE(pwrite64) BY_FILE(writev) BY_FILE(pwritev) BY_FILE(pwritev64) BY_FILE(fsync) BY_FILE(fdatasync)
BY_FILE(syncfs) BY_FILE(ftruncate) BY_FILE(ftruncate64) BY_FILE(fallocate) BY_FILE(fallocate64) BY_FILE(fchmod)
BY_FILE(fchown) BY_FILE(fstat) BY_FILE(fstat64) BY_FILE(fstatfs) BY_FILE(ioctl) BY_FILE(fcntl) BY_FILE(fcntl64)
BY_FILE(flock) BY_FILE(lseek64) BY_FILE(copy_file_range) BY_FILE(flistxattr) BY_FILE(fgetxattr) BY_FILE(fsetxattr)
BY_FILE(fremovexattr) BY_FILE(futimens)
INTERPOSE(symlinkat, path_inside((int)b, (const char *)c), -1)
CLOSES(close, file_inside((int)a))
CLOSES(closedir, file_inside(dirfd((void *)a)))
INTERPOSE(readdir, file_inside(dirfd((void *)a)), 0)
INTERPOSE(readdir64, file_inside(dirfd((void *)a)), 0)
INTERPOSE(opendir, path_inside(CURRENT_DIRECTORY, (const char *)a), 0)
INTERPOSE(fdopendir, file_inside((int)a), 0)
INTERPOSE(mmap, file_inside((int)e), -1)
INTERPOSE(mmap64, file_inside((int)e), -1)

/* The calls that go without a function of the C library; those that take a directory and a path first. */
#define GETXATTRAT 464
#define LISTXATTRAT 465
#define OPENAT2 437

typedef word (*numbered)(word, word, word, word, word, word, word);

static int numbered_fails(word number, word a, word b)
{
    if (number == OPENAT2)
        return path_inside((int)a, (const char *)b) && fails("openat2");
    if (number == LISTXATTRAT)
        return path_inside((int)a, (const char *)b) && fails("listxattrat");
    if (number == GETXATTRAT)
        return path_inside((int)a, (const char *)b) && fails("getxattrat");
    return 0;
}

word syscall(word number, word a, word b, word c, word d, word e, word f)
{
    static function known;
    int before = *__errno_location();
    if (armed && numbered_fails(number, a, b))
        return -1;
    *__errno_location() = before;
    return ((numbered)real(&known, "syscall"))(number, a, b, c, d, e, f);
}
