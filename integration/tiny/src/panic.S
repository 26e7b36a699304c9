/* Reports a panic as a guest kernel does through pvpanic: panicked=1, bit 0. */
#include "tiny.h"

main:
        SAY     "panic: all is lost\n"
        ARG     value, 1
        mov     $PVPANIC, %edx
        out     %al, %dx
        jmp     stop
