/*
 * What every tiny guest begins with: the entry point, the serial line, the
 * command line and the ways to end. A guest includes this file first and
 * defines `main`, which is called with a stack and never needs to return:
 * returning powers the machine off.
 *
 * The guests enter like a Linux vmlinux (Linux Documentation/arch/x86/boot.rst,
 * "64-bit Boot Protocol"): long mode, the low 4 GiB identity-mapped, interrupts
 * off, RSI = boot_params. They are written for a KVM that emulates every
 * instruction of CPL 0: plain moves and arithmetic, no SSE, no int3.
 *
 * Calling convention of the routines here: arguments in RSI/RDI, result in RAX;
 * RAX, RCX, RDX, RSI, RDI are lost, everything else is kept.
 */

/* The machine (package boot, layout). */
#define COM1        0x3f8
#define SLEEP       0x600
#define SLEEP_S5    0x34        /* SLP_TYP 5 << 2 | SLP_EN */
#define RESET       0x602
#define PVPANIC     0x505
#define DEBUG_EXIT  0xf4
#define ECAM        0xe0000000
#define IOAPIC      0xfec00000

/* A port and an address that no device answers, for tests to listen on. */
#define SPARE_PORT  0x510
#define SPARE_ADDR  0xdfff0000

/* A write of 1 byte here lets the host's other threads run. */
#define YIELD_PORT  0x518

/* x2APIC MSRs (Intel SDM vol. 3, table 11-6). */
#define X2_ID       0x802
#define X2_EOI      0x80b
#define X2_SPURIOUS 0x80f
#define X2_ICR      0x830
#define X2_LVT      0x832       /* timer */
#define X2_COUNT    0x838
#define X2_DIVIDE   0x83e
#define X2_SELF     0x83f

/* The failed-check code: isa-debug-exit makes exit code 2*16+1 = 33 of it. */
#define FAILED      16

        .section .text
        .code64
        .globl  _start
_start:
        mov     $stack_top, %esp
        mov     0x228(%rsi), %eax       /* boot_params.hdr.cmd_line_ptr */
        mov     %rax, cmdline
        call    main
        jmp     poweroff

/* A line of text to the serial port. */
        .macro  SAY text:vararg
        .pushsection .rodata
.Lsay\@:
        .asciz  \text
        .popsection
        mov     $.Lsay\@, %esi
        call    puts
        .endm

/* RAX = the number after "key=" on the command line, or the default. */
        .macro  ARG key, default
        .pushsection .rodata
.Lkey\@:
        .asciz  "\key="
        .popsection
        mov     $.Lkey\@, %esi
        mov     $\default, %rdi
        call    arg
        .endm

/* Ends the guest with a line and exit code 33. */
        .macro  FAIL text:vararg
        SAY     \text
        jmp     failed
        .endm

/* One turn of a loop that waits, for where many CPUs share few. Keeps all. */
        .macro  WAIT
        pause
        pause
        pause
        push    %rax
        push    %rdx
        mov     $YIELD_PORT, %edx
        out     %al, %dx
        pop     %rdx
        pop     %rax
        .endm

/* Jumps to the handler from the IDT; see `gate`. */
        .macro  GATE vector, handler
        mov     $\vector, %edi
        mov     $\handler, %esi
        call    gate
        .endm

        .macro  EOI
        mov     $X2_EOI, %ecx
        xor     %eax, %eax
        xor     %edx, %edx
        wrmsr
        .endm

/* The beginning of an interrupt handler that loses RAX, RCX and RDX, and its end. */
        .macro  SAVE
        push    %rax
        push    %rcx
        push    %rdx
        .endm

        .macro  DISMISS
        EOI
        pop     %rdx
        pop     %rcx
        pop     %rax
        iretq
        .endm

/* Prints the string at RSI. */
puts:
        mov     $COM1, %edx
1:      mov     (%rsi), %al
        test    %al, %al
        jz      2f
        out     %al, %dx
        inc     %rsi
        jmp     1b
2:      ret

/* Prints RDI in hexadecimal, without leading zeroes. */
puthex:
        mov     $60, %ecx
        mov     $COM1, %edx
