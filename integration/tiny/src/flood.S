/*
 * Keeps the first virtio disk busy (virtio 1.2 §5.2): has depth= requests under way,
 * each to read the disk's first pages= pages, waits in hlt for the MSI-X interrupt, and
 * makes as many again as are done, without end. It does nothing with what it reads,
 * so what work there is is the monitor's.
 */
#include "tiny.h"
#include "virtio.h"

#define VECTOR 0x41
#define QUEUE  8
#define BUFFER 0x400000

main:
        ARG     pages, 256
        mov     %eax, %r12d
        ARG     depth, 2
        mov     %eax, %r14d
        mov     $record, %ebp
        VIRTIO_SEEK 0x10421af4, "flood: no disk on bus 0\n"
        GATE    VECTOR, got
        call    interrupts
        call    virtio_find
        VIRTIO_INTERRUPT VECTOR
        VIRTIO_AGREE "flood: FEATURES_OK refused\n"
        movw    $0, C_QUEUE_SELECT(%rdi)
        movw    $QUEUE, C_QUEUE_SIZE(%rdi)
        VIRTIO_QUEUE_INTERRUPTS "flood: no interrupt vector\n"
        VIRTIO_ENABLE

        VIRTIO_READ BUFFER
        SAY     "flood: reading\n"

        xor     %r15d, %r15d                    /* requests done */
2:      lea     (%r15,%r14), %eax               /* every ring slot names descriptor 0 */
        mov     %ax, available + 2
        movw    $0, (%r13)
3:      sti
        hlt
        cli
        cmp     %r15w, used + 2
        je      3b
        mov     used + 2, %r15w
        cmpb    $0, status
        je      2b
        FAIL    "flood: an I/O error\n"

got:
        SAVE
        DISMISS

        .section .bss
        .balign 4096
        VIRTIO_QUEUE QUEUE
        .balign 16
record: .skip   V_SIZE
