/*
 * Rings a doorbell count= times: writes of size= bytes (1, 2, 4 or 8) to addr=,
 * or with port= of up to 4 bytes to that port. The value is the number of the ring.
 */
#include "tiny.h"

main:
        ARG     addr, SPARE_ADDR
        mov     %rax, %r8
        ARG     size, 4
        mov     %eax, %r9d
        ARG     count, 1000
        mov     %eax, %r10d
        ARG     port, 0
        mov     %eax, %r11d
        xor     %ebx, %ebx

1:      cmp     %r10d, %ebx
        jae     9f
        inc     %ebx
        mov     %rbx, %rax
        test    %r11d, %r11d
        jnz     5f
        cmp     $1, %r9d
        je      2f
        cmp     $2, %r9d
        je      3f
        cmp     $4, %r9d
        je      4f
        mov     %rax, (%r8)
        jmp     1b
2:      mov     %al, (%r8)
        jmp     1b
3:      mov     %ax, (%r8)
        jmp     1b
4:      mov     %eax, (%r8)
        jmp     1b

5:      mov     %r11d, %edx
        cmp     $1, %r9d
        je      6f
        cmp     $2, %r9d
        je      7f
        out     %eax, %dx
        jmp     1b
6:      out     %al, %dx
        jmp     1b
7:      out     %ax, %dx
        jmp     1b

9:      SAY     "doorbell: "
        mov     %rbx, %rdi
        call    putdec
        SAY     " rings\n"
        ret
