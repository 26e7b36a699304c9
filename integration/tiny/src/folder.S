/*
 * A driver for the first shared folder (virtio 1.2 §5.11) that maps the beginning
 * of its file "f" into the window: says the sum of the first 8 bytes of each of the
 * first pages= pages, stores the sum behind the first 8 bytes of the file, and
 * waits until page gone= (if there is one) holds other bytes, which it says. With
 * hole=1 it then reads where nothing is mapped. It ends halted.
 */
#include "tiny.h"
#include "virtio.h"

#define QUEUE  8
#define WINDOW 0x100000000      /* where BAR 2 is moved: the first 2 MiB behind 4 GiB */
#define BAR2   0x18

/* FUSE: opcodes */
#define LOOKUP        1
#define INIT          26
#define SETUP_MAPPING 48

main:
        ARG     pages, 16
        mov     %eax, %r12d
        ARG     gone, 0xffffff
        mov     %eax, %r14d
        mov     $record, %ebp
        VIRTIO_SEEK 0x105a1af4, "folder: none on bus 0\n"
        call    virtio_find
        movw    $0, 4(%rbx)
        movl    $0, BAR2(%rbx)
        movl    $WINDOW >> 32, BAR2 + 4(%rbx)
        movw    $6, 4(%rbx)
        VIRTIO_AGREE "folder: FEATURES_OK refused\n"
        movw    $1, C_QUEUE_SELECT(%rdi)
        movw    $QUEUE, C_QUEUE_SIZE(%rdi)
        VIRTIO_ENABLE

        /* Map WINDOW: a page directory of its own, in pages of 2 MiB. */
        mov     %cr3, %rax
        and     $~0xfff, %rax
        mov     (%rax), %rax
        and     $~0xfff, %rax
        mov     $directory, %ecx
        or      $3, %ecx
        mov     %rcx, 8 * (WINDOW >> 30)(%rax)
        mov     $WINDOW + 0x83, %rcx
        mov     %rcx, directory
        add     $0x200000, %rcx
        mov     %rcx, directory + 8
        mov     %cr3, %rax
        mov     %rax, %cr3

        movq    $request, descriptors
        movl    $0x10001, descriptors + 12      /* VIRTQ_DESC_F_NEXT, 1 */
        movq    $answer, descriptors + 16
        movl    $256, descriptors + 24
        movl    $2, descriptors + 28            /* VIRTQ_DESC_F_WRITE */

        movl    $7, request + 40                /* FUSE 7.36 */
        movl    $36, request + 44
        mov     $INIT, %esi
        mov     $40 + 64, %edi
        call    ask
        movl    $0, request + 44
        movl    $'f', request + 40
        movq    $1, request + 16                /* the root */
        mov     $LOOKUP, %esi
        mov     $40 + 2, %edi
        call    ask
        mov     answer + 16, %rax
        mov     %rax, request + 16
        movq    $-1, request + 40               /* no handle */
        movq    $0, request + 48
        movq    $0x200000, request + 56
        movq    $3, request + 64                /* to be read and written */
        movq    $0, request + 72
        mov     $SETUP_MAPPING, %esi
        mov     $40 + 40, %edi
        call    ask

        SAY     "folder: read "
        mov     $WINDOW, %rbx
        xor     %edi, %edi
        mov     %rbx, %rax
        mov     %r12d, %ecx
1:      add     (%rax), %rdi
        add     $4096, %rax
        dec     %ecx
        jnz     1b
        mov     %rdi, 8(%rbx)
        call    puthex
        call    newline

        cmp     $512, %r14d
        jae     stop
        shl     $12, %r14d
        add     %rbx, %r14
        mov     (%r14), %r15
2:      WAIT
        mov     (%r14), %rdi
        cmp     %r15, %rdi
        je      2b
        SAY     "folder: changed to "
        mov     (%r14), %rdi
        call    puthex
        call    newline
        ARG     hole, 0
        test    %eax, %eax
        jz      stop
        mov     0x200000(%rbx), %rdi
        SAY     "folder: in a hole is "
        call    puthex
        call    newline
        jmp     stop

/* Asks ESI in EDI bytes. */
ask:
        mov     %edi, request
        mov     %edi, descriptors + 8
        mov     %esi, request + 4
        movl    $1, answer + 4
        incw    available + 2
        movw    $1, (%r13)
1:      WAIT
        mov     available + 2, %ax
        cmp     %ax, used + 2
        jne     1b
        cmpl    $0, answer + 4
        je      2f
        FAIL    "folder: an error\n"
2:      ret

        .section .bss
        .balign 4096
directory:
        .skip   4096
        VIRTIO_QUEUE QUEUE
        .balign 16
request:
        .skip   128
answer: .skip   256
record: .skip   V_SIZE
