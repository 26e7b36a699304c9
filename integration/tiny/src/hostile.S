/*
 * Throws garbage at everything outside the CPU: ports, the I/O APIC, PCI config
 * space (BARs move), BAR windows (MSI-X tables and virtio structures among
 * them), and virtio devices brought up on rings full of nonsense. It spares the
 * ways to end (power, reset, pvpanic, debug exit), and DMA seldom hits its own
 * code, so that it goes on: for steps= steps, then it powers off; 0 is for ever.
 * seed= makes a run repeatable; cpus= CPUs do it at once, each with a seed of
 * its own.
 *
 * R12 is the generator's state; R13 the steps left; RBP the CPU's record.
 */
#include "tiny.h"
#include "ap.h"
#include "virtio.h"

/* Where garbage rings and buffers lie, and the guest's least memory (64 MiB). */
#define GARBAGE      0x1000000
#define GARBAGE_SIZE 0x10000
#define TOP          0x4000000

/* A ring that is in order: its size, and where its parts are in its page. */
#define RING         8
#define AVAILABLE    0x400
#define USED         0x800

        .macro  PICK n          /* RAX = 0 to n-1; n a power of two */
        call    random
        and     $\n - 1, %eax
        .endm

main:
        ARG     steps, 0
        mov     %rax, %r13
        mov     %rax, ap_steps
        ARG     seed, 1
        mov     %rax, %r12
        mov     %rax, ap_seed
        SAY     "hostile: seed "
        mov     %r12, %rdi
        call    putdec
        call    newline
        test    %r12, %r12              /* the generator never leaves 0 */
        jnz     1f
        inc     %r12
1:      ARG     cpus, 1
        mov     %eax, %ebp
        mov     $1, %ebx
2:      cmp     %ebp, %ebx
        jae     3f
        call    start
4:      pause
        cmp     %ebx, up
        jne     4b
        inc     %ebx
        jmp     2b
3:      mov     $records, %ebp
        call    attack
        mov     $COM1 + 3, %edx         /* make the 8250 print again */
        xor     %eax, %eax
        out     %al, %dx
        inc     %edx
        out     %al, %dx
        SAY     "\nhostile: done\n"
        ret

ap:
        mov     %ebx, %ebp
        imul    $V_SIZE, %ebp, %ebp
        add     $records, %ebp
        mov     ap_seed, %r12
        mov     %rbx, %rax
        shl     $32, %rax
        add     %rax, %r12
        mov     ap_steps, %r13
        lock incl up
        call    attack
        jmp     stop

attack:
        PICK    8
        call    *attacks(,%rax,8)
        dec     %r13
        jnz     attack
        ret

/* RAX = the next of xorshift64 (Marsaglia 2003). Loses nothing else. */
random:
        mov     %r12, %rax
        shl     $13, %rax
        xor     %rax, %r12
        mov     %r12, %rax
        shr     $7, %rax
        xor     %rax, %r12
        mov     %r12, %rax
        shl     $17, %rax
        xor     %rax, %r12
        mov     %r12, %rax
        ret

/* RAX = a number with a taste for edges. Loses RCX. */
value:
        PICK    8
        mov     %eax, %ecx
        call    random
        cmp     $1, %ecx
        jb      1f                      /* 0: anything */
        je      2f
        cmp     $3, %ecx
        jb      3f
        je      4f
        cmp     $5, %ecx
        jb      5f
        and     $0xff, %eax             /* 5 and up: small */
1:      ret
2:      xor     %eax, %eax              /* 1: the top of a word */
        not     %rax
        ret
3:      and     $GARBAGE_SIZE - 1, %eax /* 2: in the garbage */
        add     $GARBAGE, %eax
        ret
4:      and     $0xfff, %eax            /* 3: across the end of memory */
        add     $TOP - 0x800, %eax
        ret
5:      and     $31, %eax               /* 4: a power of two */
        mov     %eax, %ecx
        mov     $1, %eax
        shl     %cl, %rax
        ret

/* RAX = an address for rings and buffers: never the guest's own code. Loses RCX. */
address:
        PICK    8
        mov     %eax, %ecx
        call    random
        cmp     $1, %ecx
        jb      1f
        je      2f
        cmp     $3, %ecx
        jb      3f
        je      4f
        and     $GARBAGE_SIZE - 16, %eax
        add     $GARBAGE, %eax
        ret
1:      bts     $40, %rax               /* 0: far outside */
        ret
2:      and     $GARBAGE_SIZE - 1, %eax /* 1: unaligned */
        add     $GARBAGE, %eax
        ret
3:      and     $0xfff, %eax            /* 2: across the end of memory */
        add     $TOP - 0x800, %eax
        ret
4:      and     $0x1ffffff0, %eax       /* 3: the PCI window, the ECAM, the APICs */
        add     $0xe0000000, %eax
        ret

