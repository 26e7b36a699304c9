/* Ends by isa-debug-exit: exit code code<<1|1. */
#include "tiny.h"

main:
        ARG     port, DEBUG_EXIT
        mov     %eax, %ebx
        ARG     code, 0
        mov     %ebx, %edx
        out     %eax, %dx
        FAIL    "exitcode: still running\n"
