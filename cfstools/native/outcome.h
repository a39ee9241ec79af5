/* What a step of work that Python can do as well comes to. */
#ifndef CFSTOOLS_OUTCOME_H
#define CFSTOOLS_OUTCOME_H

enum outcome { DONE, LEFT, FAILED }; /* LEFT: the caller does it in Python; FAILED: an exception is set */

#define TRY(expression)                                                                                                \
    do {                                                                                                               \
        const enum outcome tried = (expression);                                                                       \
        if (tried != DONE)                                                                                             \
            return tried;                                                                                              \
    } while (0)

#endif