1:      mov     %rdi, %rax              /* skip zeroes, but not the last */
        shr     %cl, %rax
        jnz     2f
        sub     $4, %ecx
        jg      1b
        xor     %ecx, %ecx
2:      mov     %rdi, %rax
        shr     %cl, %rax
        and     $15, %eax
        mov     hexdigits(%rax), %al
        out     %al, %dx
        sub     $4, %ecx
        jns     2b
        ret

/* Prints RDI in decimal. */
putdec:
        mov     %rdi, %rax
        mov     $10, %ecx
        xor     %esi, %esi              /* digits on the stack */
1:      xor     %edx, %edx
        div     %rcx
        push    %rdx
        inc     %esi
        test    %rax, %rax
        jnz     1b
        mov     $COM1, %edx
2:      pop     %rax
        add     $'0', %al
        out     %al, %dx
        dec     %esi
        jnz     2b
        ret

newline:
        mov     $COM1, %edx
        mov     $'\n', %al
        out     %al, %dx
        ret

/*
 * Looks for the string at RSI ("key=") at the beginning of a word of the
 * command line and gives the decimal or 0x-hexadecimal number after it, else RDI.
 */
arg:
        push    %rbx
        push    %rbp
        mov     cmdline, %rbx
        test    %rbx, %rbx
        jz      9f
1:      mov     %rsi, %rdx              /* at a word: compare the key */
        mov     %rbx, %rcx
2:      mov     (%rdx), %al
        test    %al, %al
        jz      5f
        cmp     (%rcx), %al
        jne     3f
        inc     %rdx
        inc     %rcx
        jmp     2b
3:      mov     (%rbx), %al             /* to the next word */
        test    %al, %al
        jz      9f
        inc     %rbx
        cmp     $' ', %al
        jne     3b
        jmp     1b

5:      xor     %edi, %edi              /* the number at RCX, base RBP */
        mov     $10, %ebp
        cmpw    $0x7830, (%rcx)         /* "0x" */
        jne     6f
        mov     $16, %ebp
        add     $2, %rcx
6:      movzbl  (%rcx), %eax
        sub     $'0', %eax
        js      9f
        cmp     $10, %eax
        jb      7f
        or      $0x20, %eax             /* letters: 'a' - '0' = 0x31 */
        sub     $0x31 - 10, %eax
        cmp     $10, %eax
        jb      9f
        cmp     %ebp, %eax
        jae     9f
7:      mov     %rax, %rdx
        imul    %rbp, %rdi
        add     %rdx, %rdi
        inc     %rcx
        jmp     6b
9:      mov     %rdi, %rax
        pop     %rbp
        pop     %rbx
        ret

/* Points vector EDI of the IDT at the handler ESI (an interrupt gate). */
gate:
        shl     $4, %edi
        add     $idt, %edi
        mov     %si, (%rdi)
        mov     %cs, %eax
        mov     %ax, 2(%rdi)
        movw    $0x8e00, 4(%rdi)
        shr     $16, %esi
        mov     %si, 6(%rdi)
        movl    $0, 8(%rdi)
        movl    $0, 12(%rdi)
        ret

/* Loads the IDT and enables the local APIC (already in x2APIC mode). */
interrupts:
        lidt    idtr
        mov     $X2_SPURIOUS, %ecx
        mov     $0x1ff, %eax
        xor     %edx, %edx
        wrmsr
        ret

poweroff:
        mov     $SLEEP, %edx
        mov     $SLEEP_S5, %al
        out     %al, %dx
stop:   cli
        hlt
        jmp     stop

failed:
        mov     $DEBUG_EXIT, %edx
        mov     $FAILED, %eax
        out     %eax, %dx
        jmp     stop

        .section .rodata
hexdigits:
        .ascii  "0123456789abcdef"

        .section .data
        .balign 8
        .word   0, 0, 0
idtr:   .word   256 * 16 - 1
        .quad   idt
        .balign 8
cmdline:
        .quad   0

        .section .bss
        .balign 16
idt:    .skip   256 * 16
        .skip   4096
stack_top:

        .section .text
