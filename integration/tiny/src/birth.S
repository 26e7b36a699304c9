/*
 * Starts CPUs 1 to cpus-1, one after another, and does so rounds= times: after
 * the first it is the INIT and SIPI of a CPU that is taken offline and put
 * online again. Between INIT and SIPI it takes gap= turns of waiting. A CPU that
 * comes up says so in memory, answers one interrupt to show that it is reached,
 * and stops for good.
 */
#define GAP call gap
#include "tiny.h"
#include "ap.h"

#define PING 0x40
#define PONG 0x50

main:
        ARG     cpus, 2
        mov     %eax, cpus
        ARG     rounds, 1
        mov     %eax, rounds
        ARG     gap, 0
        mov     %eax, turns
        GATE    PING, ping
        GATE    PONG, pong
        call    interrupts
        sti
        xor     %ebp, %ebp              /* starts */
1:      mov     $1, %ebx                /* the next CPU */
2:      cmp     cpus, %ebx
        jae     5f
        call    start
        inc     %ebp
3:      WAIT
        cmp     %ebp, up
        jne     3b
        mov     $X2_ICR, %ecx
        mov     $PING, %eax
        mov     %ebx, %edx
        wrmsr
4:      WAIT
        cmp     %ebp, pongs
        jne     4b
        inc     %ebx
        jmp     2b
5:      decl    rounds
        jnz     1b
        SAY     "birth: "
        mov     up, %edi
        call    putdec
        SAY     " times up\n"
        ret

gap:    push    %rbx
        mov     turns, %ebx
1:      test    %ebx, %ebx
        jz      2f
        WAIT
        dec     %ebx
        jmp     1b
2:      pop     %rbx
        ret

ap:     call    interrupts
        lock incl up
        sti
1:      WAIT
        jmp     1b

ping:   SAVE
        mov     $X2_ICR, %ecx
        mov     $PONG, %eax
        xor     %edx, %edx
        wrmsr
        EOI
        jmp     stop

pong:   SAVE
        lock incl pongs
        DISMISS

        .section .bss
        .balign 4
cpus:   .skip   4
rounds: .skip   4
turns:  .skip   4
up:     .skip   4
pongs:  .skip   4
