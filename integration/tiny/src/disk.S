/*
 * A driver for the first virtio disk (virtio 1.2 §5.2): reads the first pages= of
 * it in one request, says the sum of the first 8 bytes of each, stores to the
 * first of page store= if there is one, says the sum again, and stays, halted.
 * Before it stays it reads again, rounds= times: each time all must be as at
 * first, and a store to one of the pages, each in turn, be there.
 */
#include "tiny.h"
#include "virtio.h"

#define QUEUE  8
#define BUFFER 0x400000

main:
        ARG     pages, 16
        mov     %eax, %r12d
        ARG     store, 0xffffff
        mov     %eax, %r14d
        mov     $record, %ebp
        VIRTIO_SEEK 0x10421af4, "disk: none on bus 0\n"
        call    virtio_find
        VIRTIO_AGREE "disk: FEATURES_OK refused\n"
        movw    $0, C_QUEUE_SELECT(%rdi)
        movw    $QUEUE, C_QUEUE_SIZE(%rdi)
        VIRTIO_ENABLE

        VIRTIO_READ BUFFER
        movb    $0xff, status
        call    read
        SAY     "disk: read "
        call    sum
        mov     %rdi, %rbx
        call    puthex
        call    newline
        cmp     %r12d, %r14d
        jae     5f
        mov     %r14d, %eax
        shl     $12, %eax
        movq    $1, BUFFER(%rax)
        SAY     "disk: stored "
        call    sum
        call    puthex
        call    newline

5:      ARG     rounds, 0
        mov     %eax, %r15d
        test    %eax, %eax
        jz      stop
        xor     %r14d, %r14d            /* the page to store to */
6:      movb    $0xff, status
        call    read
        call    sum
        cmp     %rbx, %rdi
        je      7f
        FAIL    "disk: other bytes\n"
7:      mov     %r14d, %eax
        shl     $12, %eax
        mov     BUFFER(%rax), %rdx
        mov     %r15, BUFFER(%rax)
        push    %rdx
        call    sum
        pop     %rdx
        sub     %r15, %rdi
        add     %rdx, %rdi
        cmp     %rbx, %rdi
        je      8f
        FAIL    "disk: a store is lost\n"
8:      inc     %r14d
        cmp     %r12d, %r14d
        jb      9f
        xor     %r14d, %r14d
9:      dec     %r15d
        jnz     6b
        SAY     "disk: all rounds\n"
        jmp     stop

/* Reads; every slot of the ring names descriptor 0. */
read:
        incw    available + 2
        movw    $0, (%r13)
1:      WAIT
        mov     available + 2, %ax
        cmp     %ax, used + 2
        jne     1b
        cmpb    $0, status
        je      2f
        FAIL    "disk: an I/O error\n"
2:      ret

/* RDI = the sum of the first 8 bytes of each page. */
sum:
        xor     %edi, %edi
        mov     $BUFFER, %eax
        mov     %r12d, %ecx
1:      add     (%rax), %rdi
        add     $4096, %eax
        dec     %ecx
        jnz     1b
        ret

        .section .bss
        .balign 4096
        VIRTIO_QUEUE QUEUE
        .balign 16
record: .skip   V_SIZE
