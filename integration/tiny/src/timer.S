/*
 * Counts ticks= interrupts of the local APIC's timer, waiting in hlt. With
 * deadline=1 it uses the TSC-deadline mode, one deadline after another.
 */
#include "tiny.h"

#define VECTOR   0x40
#define DEADLINE 0x6e0          /* IA32_TSC_DEADLINE */
#define PERIOD   1000000        /* bus cycles of 1 ns, or TSC cycles */

main:
        ARG     deadline, 0
        mov     %eax, %ebp
        ARG     ticks, 10
        mov     %eax, %ebx
        GATE    VECTOR, tick
        call    interrupts
        mov     $X2_DIVIDE, %ecx
        mov     $0xb, %eax              /* by 1 */
        xor     %edx, %edx
        wrmsr
        mov     $X2_LVT, %ecx
        mov     $0x20000 | VECTOR, %eax /* periodic */
        test    %ebp, %ebp
        jz      1f
        mov     $0x40000 | VECTOR, %eax
1:      xor     %edx, %edx
        wrmsr
        test    %ebp, %ebp
        jnz     2f
        mov     $X2_COUNT, %ecx
        mov     $PERIOD, %eax
        wrmsr
        jmp     3f
2:      call    arm
3:      sti
        hlt
        cli
        cmp     %ebx, ticks
        jb      3b
        SAY     "timer: "
        mov     %rbx, %rdi              /* one more may have come by now */
        call    putdec
        SAY     " ticks\n"
        ret

arm:    rdtsc
        shl     $32, %rdx
        or      %rdx, %rax
        add     $PERIOD, %rax
        mov     %rax, %rdx
        shr     $32, %rdx
        mov     $DEADLINE, %ecx
        wrmsr
        ret

tick:
        SAVE
        incl    ticks
        test    %ebp, %ebp
        jz      1f
        call    arm
1:      DISMISS

        .section .bss
        .balign 4
ticks:  .skip   4