/* RBX = the config space of one of the first functions of bus 0. */
function:
        PICK    8
        shl     $15, %eax
        add     $ECAM, %eax
        mov     %eax, %ebx
        ret

/* Writes value to, or reads, RDI in one of the sizes 1, 2, 4, 8. */
store:
        PICK    4
        mov     %eax, %r8d
        call    value
        cmp     $1, %r8d
        jb      1f
        je      2f
        cmp     $3, %r8d
        jb      3f
        mov     %rax, (%rdi)
        ret
1:      mov     %al, (%rdi)
        ret
2:      mov     %ax, (%rdi)
        ret
3:      mov     %eax, (%rdi)
        ret
load:
        PICK    4
        cmp     $1, %eax
        jb      1f
        je      2f
        cmp     $3, %eax
        jb      3f
        mov     (%rdi), %rax
        ret
1:      mov     (%rdi), %al
        ret
2:      mov     (%rdi), %ax
        ret
3:      mov     (%rdi), %eax
        ret

/* A port: any, or near the 8250 and the power registers. */
port:
        call    random
        mov     %eax, %edx
        shr     $32, %rax
        test    $1, %eax
        jz      1f
        shr     $1, %eax
        and     $31, %edx
        test    $1, %eax
        mov     $COM1 - 8, %eax
        jz      2f
        mov     $SLEEP - 8, %eax
2:      add     %eax, %edx
1:      movzwl  %dx, %edx
        mov     $spared, %esi           /* does [port, port+3] touch a spared port? */
3:      movzwl  (%rsi), %eax
        test    %eax, %eax
        jz      5f
        sub     %edx, %eax
        cmp     $3, %eax
        jbe     port
        add     $2, %esi
        jmp     3b
5:      ret

outs:
        call    port
        PICK    4
        mov     %eax, %r8d
        call    value
        cmp     $1, %r8d
        jb      1f
        je      2f
        out     %eax, %dx
        ret
1:      out     %al, %dx
        ret
2:      out     %ax, %dx
        ret

ins:
        call    port
        PICK    4
        cmp     $1, %eax
        jb      1f
        je      2f
        in      %dx, %eax
        ret
1:      in      %dx, %al
        ret
2:      in      %dx, %ax
        ret

config:
        call    function
        PICK    256
        lea     (%rbx,%rax), %rdi
        call    random
        test    $1, %eax
        jz      store
        jmp     load

/* Bytes of a BAR, wherever it now is: the MSI-X table and the virtio structures. */
window:
        call    function
        cmpw    $0x1af4, (%rbx)
        jne     1f
        PICK    8                       /* BAR 0 more often than the others */
        shr     $1, %eax
        jnc     2f
        xor     %eax, %eax
2:      mov     0x10(%rbx,%rax,4), %edi
        and     $~15, %edi
        PICK    0x4000
        add     %eax, %edi
        cmp     $0xc0000000, %edi
        jb      1f                      /* not into RAM: that would be the guest's own affair */
        cmp     $0xfee00000, %edi
        jae     1f
        call    random
        test    $1, %eax
        jz      load
        jmp     store
1:      ret

/* The registers of one virtio structure, in the place they belong. */
structure:
        call    function
        cmpw    $0x1af4, (%rbx)
        jne     1f
        call    virtio_find
        PICK    4
        mov     V_COMMON(%rbp,%rax,8), %rdi
        PICK    64
        add     %rax, %rdi
        mov     $0xc0000000, %eax
        cmp     %rax, %rdi
        jb      1f
        jmp     store
1:      ret

ioapic:
        PICK    64
        mov     $IOAPIC, %edi
        mov     %eax, (%rdi)
        call    value
        mov     %eax, 0x10(%rdi)
        mov     0x10(%rdi), %eax
        ret

/*
 * Brings a device up and kicks it: three times in four on rings that are in
 * order, with descriptors that are not, else on rings that are not either.
 */
device:
        call    function
        cmpw    $0x1af4, (%rbx)
        jne     9f
        mov     $0x10, %eax             /* BARs back to where they work */
0:      movl    $0, (%rbx,%rax)
        add     $4, %eax
        cmp     $0x28, %eax
        jb      0b
        call    virtio_find
        mov     V_COMMON(%rbp), %rdi
        movb    $0, C_STATUS(%rdi)
        movb    $3, C_STATUS(%rdi)
        movl    $0, C_DRIVER_FEATURE_SELECT(%rdi)
        movl    $0, C_DEVICE_FEATURE_SELECT(%rdi)
        call    random
        and     C_DEVICE_FEATURE(%rdi), %eax
        mov     %eax, C_DRIVER_FEATURE(%rdi)
        movl    $1, C_DRIVER_FEATURE_SELECT(%rdi)
        movl    $1, C_DRIVER_FEATURE(%rdi)
        movb    $11, C_STATUS(%rdi)

        PICK    4
        mov     %eax, %r10d             /* 0: rings out of order */
        movzwl  C_NUM_QUEUES(%rdi), %r9d
        cmp     $4, %r9d                /* the first four */
        jbe     1f
        mov     $4, %r9d
