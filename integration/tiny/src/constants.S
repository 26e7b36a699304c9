/*
 * Says the sum of the first words of two pages of its constants, which lie in a
 * segment of their own that is marked as only read; with store=N stores N to the
 * second one and says the sum again; and stays, halted.
 */
#include "tiny.h"

main:
        ARG     store, 0
        mov     %rax, %rbx
        SAY     "constants: "
        call    sum
        test    %rbx, %rbx
        jz      stop
        mov     %rbx, constants + 4096
        SAY     "constants: stored "
        call    sum
        jmp     stop

sum:
        mov     constants, %rdi
        add     constants + 4096, %rdi
        call    puthex
        jmp     newline

        .section .rodata.pages, "a"
        .balign 4096
constants:
        .quad   0x1000
        .skip   4088
        .quad   0x0234
        .skip   4088
