/* Walks bus 0 through ECAM and prints each function: device.function vendor:device class. */
#include "tiny.h"

main:
        mov     $ECAM, %ebx
1:      mov     (%rbx), %eax
        cmp     $0xffffffff, %eax
        je      2f
        mov     %eax, %ebp
        SAY     "pci "
        mov     %rbx, %rdi
        shr     $15, %edi
        and     $31, %edi
        call    putdec
        SAY     "."
        mov     %rbx, %rdi
        shr     $12, %edi
        and     $7, %edi
        call    putdec
        SAY     " "
        movzwl  %bp, %edi
        call    puthex
        SAY     ":"
        mov     %ebp, %edi
        shr     $16, %edi
        call    puthex
        SAY     " "
        mov     8(%rbx), %edi
        shr     $8, %edi
        call    puthex
        call    newline
2:      add     $0x1000, %ebx
        cmp     $ECAM + 0x100000, %ebx
        jb      1b
        SAY     "pci: walked\n"
        ret
