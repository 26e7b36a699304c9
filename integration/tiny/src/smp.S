/*
 * Starts CPUs 1 to cpus-1 one after another by INIT, SIPI, SIPI (Intel SDM
 * vol. 3 §9.4.4.1) through the x2APIC. Each goes from real mode straight to long
 * mode, says its APIC id, counts itself and halts.
 */
#include "tiny.h"

#define TRAMPOLINE 0x60000

main:
        ARG     cpus, 2
        mov     %eax, %ebp
        mov     $trampoline, %esi
        mov     $TRAMPOLINE, %edi
        mov     $trampoline_end - trampoline, %ecx
1:      mov     (%rsi), %al
        mov     %al, (%rdi)
        inc     %rsi
        inc     %rdi
        dec     %ecx
        jnz     1b
        mov     %cr3, %rax
        mov     %eax, TRAMPOLINE + (ap_cr3 - trampoline)

        mov     $1, %ebx                /* the next CPU */
2:      cmp     %ebp, %ebx
        jae     4f
        mov     $0xc500, %eax           /* INIT, level, assert */
        call    send
        mov     $0x600 | TRAMPOLINE >> 12, %eax
        call    send
        mov     $0x600 | TRAMPOLINE >> 12, %eax
        call    send
3:      pause
        cmp     %ebx, up
        jne     3b
        inc     %ebx
        jmp     2b

4:      SAY     "smp: "
        mov     %rbx, %rdi
        call    putdec
        SAY     " cpus\n"
        ret

/* Writes EAX to the ICR for the CPU in EBX. */
send:
        mov     %ebx, %edx
        mov     $X2_ICR, %ecx
        wrmsr
        ret

/* Where a started CPU is in long mode. */
ap:
        mov     $ap_stack, %esp
        mov     $X2_ID, %ecx
        rdmsr
        mov     %eax, %ebx
        SAY     "cpu "
        mov     %rbx, %rdi
        call    putdec
        SAY     " up\n"
        lock incl up
        jmp     stop

/* Runs at TRAMPOLINE in real mode, CS = TRAMPOLINE >> 4. */
        .code16
trampoline:
        cli
        mov     %cs, %ax
        mov     %ax, %ds
        lgdtl   ap_gdtr - trampoline
        mov     $0x20, %eax             /* CR4.PAE */
        mov     %eax, %cr4
        mov     ap_cr3 - trampoline, %eax
        mov     %eax, %cr3
        mov     $0xc0000080, %ecx       /* EFER.LME */
        mov     $0x100, %eax
        xor     %edx, %edx
        wrmsr
        mov     $0x80000011, %eax       /* PG, ET, PE: long mode at once */
        mov     %eax, %cr0
        ljmpl   $8, $TRAMPOLINE + (ap_long - trampoline)
        .code64
ap_long:
        mov     $16, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     $ap, %eax
        jmp     *%rax
        .balign 8
ap_gdt: .quad   0
        .quad   0x00af9b000000ffff      /* 64-bit code */
        .quad   0x00cf93000000ffff      /* data */
ap_gdtr:
        .word   23
        .long   TRAMPOLINE + (ap_gdt - trampoline)
        .balign 4
ap_cr3: .long   0
trampoline_end:

        .section .bss
        .balign 4
up:     .skip   4
        .balign 16
        .skip   4096
ap_stack:
