/*
 * Sends itself count= interrupts, by the SELF IPI register and by the ICR in
 * turn, and counts what arrives.
 */
#include "tiny.h"

#define VECTOR 0x40

main:
        ARG     count, 10
        mov     %eax, %ebx
        GATE    VECTOR, got
        call    interrupts
        sti
1:      cmp     %ebx, sent
        jae     4f
        mov     $X2_SELF, %ecx
        mov     $VECTOR, %eax
        xor     %edx, %edx
        testl   $1, sent
        jz      2f
        mov     $X2_ICR, %ecx
        mov     $0x40000 | VECTOR, %eax /* shorthand: self */
2:      incl    sent
        wrmsr
3:      pause
        mov     got_count, %eax
        cmp     sent, %eax
        jne     3b
        jmp     1b
4:      SAY     "ipi: "
        mov     got_count, %edi
        call    putdec
        SAY     " received\n"
        ret

got:
        SAVE
        incl    got_count
        DISMISS

        .section .bss
        .balign 4
sent:   .skip   4
got_count:
        .skip   4
