/*
 * Enters by PVH (Xen docs/misc/pvh.pandoc): 32-bit protected mode without
 * paging, EBX = hvm_start_info. It says its command line and powers off. Its ELF
 * has no entry point, so that a loader that prefers the Linux protocol cannot.
 */
#define COM1     0x3f8
#define SLEEP    0x600
#define SLEEP_S5 0x34
#define MAGIC    0x336ec578     /* hvm_start_info.magic */

        .section .note.Xen, "a", @note
        .balign 4
        .long   4, 4, 18                /* XEN_ELFNOTE_PHYS32_ENTRY */
        .asciz  "Xen"
        .long   pvh

        .section .text
        .code32
pvh:
        mov     $stack_top, %esp
        mov     $COM1, %edx
        mov     $wrong, %esi
        cmpl    $MAGIC, (%ebx)
        jne     1f
        mov     $right, %esi
1:      call    puts
        mov     24(%ebx), %esi          /* cmdline_paddr */
        call    puts
        mov     $'\n', %al
        out     %al, %dx
        mov     $SLEEP, %edx
        mov     $SLEEP_S5, %al
        out     %al, %dx
2:      cli
        hlt
        jmp     2b

/* Writes the string at ESI to port EDX. */
puts:
        mov     (%esi), %al
        test    %al, %al
        jz      3f
        out     %al, %dx
        inc     %esi
        jmp     puts
3:      ret

        .section .rodata
right:  .asciz  "pvh: "
wrong:  .asciz  "pvh: no start info; "

        .section .bss
        .balign 16
        .skip   256
stack_top:
