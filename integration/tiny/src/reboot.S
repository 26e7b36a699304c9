/*
 * Resets the machine, each time that it is booted, in the way that how= names:
 * 0x602 (ACPI reset register), 0xcf9, 0x64 or 3 (a triple fault). With
 * magic=0x1234 it leaves that word at 0x472 first, as a panicking Linux with
 * reboot=warm does.
 */
#include "tiny.h"

main:
        SAY     "reboot: booted\n"
        ARG     magic, 0
        mov     %ax, 0x472
        ARG     how, RESET
        mov     %eax, %edx
        mov     $1, %al
        cmp     $RESET, %edx
        je      1f
        mov     $6, %al
        cmp     $0xcf9, %edx
        je      1f
        mov     $0xfe, %al
        cmp     $0x64, %edx
        je      1f
        lidt    nothing
        ud2
1:      out     %al, %dx
        FAIL    "reboot: still running\n"

        .section .data
        .balign 8
nothing:
        .word   0
        .quad   0
