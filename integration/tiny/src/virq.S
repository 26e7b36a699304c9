/*
 * Waits in hlt for count= interrupts on vector=, from outside: an MSI, an irqfd,
 * or with pin= a pin of the I/O APIC, which it points at the vector (edge).
 * Before each wait, the first included, it writes the number that it has had so
 * far to ack= (4 bytes), so that the sender can go in step.
 */
#include "tiny.h"

main:
        ARG     pin, 0xff
        mov     %eax, %r8d
        ARG     ack, SPARE_PORT
        mov     %eax, %ebp
        ARG     count, 1
        mov     %eax, %ebx
        ARG     vector, 0x40
        mov     %eax, %r9d
        mov     %eax, %edi
        mov     $got, %esi
        call    gate
        call    interrupts

        cmp     $0xff, %r8d
        je      1f
        mov     $IOAPIC, %edi           /* redirection entry 0x10 + 2 * pin */
        lea     0x11(%r8,%r8), %eax
        mov     %eax, (%rdi)
        movl    $0, 0x10(%rdi)          /* to APIC 0 */
        dec     %eax
        mov     %eax, (%rdi)
        mov     %r9d, 0x10(%rdi)        /* fixed, physical, edge, unmasked */

1:      SAY     "virq: waiting\n"
2:      mov     got_count, %eax
        mov     %ebp, %edx
        out     %eax, %dx
        cmp     %ebx, %eax
        jae     3f
        sti
        hlt
        cli
        jmp     2b

3:      SAY     "virq: "
        mov     got_count, %edi
        call    putdec
        SAY     " received\n"
        ret

got:
        SAVE
        incl    got_count
        DISMISS

        .section .bss
        .balign 4
got_count:
        .skip   4
