/* The functions of the extension, and what several of them use. */
#ifndef CFSTOOLS_NATIVE_H
#define CFSTOOLS_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <sys/stat.h>
#include <time.h>

#include "bytes.h"
#include "sha2.h"

/* The functions of the module, each `native_` and its name: declared here, listed in module.c. */
#define NATIVE_FUNCTIONS(each)                                                                                         \
    each(hash_blocks) each(digest_files) each(digest_spans) each(digest_range) each(check_objects) each(find_objects)  \
    each(list_objects) each(merge_records) each(write_files) each(link_files) each(stat_names) each(encode_tree)       \
    each(parse_lines) each(read_tree) each(print_entries) each(needed_objects)

#define NATIVE_DECLARED(name) PyObject *native_##name(PyObject *module, PyObject *args);
NATIVE_FUNCTIONS(NATIVE_DECLARED)

/* hash_blocks.c: the algorithm and its fastest kernel (or the one called `name`); NULL where there is none. */
const struct sha2_algorithm *native_algorithm(const char *name);
const struct sha2_choice *native_kernel(const struct sha2_algorithm *algorithm, const char *name);

/* Hashes `count` blocks, also fewer than the kernel needs. Negative when memory is short. */
int native_hash(const struct sha2_algorithm *algorithm, const struct sha2_choice *kernel,
                const struct sha2_start *start, const uint8_t *data, size_t block_size, size_t count, uint8_t *out);

/* module.c: calls the function of this name in _pure.py, for what no kernel does faster. */
PyObject *native_ask_pure(const char *function, PyObject *args);

/* A list of what `make` returns for each number below `count`; NULL with an exception once it returns that. */
typedef PyObject *make_item(void *context, size_t number);
PyObject *native_list(size_t count, make_item *make, void *context);

/* Descriptors of the directories "00" to "ff" of a store; -1 for those that are not open. */
#define PREFIXES 256

/* Whether the buffer holds the prefixes of a store, or is empty without a store (-1); an exception if not. */
int native_has_prefixes(const Py_buffer *prefixes, int store_fd);

/* Times are in nanoseconds. */
struct stamp {
    uint64_t device, inode;
    int64_t size, mtime, ctime;
};

/* known_files.c: records of a digest cache for files that are not to be read, and what is noted of each that was found. */
struct recall {
    Py_buffer records;
    unsigned long long device;
    long long digest_size, inline_limit;
    unsigned seen, bare; /* seen: records that are older do not count */
    PyObject *digests, *ends, *heads; /* bytearrays, borrowed */
};

/* The record of a regular file, or NULL; no exception. And whether it says that the file has no xattrs. */
const uint8_t *native_recall(const struct recall *recall, const struct stat *status);
int native_is_bare(const struct recall *recall, const uint8_t *record);

/* Notes a record that was found. Negative with an exception. */
int native_note(const struct recall *recall, const uint8_t *record);

/* object_write.c: 1: an object of this size is there, 0: nothing is there, -1: something else or an error. */
int native_find_object(int store_fd, const int *prefixes, struct text digest, uint64_t size);

/* Writes data to this place of a new file, but leaves out long runs of zeros, which stay holes. At the end they leave
 * the file too short. Negative with errno. */
int native_write_with_holes(int fd, const uint8_t *data, size_t size, off_t offset);

/* Loops that may wait for a slow disk return to the interpreter now and then to handle signals: whether enough time has
 * passed since `*since`, which is then reset. */
struct timespec native_now(void);
int native_is_time(struct timespec *since);

#endif