1:      dec     %r9d
        js      3f
        mov     %r9w, C_QUEUE_SELECT(%rdi)
        call    random
        and     $7, %eax
        mov     %ax, C_QUEUE_VECTOR(%rdi)
        test    %r10d, %r10d
        jz      2f
        movw    $RING, C_QUEUE_SIZE(%rdi)
        mov     %r9d, %edx
        shl     $12, %edx
        add     $GARBAGE, %edx          /* RDX = the queue's page */
        mov     %rdx, C_QUEUE_DESC(%rdi)
        lea     AVAILABLE(%rdx), %rax
        mov     %rax, C_QUEUE_DRIVER(%rdi)
        lea     USED(%rdx), %rax
        mov     %rax, C_QUEUE_DEVICE(%rdi)
        call    fill
        movw    $1, C_QUEUE_ENABLE(%rdi)
        jmp     1b
2:      call    value
        mov     %ax, C_QUEUE_SIZE(%rdi)
        call    address
        mov     %rax, C_QUEUE_DESC(%rdi)
        call    address
        mov     %rax, C_QUEUE_DRIVER(%rdi)
        call    address
        mov     %rax, C_QUEUE_DEVICE(%rdi)
        movw    $1, C_QUEUE_ENABLE(%rdi)
        jmp     1b

3:      movb    $15, C_STATUS(%rdi)
        mov     V_NOTIFY(%rbp), %rdi
        mov     $8, %r9d
5:      PICK    4                       /* more, and the kick */
        mov     %eax, %edx
        shl     $12, %edx
        add     $GARBAGE, %edx
        mov     %eax, %ecx
        call    random
        and     $7, %eax
        add     %ax, AVAILABLE + 2(%rdx)
        mov     %ecx, %eax
        imul    V_MULT(%rbp), %eax
        and     $0xfff, %eax
        mov     %cx, (%rdi,%rax)
        dec     %r9d
        jnz     5b
9:      ret

/* Makes a ring of RING nearly sensible requests of the page RDX. Loses RAX, RCX, RSI, R8, R11. */
fill:
        mov     $RING, %r8d
        mov     %edx, %esi
1:      call    random                  /* descriptors: address, length, flags, next */
        mov     %eax, %ecx
        and     $0x7ff0, %eax
        add     $GARBAGE + 0x4000, %eax
        test    $0x70000, %ecx
        jnz     8f
        call    address
8:      mov     %rax, (%rsi)
        mov     %rax, %r11
        sub     $GARBAGE + 0x4000, %rax /* the first pages are rings */
        cmp     $GARBAGE_SIZE - 0x4010, %rax
        ja      6f
        call    random                  /* a request header: a type and a small sector */
        mov     %eax, %ecx
        and     $15, %eax
        mov     %rax, (%r11)
        shr     $16, %ecx
        and     $0xfff, %ecx
        mov     %rcx, 8(%r11)
6:      call    random
        mov     %eax, %ecx
        and     $0x1ff, %eax
        test    $3, %ecx
        jnz     2f
        call    value
2:      mov     %eax, 8(%rsi)
        call    random
        mov     %eax, %ecx
        and     $3, %eax                /* chained, writable; now and then indirect */
        test    $0x1f0, %ecx
        jnz     3f
        or      $4, %eax
3:      mov     %ax, 12(%rsi)
        shr     $16, %ecx
        and     $RING - 1, %ecx
        mov     %cx, 14(%rsi)
        add     $16, %esi
        dec     %r8d
        jnz     1b

        movw    $0, AVAILABLE(%rdx)     /* flags, then where it is, then entries */
        call    random
        and     $RING - 1, %eax
        mov     %ax, AVAILABLE + 2(%rdx)
        mov     $RING, %r8d
        lea     AVAILABLE + 4(%rdx), %rsi
4:      call    random
        and     $0xffff, %eax
        test    $0x3f00, %eax
        jz      5f
        and     $RING - 1, %eax
5:      mov     %ax, (%rsi)
        add     $2, %esi
        dec     %r8d
        jnz     4b
        ret

        .section .rodata
        .balign 8
attacks:
        .quad   outs, ins, config, config, window, structure, ioapic, device
spared:                                 /* ports, ended by 0 */
        .word   SLEEP, RESET, PVPANIC, 0x64, 0xcf9
        .word   0xf4, 0xf5, 0xf6, 0xf7, 0x501, 0x502, 0x503, 0x504, 0

        .section .bss
        .balign 8
up:     .skip   8
ap_seed:
        .skip   8
ap_steps:
        .skip   8
records:
        .skip   V_SIZE * MAX_APS
