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
        VIRTIO_SEEK 0x10441af4, "rng: no entropy device on bus 0\n"
        GATE    VECTOR, got
        call    interrupts
        call    virtio_find
        VIRTIO_INTERRUPT VECTOR
        VIRTIO_AGREE "rng: FEATURES_OK refused\n"
        movw    $0, C_QUEUE_SELECT(%rdi)
        movw    $QUEUE, C_QUEUE_SIZE(%rdi)
        VIRTIO_QUEUE_INTERRUPTS "rng: no interrupt vector\n"
        VIRTIO_ENABLE

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
        VIRTIO_QUEUE QUEUE
        .balign 16
buffer: .skip   16
record: .skip   V_SIZE
interrupted:
        .skip   4
