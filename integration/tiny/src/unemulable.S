/*
 * Executes an instruction on an MMIO operand that no KVM emulates: KVM gives up
 * with KVM_EXIT_INTERNAL_ERROR.
 */
#include "tiny.h"

main:
        SAY     "unemulable: executing\n"
        mov     %cr4, %rax
        or      $0x200, %eax            /* OSFXSR: SSE is no undefined instruction */
        mov     %rax, %cr4
        mov     $SPARE_ADDR, %ebx
        paddd   (%rbx), %xmm0
        FAIL    "unemulable: still running\n"
