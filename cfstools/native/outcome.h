/* The outcome of a step of work that Python can do as well. */
#ifndef CFSTOOLS_OUTCOME_H
#define CFSTOOLS_OUTCOME_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

enum outcome { DONE, LEFT, FAILED }; /* LEFT: declined, the caller does it in Python; FAILED: an exception is set */

#define TRY(expression)                                                                                                \
    do {                                                                                                               \
        const enum outcome tried = (expression);                                                                       \
        if (tried != DONE)                                                                                             \
            return tried;                                                                                              \
    } while (0)

static inline enum outcome no_memory(void) {
    PyErr_NoMemory();
    return FAILED;
}

/* Declines after a call that may have failed: Python raises an ordinary exception again, and names the place. */
static inline enum outcome leave(void) {
    if (PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_Exception) || PyErr_ExceptionMatches(PyExc_MemoryError))
            return FAILED;
        PyErr_Clear();
    }
    return LEFT;
}

#endif
