/*
 * Every kind of access that leaves KVM: port reads and writes of 1, 2 and 4
 * bytes, string output and input, MMIO reads and writes of 1, 2, 4 and 8 bytes
 * and of a sign-extending and a string move. port= and addr= say where. The
 * order is part of the contract with the tests, which record what arrives:
 * out, in, outsb, insb, MMIO writes, MMIO reads.
 */
#include "tiny.h"

        .macro  SHOW text
        mov     %rax, %rdi
        push    %rdi
        SAY     "\text"
        pop     %rdi
        call    puthex
        .endm

main:
        ARG     port, SPARE_PORT
        mov     %eax, %ebx
        ARG     addr, SPARE_ADDR
        mov     %rax, %rbp

        mov     %ebx, %edx
        mov     $0x44332211, %eax
        out     %al, %dx
        out     %ax, %dx
        out     %eax, %dx

        xor     %eax, %eax
        in      %dx, %al
        SHOW    "in 1="
        mov     %ebx, %edx
        xor     %eax, %eax
        in      %dx, %ax
        SHOW    " 2="
        mov     %ebx, %edx
        in      %dx, %eax
        SHOW    " 4="
        call    newline

        mov     %ebx, %edx
        mov     $string, %esi
        mov     $string_len, %ecx
        rep outsb
        mov     %ebx, %edx
        mov     $buffer, %edi
        mov     $3, %ecx
        rep insb
        mov     buffer, %eax
        SHOW    "insb="
        call    newline

        mov     $0x8877665544332211, %rax
        mov     %al, (%rbp)
        mov     %ax, 8(%rbp)
        mov     %eax, 16(%rbp)
        mov     %rax, 24(%rbp)
        movb    $0x5a, 32(%rbp)

        movzbl  (%rbp), %eax
        SHOW    "mmio 1="
        movzwl  8(%rbp), %eax
        SHOW    " 2="
        mov     16(%rbp), %eax
        SHOW    " 4="
        mov     24(%rbp), %rax
        SHOW    " 8="
        movsbq  (%rbp), %rax
        SHOW    " s="
        call    newline
        ret

        .section .rodata
string: .ascii  "string\n"
        .equ    string_len, . - string

        .section .bss
buffer: .skip   8
