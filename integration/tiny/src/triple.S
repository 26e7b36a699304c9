/* A fault with no IDT to take it: the CPU shuts down. */
#include "tiny.h"

main:
        SAY     "triple: faulting\n"
        lidt    nothing
        ud2

        .section .data
        .balign 8
nothing:
        .word   0
        .quad   0
