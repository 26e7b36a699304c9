/*
 * Two CPUs that send each other interrupts, in step, and have their local timers
 * ticking, until a read of SPARE_PORT (4 bytes) gives something but 0. Then both
 * wait for ten more ticks. All the while they look after their registers:
 * general ones and, with sse=1, XMM. The CPUs are moved meanwhile, by the test.
 * With deadline=1 the timers are in TSC-deadline mode; with halt=1 CPU 1 waits
 * in hlt, where its timer wakes it if nothing else does.
 */
#include "tiny.h"
#include "ap.h"

#define PING     0x40
#define PONG     0x50
#define TICK     0x30
#define DEADLINE 0x6e0          /* IA32_TSC_DEADLINE */
#define PERIOD   2000000        /* bus cycles of 1 ns, or TSC cycles */
#define PATTERN  0x0123456789abcdef

main:
        ARG     deadline, 0
        mov     %eax, deadline
        ARG     halt, 0
        mov     %eax, halt
        ARG     sse, 0
        mov     %eax, sse
        GATE    PING, ping
        GATE    PONG, pong
        GATE    TICK, tick
        call    interrupts
        mov     $1, %ebx
        call    start
1:      WAIT
        cmpl    $0, up
        je      1b
        xor     %ebx, %ebx
        call    prepare
        SAY     "move: up\n"
        sti

round:  mov     $SPARE_PORT, %edx
        in      %dx, %eax
        test    %eax, %eax
        jnz     2f
        mov     $X2_ICR, %ecx
        mov     $PING, %eax
        mov     $1, %edx
        incl    sent
        wrmsr
1:      WAIT
        call    inspect
        mov     pongs, %eax
        cmp     sent, %eax
        jb      1b
        jmp     round

2:      mov     ticks, %ebp
        add     $10, %ebp
3:      WAIT
        cmp     %ebp, ticks
        jb      3b
        mov     ticks + 4, %ebp
        add     $10, %ebp
4:      WAIT
        cmp     %ebp, ticks + 4
        jb      4b
        SAY     "move: "
        mov     broken, %edi
        call    putdec
        SAY     " registers changed, "
        mov     pongs, %edi
        sub     sent, %edi
        call    putdec
        SAY     " answers too many\n"
        ret

ap:     call    interrupts
        call    prepare
        lock incl up
        sti
1:      call    inspect
        cmpl    $0, halt
        je      2f
        hlt
        jmp     1b
2:      WAIT
        jmp     1b

/* Fills the registers of CPU RBX, differently on each, and starts its timer. */
prepare:
        mov     $PATTERN, %rax
        add     %rbx, %rax
        mov     %rax, %r8
        lea     1(%rax), %r9
        lea     2(%rax), %r10
        lea     3(%rax), %r11
        lea     4(%rax), %r12
        lea     5(%rax), %r13
        lea     6(%rax), %r14
        lea     7(%rax), %r15
        cmpl    $0, sse
        je      1f
        mov     %cr4, %rax
        or      $0x600, %eax            /* OSFXSR, OSXMMEXCPT */
        mov     %rax, %cr4
        mov     %cr0, %rax
        or      $2, %eax                /* MP; EM and TS are clear */
        mov     %rax, %cr0
        mov     %rbx, %rdi
        shl     $5, %rdi
        mov     %r8, vectors(%rdi)
        mov     %r9, vectors + 8(%rdi)
        mov     %r10, vectors + 16(%rdi)
        mov     %r11, vectors + 24(%rdi)
        movdqu  vectors(%rdi), %xmm0
        movdqu  vectors + 16(%rdi), %xmm5
1:      mov     $X2_DIVIDE, %ecx
        mov     $0xb, %eax              /* by 1 */
        xor     %edx, %edx
        wrmsr
        mov     $X2_LVT, %ecx
        mov     $0x20000 | TICK, %eax   /* periodic */
        cmpl    $0, deadline
        je      2f
        mov     $0x40000 | TICK, %eax
        wrmsr
        jmp     arm
2:      wrmsr
        mov     $X2_COUNT, %ecx
        mov     $PERIOD, %eax
        wrmsr
        ret

arm:    rdtsc
        shl     $32, %rdx
        or      %rdx, %rax
        add     $PERIOD, %rax
        mov     %rax, %rdx
        shr     $32, %rdx
        mov     $DEADLINE, %ecx
        wrmsr
        ret

        .macro  EXPECT register, offset
        lea     -\offset(\register), %rdx
        cmp     %rdx, %rax
        je      9f
        lock incl broken
9:
        .endm

/* Counts registers of CPU RBX that are not what `prepare` made them. */
inspect:
        mov     $PATTERN, %rax
        add     %rbx, %rax
        EXPECT  %r8, 0
        EXPECT  %r9, 1
        EXPECT  %r10, 2
        EXPECT  %r11, 3
        EXPECT  %r12, 4
        EXPECT  %r13, 5
        EXPECT  %r14, 6
        EXPECT  %r15, 7
        cmpl    $0, sse
        je      1f
        mov     %rbx, %rdi
        shl     $5, %rdi
        movq    $0, found(%rdi)
        movdqu  %xmm0, found(%rdi)
        movdqu  %xmm5, found + 16(%rdi)
        mov     found(%rdi), %rdx
        EXPECT  %rdx, 0
        mov     found + 8(%rdi), %rdx
        EXPECT  %rdx, 1
        mov     found + 16(%rdi), %rdx
        EXPECT  %rdx, 2
        mov     found + 24(%rdi), %rdx
        EXPECT  %rdx, 3
1:      ret

ping:   SAVE
        mov     $X2_ICR, %ecx
        mov     $PONG, %eax
        xor     %edx, %edx
        wrmsr
        DISMISS

pong:   SAVE
        lock incl pongs
        DISMISS

tick:   SAVE
        mov     $X2_ID, %ecx
        rdmsr
        lock incl ticks(, %rax, 4)
        cmpl    $0, deadline
        je      1f
        call    arm
1:      DISMISS

        .section .bss
        .balign 16
vectors:
        .skip   64
found:  .skip   64
ticks:  .skip   8
up:     .skip   4
deadline:
        .skip   4
halt:   .skip   4
sse:    .skip   4
sent:   .skip   4
pongs:  .skip   4
broken: .skip   4
