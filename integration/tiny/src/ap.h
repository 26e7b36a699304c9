/*
 * Starting application processors: `start` sends INIT, SIPI, SIPI (Intel SDM
 * vol. 3 §9.4.4.1) through the x2APIC to the CPU in EBX. That CPU goes from real
 * mode straight to long mode on the page tables of its starter, and jumps to
 * `ap` with RBX = its APIC id and a page of stack of its own, up to MAX_APS.
 * What a guest defines as GAP is done between INIT and SIPI; it must keep RCX and
 * RDX.
 */

#define TRAMPOLINE 0x60000
#define MAX_APS    64
#ifndef GAP
#define GAP
#endif

        .section .text
start:
        mov     $trampoline, %esi
        mov     $TRAMPOLINE, %edi
        mov     $trampoline_end - trampoline, %ecx
        rep movsb
        mov     %cr3, %rax
        mov     %eax, TRAMPOLINE + (ap_cr3 - trampoline)
        mov     %ebx, %edx
        mov     $X2_ICR, %ecx
        mov     $0xc500, %eax           /* INIT, level, assert */
        wrmsr
        GAP
        mov     $0x600 | TRAMPOLINE >> 12, %eax
        wrmsr
        wrmsr
        ret

ap_entry:
        mov     $X2_ID, %ecx
        rdmsr
        mov     %eax, %ebx
        and     $MAX_APS - 1, %eax
        inc     %eax
        shl     $12, %eax
        add     $ap_stacks, %eax
        mov     %eax, %esp
        jmp     ap

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
        ljmpl   $16, $TRAMPOLINE + (ap_long - trampoline)
        .code64
ap_long:
        mov     $24, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     $ap_entry, %eax
        jmp     *%rax
        .balign 8
ap_gdt: .quad   0, 0                    /* selectors as on CPU 0, for its IDT */
        .quad   0x00af9b000000ffff      /* 64-bit code */
        .quad   0x00cf93000000ffff      /* data */
ap_gdtr:
        .word   31
        .long   TRAMPOLINE + (ap_gdt - trampoline)
        .balign 4
ap_cr3: .long   0
trampoline_end:

        .section .bss
        .balign 16
ap_stacks:
        .skip   4096 * MAX_APS

        .section .text
