/* What the parts of the extension share. */
#ifndef CFSTOOLS_NATIVE_H
#define CFSTOOLS_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <sys/types.h>
#include <time.h>

#include "sha2.h"

/* The algorithm and its fastest kernel (or the one called `name`); NULL where there is none. */
const struct sha2_algorithm *native_algorithm(const char *name);
const struct sha2_choice *native_kernel(const struct sha2_algorithm *algorithm, const char *name);

/* Hashes `count` blocks, also fewer than the kernel takes at least. Negative when memory is short. */
int native_hash(const struct sha2_algorithm *algorithm, const struct sha2_choice *kernel,
                const struct sha2_start *start, const uint8_t *data, size_t block_size, size_t count, uint8_t *out);

/* What no kernel here does faster is left to the function of the same name in _pure.py. */
PyObject *native_ask_pure(const char *function, PyObject *args);

/* files.c */
PyObject *native_digest_files(PyObject *module, PyObject *args);
PyObject *native_digest_spans(PyObject *module, PyObject *args);
PyObject *native_digest_range(PyObject *module, PyObject *args);

/* objects.c */
PyObject *native_write_files(PyObject *module, PyObject *args);
PyObject *native_write_sparse(PyObject *module, PyObject *args);
PyObject *native_link_files(PyObject *module, PyObject *args);
PyObject *native_rename_files(PyObject *module, PyObject *args);

/* The first two digits of a name are a directory; this many may be open already. */
#define PREFIXES 256
#define DIGEST_MAX 64

/* 1: an object of this size is there, 0: nothing is there, -1: something else or cannot tell. */
int native_find_object(int store_fd, const int *prefixes, const uint8_t *digest, size_t digest_size, uint64_t size);

/* Writes all of it to this place of a new file, but for long runs of zeros, which stay holes. Negative with errno; 1 when
 * the end was left out, so that the file may be too short yet. */
int native_write_with_holes(int fd, const uint8_t *data, size_t size, off_t offset);

/* Loops that may wait for a slow disk take the interpreter's lock now and then, so that signals are answered: whether
 * that is due, as some time has passed since `*since`, which is then set anew. */
struct timespec native_now(void);
int native_is_time(struct timespec *since);

/* known.c */
PyObject *native_give_contents(PyObject *module, PyObject *args);
PyObject *native_match_stamps(PyObject *module, PyObject *args);
PyObject *native_merge_records(PyObject *module, PyObject *args);

/* Hexadecimal digits of a digest, with a zero behind them; and the path below a store, "ab/cdef...", likewise. */
void native_hex(const uint8_t *digest, size_t size, char *out);
void native_object_path(const uint8_t *digest, size_t size, char *out);

/* check.c */
PyObject *native_check_objects(PyObject *module, PyObject *args);

/* needs.c */
PyObject *native_needed_objects(PyObject *module, PyObject *args);

/* walk.c */
PyObject *native_list_names(PyObject *module, PyObject *args);
PyObject *native_stat_names(PyObject *module, PyObject *args);
PyObject *native_take_entries(PyObject *module, PyObject *args);

/* image.c */
PyObject *native_encode_tree(PyObject *module, PyObject *args);

/* dump.c */
PyObject *native_parse_lines(PyObject *module, PyObject *args);

/* read.c */
PyObject *native_read_tree(PyObject *module, PyObject *args);

/* print.c */
PyObject *native_print_entries(PyObject *module, PyObject *args);

#endif
