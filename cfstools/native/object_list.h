/* A list of objects, each once. */
#ifndef CFSTOOLS_OBJECT_LIST_H
#define CFSTOOLS_OBJECT_LIST_H

#include "bytes.h"
#include "memory.h"
#include "outcome.h"

struct needs {
    struct index index;
    size_t digest_size;
    LIST(uint8_t) digests; /* back to back */
    LIST(uint64_t) ends;   /* total size of the objects up to and including each */
};

/* Adds an object unless it is there; declines one that is there with another size, or has another path than its digest
 * gives. */
enum outcome needs_add(struct needs *needs, struct text digest, struct text path, uint64_t size);

/* The digests and the ends, as bytes. */
PyObject *needs_packed(const struct needs *needs);
void needs_close(struct needs *needs);

#endif
