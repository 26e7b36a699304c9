/* The smallest guest: a line, and power off. `disco check` boots it. */
#include "tiny.h"

main:
        SAY     "hello from a tiny guest\n"
        ret
