/*
 * Starts CPUs 1 to cpus-1 and then count= times pings each of them, in turn or
 * all at once, and waits for the answers. kind= says how:
 *   0  an interrupt to each, one after another
 *   1  an NMI to each
 *   2  an interrupt to all but itself
 *   3  an NMI to each, answered by an NMI
 *   4  nothing is pinged: interrupts with vector EXTERNAL come from outside, and
 *      the CPU that gets one writes its id to SPARE_PORT; count= of them in all
 * Nobody waits in hlt, so that nothing depends on the shadow of sti. Every CPU checks that no time stamp that it is sent is
 * ahead of its own clock.
 */
#include "tiny.h"
#include "ap.h"

#define PING     0x40
#define PONG     0x50           /* + id: interrupts with one vector may merge */
#define EXTERNAL 0x60
#define NMI      0x400          /* delivery mode */
#define OTHERS   0xc0000        /* shorthand */

main:
        ARG     kind, 0
        mov     %eax, kind
        ARG     count, 10
        mov     %eax, count
        ARG     cpus, 2
        mov     %eax, cpus
        GATE    PING, ping
        GATE    EXTERNAL, external
        GATE    2, nmi
        mov     $PONG, %ebp
1:      mov     %ebp, %edi
        mov     $pong, %esi
        call    gate
        inc     %ebp
        cmp     $PONG + 16, %ebp
        jb      1b
        call    interrupts

        mov     $1, %ebx                /* the next CPU */
2:      cmp     cpus, %ebx
        jae     4f
        call    start
3:      WAIT
        cmp     %ebx, up
        jne     3b
        inc     %ebx
        jmp     2b

4:      SAY     "wide: up\n"
        sti
        xor     %ebp, %ebp              /* rounds */
round:  cmp     count, %ebp
        jae     done
        inc     %ebp
        call    stamp
        cmpl    $4, kind
        je      7f
        cmpl    $2, kind
        je      6f

        mov     $1, %ebx                /* each */
5:      cmp     cpus, %ebx
        jae     round
        mov     $X2_ICR, %ecx
        mov     $PING, %eax
        testl   $1, kind
        jz      1f
        mov     $NMI, %eax
1:      mov     %ebx, %edx
        wrmsr
        incl    expected
        call    settle
        inc     %ebx
        jmp     5b

6:      mov     $X2_ICR, %ecx           /* all */
        mov     $OTHERS | PING, %eax
        xor     %edx, %edx
        wrmsr
        mov     cpus, %eax
        dec     %eax
        add     %eax, expected
        call    settle
        jmp     round

7:      incl    expected                /* none */
        call    settle
        jmp     round

done:   SAY     "wide: "
        mov     pongs, %edi
        call    putdec
        SAY     " answers, "
        mov     late, %edi
        call    putdec
        SAY     " clocks behind\n"
        ret

/* Waits for all answers that are expected. */
settle: WAIT
        mov     pongs, %eax
        cmp     expected, %eax
        jb      settle
        ret

/* Stores a time stamp for others to compare. */
stamp:  rdtsc
        shl     $32, %rdx
        or      %rdx, %rax
        mov     %rax, stamped
        ret

/* Counts a time stamp that is ahead of this CPU's clock. */
check:  mov     stamped, %rsi
        rdtsc
        shl     $32, %rdx
        or      %rdx, %rax
        cmp     %rsi, %rax
        jae     1f
        lock incl late
1:      ret

ap:     call    interrupts
        lock incl up
        sti
1:      WAIT
        jmp     1b

        .macro  ENTER
        push    %rax
        push    %rcx
        push    %rdx
        push    %rsi
        .endm

        .macro  LEAVE
        pop     %rsi
        pop     %rdx
        pop     %rcx
        pop     %rax
        iretq
        .endm

ping:   ENTER
        call    check
        call    stamp
        call    answer
        EOI
        LEAVE

/* Sends PONG + this CPU's id to CPU 0. */
answer: mov     $X2_ID, %ecx
        rdmsr
        add     $PONG, %eax
        mov     $X2_ICR, %ecx
        xor     %edx, %edx
        wrmsr
        ret

pong:   ENTER
        call    check
        lock incl pongs
        EOI
        LEAVE

nmi:    ENTER
        mov     $X2_ID, %ecx
        rdmsr
        test    %eax, %eax
        jz      2f
        cmpl    $3, kind
        je      1f
        call    answer
        jmp     3f
1:      mov     $X2_ICR, %ecx
        mov     $NMI, %eax
        xor     %edx, %edx
        wrmsr
        jmp     3f
2:      lock incl pongs
3:      LEAVE

external:
        ENTER
        mov     $X2_ID, %ecx
        rdmsr
        mov     $SPARE_PORT, %edx
        out     %eax, %dx
        lock incl pongs
        EOI
        LEAVE

        .section .bss
        .balign 8
stamped:
        .skip   8
kind:   .skip   4
count:  .skip   4
cpus:   .skip   4
up:     .skip   4
expected:
        .skip   4
pongs:  .skip   4
late:   .skip   4
