/*
 * Two CPUs hand a turn to each other, spinning while they wait for it, and count at
 * PROGRESS how often.
 */
#include "tiny.h"
#include "ap.h"

#define PROGRESS   0x200000

main:
        mov     $1, %ebx
        call    start
1:      pause
        cmpl    $0, up
        je      1b
        xor     %ebx, %ebx
        jmp     spin

ap:
        lock incl up
spin:
        pause
        cmp     %ebx, turn
        jne     spin
        incq    PROGRESS
        mov     %ebx, %eax
        xor     $1, %eax
        mov     %eax, turn
        jmp     spin

        .section .bss
        .balign 4
up:     .skip   4
turn:   .skip   4
