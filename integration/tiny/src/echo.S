/*
 * Echoes what is typed at the 8250, by its received-data interrupt through pin 4
 * of the I/O APIC, and powers off after a line.
 */
#include "tiny.h"

#define VECTOR   0x44
#define PIN      4
#define IER      1              /* registers, from COM1 */
#define MCR      4
#define LSR      5
#define IER_DATA 1
#define MCR_ON   0x0a           /* RTS: ready to receive; OUT2: interrupts go out */
#define LSR_DATA 1

main:
        GATE    VECTOR, typed
        call    interrupts
        mov     $IOAPIC, %edi
        movl    $0x11 + 2 * PIN, (%rdi)
        movl    $0, 0x10(%rdi)
        movl    $0x10 + 2 * PIN, (%rdi)
        movl    $VECTOR, 0x10(%rdi)
        mov     $COM1 + MCR, %edx
        mov     $MCR_ON, %al
        out     %al, %dx
        mov     $COM1 + IER, %edx
        mov     $IER_DATA, %al
        out     %al, %dx
        SAY     "echo: listening\n"
1:      sti
        hlt
        cli
        cmpb    $0, ended
        je      1b
        ret

typed:
        SAVE
1:      mov     $COM1 + LSR, %edx
        in      %dx, %al
        test    $LSR_DATA, %al
        jz      2f
        mov     $COM1, %edx
        in      %dx, %al
        out     %al, %dx
        cmp     $'\n', %al
        jne     1b
        movb    $1, ended
        jmp     1b
2:      DISMISS

        .section .bss
ended:  .skip   1
