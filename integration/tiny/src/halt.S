/* Halts with interrupts off: a guest that neither runs nor ends. */
#include "tiny.h"

main:
        SAY     "halt: halted\n"
        jmp     stop
