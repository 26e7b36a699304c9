/*
 * A driver for the virtio entropy device (virtio 1.2 §5.4): finds it on bus 0,
 * asks count= times for 16 bytes, and waits in hlt for the MSI-X interrupt of each.
 */
#include "tiny.h"
#include "virtio.h"

#define VECTOR 0x41
#define QUEUE  8

main:
        ARG     count, 10
        mov     %eax, %r12d
        mov     $record, %ebp
        mov     $ECAM, %ebx
1:      cmpl    $0x10441af4, (%rbx)
        je      2f
        add     $0x1000, %ebx
        cmp     $ECAM + 0x100000, %ebx
        jb      1b
        FAIL    "rng: no entropy device on bus 0\n"

2:      GATE    VECTOR, got
        call    interrupts
        call    virtio_find
        mov     V_TABLE(%rbp), %rdi
        movl    $0xfee00000, (%rdi)
        movl    $0, 4(%rdi)
        movl    $VECTOR, 8(%rdi)
        movl    $0, 12(%rdi)

        mov     V_COMMON(%rbp), %rdi
        movb    $0, C_STATUS(%rdi)
3:      cmpb    $0, C_STATUS(%rdi)
        jne     3b
        movb    $1, C_STATUS(%rdi)
        movb    $3, C_STATUS(%rdi)
        movl    $0, C_DRIVER_FEATURE_SELECT(%rdi)
        movl    $0, C_DRIVER_FEATURE(%rdi)
        movl    $1, C_DRIVER_FEATURE_SELECT(%rdi)
        movl    $1, C_DRIVER_FEATURE(%rdi)      /* VIRTIO_F_VERSION_1 */
        movb    $11, C_STATUS(%rdi)
        testb   $8, C_STATUS(%rdi)
        jnz     4f
        FAIL    "rng: FEATURES_OK refused\n"
4:      movw    $0, C_QUEUE_SELECT(%rdi)
        movw    $QUEUE, C_QUEUE_SIZE(%rdi)
        movw    $0, C_QUEUE_VECTOR(%rdi)
        cmpw    $0, C_QUEUE_VECTOR(%rdi)
        je      5f
        FAIL    "rng: no interrupt vector\n"
5:      mov     $descriptors, %eax
        mov     %eax, C_QUEUE_DESC(%rdi)
        movl    $0, C_QUEUE_DESC + 4(%rdi)
        mov     $available, %eax
        mov     %eax, C_QUEUE_DRIVER(%rdi)
        movl    $0, C_QUEUE_DRIVER + 4(%rdi)
        mov     $used, %eax
        mov     %eax, C_QUEUE_DEVICE(%rdi)
        movl    $0, C_QUEUE_DEVICE + 4(%rdi)
        movw    $1, C_QUEUE_ENABLE(%rdi)
        movzwl  C_QUEUE_NOTIFY_OFF(%rdi), %eax
        imul    V_MULT(%rbp), %eax
        add     V_NOTIFY(%rbp), %rax
        mov     %rax, %r13
        movb    $15, C_STATUS(%rdi)

        movq    $buffer, descriptors
        movl    $16, descriptors + 8
        movl    $2, descriptors + 12            /* VIRTQ_DESC_F_WRITE */

6:      cmp     %r12w, available + 2            /* every ring slot names descriptor 0 */
        je      8f
        incw    available + 2
        movw    $0, (%r13)
7:      sti
        hlt
        cli
        mov     available + 2, %ax
        cmp     %ax, used + 2
        jne     7b
        jmp     6b

8:      movzwl  used + 2, %edi
        push    %rdi
        SAY     "rng: "
        pop     %rdi
        call    putdec
        SAY     " requests, "
        mov     interrupted, %edi
        call    putdec
        SAY     " interrupts, the last "
        mov     used + 8, %edi                  /* ring[0].len */
        call    putdec
        SAY     " bytes "
        mov     buffer, %rdi
        call    puthex
        call    newline
        ret

got:
        SAVE
        incl    interrupted
        DISMISS

        .section .bss
        .balign 4096
descriptors:
        .skip   16 * QUEUE
        .balign 64
available:
        .skip   6 + 2 * QUEUE
        .balign 64
used:   .skip   6 + 8 * QUEUE
        .balign 16
buffer: .skip   16
record: .skip   V_SIZE
interrupted:
        .skip   4
