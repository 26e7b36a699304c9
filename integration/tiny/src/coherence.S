/*
 * One of several CPUs that share pages and check all they read. RSI points at
 * its parameters. Nothing is on a stack and nothing else is written.
 *
 * Every page has a counter for all, and for each CPU j a word A[j] and, for its
 * neighbour page, a word B[j]. A CPU picks a page, sees that its own words are
 * what it last wrote, counts them up, A first, and adds to the counter with a
 * locked instruction. Of another CPU it reads B and then A: B must be no less
 * than when it looked last, and A, which was written before B, no less than B.
 */
#define SPARE_PORT  0x510

/* Offsets of the parameters, 8 bytes each. */
#define ID          0           /* of this CPU, its index j */
#define CPU_MASK    8           /* number of CPUs - 1 */
#define PAGE_MASK   16          /* number of pages - 1 */
#define PAGES       24          /* their address */
#define NOTES       32          /* address of this CPU's notes: (2 + CPU_MASK) * number of pages words */
#define COUNT       40          /* how often */
#define SEED        48

/* Offsets in a page. */
#define A           64
#define B           72

        .section .text
        .code64
        .globl  _start
_start:
        mov     ID(%rsi), %r8
        mov     CPU_MASK(%rsi), %r14
        mov     PAGE_MASK(%rsi), %r10
        mov     PAGES(%rsi), %r11
        mov     NOTES(%rsi), %r12
        mov     COUNT(%rsi), %r13
        mov     SEED(%rsi), %r9
        mov     %r10, %r15
        inc     %r15
        shl     $3, %r15                /* bytes of notes for one CPU */

1:      mov     %r9, %rax               /* xorshift64 */
        shl     $13, %rax
        xor     %rax, %r9
        mov     %r9, %rax
        shr     $7, %rax
        xor     %rax, %r9
        mov     %r9, %rax
        shl     $17, %rax
        xor     %rax, %r9

        mov     %r9, %rcx               /* the page's number, its address, and its neighbour's */
        and     %r10, %rcx
        mov     %rcx, %rdi
        shl     $12, %rdi
        add     %r11, %rdi
        mov     %rcx, %rsi
        xor     $1, %rsi
        shl     $12, %rsi
        add     %r11, %rsi

        mov     %r8, %rdx               /* our own words */
        shl     $4, %rdx
        mov     (%r12,%rcx,8), %rbx
        mov     $2, %eax
        cmp     A(%rdi,%rdx), %rbx
        jne     end
        mov     $3, %eax
        cmp     B(%rsi,%rdx), %rbx
        jne     end
        inc     %rbx
        lock incq (%rdi)
        mov     %rbx, A(%rdi,%rdx)
        mov     %rbx, (%r12,%rcx,8)
        mov     %rbx, B(%rsi,%rdx)

        mov     %r9, %rdx               /* another's */
        shr     $32, %rdx
        and     %r14, %rdx
        mov     %rdx, %rbp
        inc     %rbp
        imul    %r15, %rbp
        add     %r12, %rbp
        shl     $4, %rdx
        mov     B(%rsi,%rdx), %rbx
        mov     $4, %eax
        cmp     (%rbp,%rcx,8), %rbx
        jb      end
        mov     %rbx, (%rbp,%rcx,8)
        mov     $5, %eax
        cmp     %rbx, A(%rdi,%rdx)
        jb      end

        dec     %r13
        jnz     1b
        mov     $1, %eax

end:    mov     $SPARE_PORT, %edx       /* 1: all was well */
        out     %eax, %dx
2:      hlt
        jmp     2b
