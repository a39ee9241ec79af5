/* Bytes: stretches of them, the fields of records, hexadecimal digits. */
#ifndef CFSTOOLS_BYTES_H
#define CFSTOOLS_BYTES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "layout.h"

struct text {
    const uint8_t *data;
    size_t size;
};

#define LITERAL(literal) {(const uint8_t *)(literal), sizeof(literal) - 1}
#define TEXT(literal) ((struct text)LITERAL(literal))

static inline int text_equal(struct text a, struct text b) {
    return a.size == b.size && memcmp(a.data, b.data, a.size) == 0;
}

static inline int text_compare(struct text a, struct text b) {
    const int order = memcmp(a.data, b.data, a.size < b.size ? a.size : b.size);
    return order ? order : a.size < b.size ? -1 : a.size > b.size;
}

static inline int text_has(struct text text, int byte) { return memchr(text.data, byte, text.size) != NULL; }

static inline int text_starts(struct text text, struct text prefix) {
    return prefix.size <= text.size && memcmp(text.data, prefix.data, prefix.size) == 0;
}

/* Whether a directory may have an entry of this name, other than "." and "..". */
static inline int is_name(struct text text) {
    return text.size > 0 && text.size <= FMT_NAME_MAX && !text_has(text, '/') && !text_has(text, 0) &&
           !text_equal(text, TEXT(".")) && !text_equal(text, TEXT(".."));
}

/* Fields are little-endian. layout.h defines each as its offset and width: load(record, FMT_DIRENT_NID) reads one. */
static inline uint64_t load(const uint8_t *record, int at, int width) {
    uint64_t value = 0;
#pragma GCC unroll 8
    for (int i = 0; i < width; i++)
        value |= (uint64_t)record[at + i] << 8 * i;
    return value;
}

static inline void store(uint8_t *record, int at, int width, uint64_t value) {
#pragma GCC unroll 8
    for (int i = 0; i < width; i++)
        record[at + i] = (uint8_t)(value >> 8 * i);
}

static inline uint8_t *field(uint8_t *record, int at, int width) {
    (void)width;
    return record + at;
}

static inline uint64_t round_up(uint64_t value, uint64_t unit) { return (value + unit - 1) & ~(unit - 1); }

static const char HEX_DIGITS[] = "0123456789abcdef";

/* Appends the digits of a digest and a NUL. */
static inline void write_hex(const uint8_t *digest, size_t size, char *out) {
    for (size_t i = 0; i < size; i++) {
        *out++ = HEX_DIGITS[digest[i] >> 4];
        *out++ = HEX_DIGITS[digest[i] & 15];
    }
    *out = 0;
}

/* The path of an object in its store, "ab/cdef...", and a NUL. */
#define OBJECT_PATH_MAX (2 * VERITY_DIGEST_MAX + 2)
static inline void write_object_path(const uint8_t *digest, size_t size, char *out) {
    write_hex(digest, 1, out);
    out[2] = '/';
    write_hex(digest + 1, size - 1, out + 3);
}

/* The byte that two hexadecimal digits at `at` give; -1 for anything else. */
static inline int read_hex(const uint8_t *at) {
    int value = 0;
    for (int i = 0; i < 2; i++) {
        const int byte = at[i], digit = byte >= '0' && byte <= '9'   ? byte - '0'
                                        : byte >= 'a' && byte <= 'f' ? byte - 'a' + 10
                                        : byte >= 'A' && byte <= 'F' ? byte - 'A' + 10
                                                                     : -1;
        if (digit < 0)
            return -1;
        value = value << 4 | digit;
    }
    return value;
}

#endif
