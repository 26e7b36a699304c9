/* Starts CPUs 1 to cpus-1 one after another. Each says its APIC id, counts itself and halts. */
#include "tiny.h"
#include "ap.h"

main:
        ARG     cpus, 2
        mov     %eax, %ebp
        mov     $1, %ebx                /* the next CPU */
1:      cmp     %ebp, %ebx
        jae     3f
        call    start
2:      pause
        cmp     %ebx, up
        jne     2b
        inc     %ebx
        jmp     1b

3:      SAY     "smp: "
        mov     %rbx, %rdi
        call    putdec
        SAY     " cpus\n"
        ret

ap:
        SAY     "cpu "
        mov     %rbx, %rdi
        call    putdec
        SAY     " up\n"
        lock incl up
        jmp     stop

        .section .bss
        .balign 4
up:     .skip   4
