/*
 * Computes, and counts at PROGRESS what it has done: chunks of work= turns of a
 * loop. mode= says what a turn is:
 *   0  a subtraction
 *   1  a pause
 *   2  a write to SPARE_PORT
 *   3  a read of SPARE_ADDR
 * With rest= it halts for so many nanoseconds after each chunk. steal= is where
 * KVM is to keep its steal time, or 0.
 *
 * It does so at CPL 3, where every KVM runs it at the machine's own speed, and
 * there it takes no interrupts; at CPL 0 with rest= and for ports.
 */
#include "tiny.h"

#define PROGRESS   0x200000     /* a page of its own beside the code */
#define TIMER      0x40
#define USER_DATA  (32 | 3)
#define USER_CODE  (40 | 3)
#define STEAL_TIME 0x4b564d03   /* MSR_KVM_STEAL_TIME */

main:
        ARG     work, 100000
        mov     %rax, work
        ARG     rest, 0
        mov     %rax, rest
        ARG     mode, 0
        mov     %eax, mode
        ARG     steal, 0
        test    %rax, %rax
        jz      1f
        mov     $STEAL_TIME, %ecx
        or      $1, %eax                /* KVM_MSR_ENABLED */
        xor     %edx, %edx
        wrmsr

1:      mov     %cr3, %rax              /* all that is mapped is CPL 3's, too */
        orq     $4, (%rax)
        mov     (%rax), %rbx
        and     $~0xfff, %rbx
        xor     %ebp, %ebp
2:      orq     $4, (%rbx,%rbp,8)
        inc     %ebp
        cmp     $4, %ebp
        jb      2b
        mov     (%rbx), %rax
        and     $~0xfff, %rax
        orq     $4, (%rax)              /* the first 4 MiB */
        orq     $4, 8(%rax)
        mov     24(%rbx), %rax
        and     $~0xfff, %rax
        orq     $4, 0x7f8(%rax)         /* SPARE_ADDR: 2 MiB from 0xdfe00000 */
        mov     %cr3, %rax
        mov     %rax, %cr3

        lgdt    gdtr
        cmpq    $0, rest
        jne     1f
        cmpl    $2, mode
        je      compute
        push    $USER_DATA
        push    $user_stack_top
        push    $2                      /* flags: no interrupts */
        push    $USER_CODE
        push    $compute
        iretq

1:      GATE    TIMER, timer
        call    interrupts
        mov     $X2_DIVIDE, %ecx
        mov     $0xb, %eax              /* by 1 */
        xor     %edx, %edx
        wrmsr
        mov     $X2_LVT, %ecx
        mov     $TIMER, %eax            /* once */
        wrmsr

compute:
        mov     work, %rcx
        mov     mode, %eax
        cmp     $1, %eax
        je      3f
        cmp     $2, %eax
        je      4f
        cmp     $3, %eax
        je      5f
2:      dec     %rcx
        jnz     2b
        jmp     6f
3:      pause
        dec     %rcx
        jnz     3b
        jmp     6f
4:      mov     $SPARE_PORT, %edx
        out     %al, %dx
        dec     %rcx
        jnz     4b
        jmp     6f
5:      mov     $SPARE_ADDR, %ebx
        mov     (%rbx), %edx
        dec     %rcx
        jnz     5b
6:      incq    PROGRESS
        mov     rest, %rax
        test    %rax, %rax
        jz      compute

        mov     $X2_COUNT, %ecx
        xor     %edx, %edx
        wrmsr
        movl    $0, rested
7:      sti
        hlt
        cli
        cmpl    $0, rested
        je      7b
        jmp     compute

timer:  SAVE
        movl    $1, rested
        DISMISS

        .section .data
        .balign 8
gdt:    .quad   0, 0
        .quad   0x00af9b000000ffff      /* 64-bit code, as at entry */
        .quad   0x00cf93000000ffff      /* data */
        .quad   0x00cff3000000ffff      /* CPL 3 data */
        .quad   0x00affb000000ffff      /* CPL 3 code */
        .word   0, 0, 0
gdtr:   .word   47
        .quad   gdt

        .section .bss
        .balign 8
work:   .skip   8
rest:   .skip   8
mode:   .skip   4
rested: .skip   4
        .skip   256
user_stack_top:
        .skip   8

        .section .text
