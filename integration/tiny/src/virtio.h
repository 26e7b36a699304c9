/*
 * Virtio devices on PCI (virtio 1.2 §4.1): finding a function's structures. The
 * results go to a record of the caller's, at RBP, so that CPUs do not meet.
 */

#define V_COMMON    8           /* addresses; 8 times their cfg_type */
#define V_NOTIFY    16
#define V_ISR       24
#define V_DEVICE    32
#define V_TABLE     40          /* the MSI-X table's address */
#define V_MULT      48          /* notify_off_multiplier */
#define V_SIZE      56

/* virtio_pci_common_cfg (virtio 1.2 §4.1.4.3) */
#define C_DEVICE_FEATURE_SELECT 0
#define C_DEVICE_FEATURE        4
#define C_DRIVER_FEATURE_SELECT 8
#define C_DRIVER_FEATURE        12
#define C_CONFIG_VECTOR         16
#define C_NUM_QUEUES            18
#define C_STATUS                20
#define C_QUEUE_SELECT          22
#define C_QUEUE_SIZE            24
#define C_QUEUE_VECTOR          26
#define C_QUEUE_ENABLE          28
#define C_QUEUE_NOTIFY_OFF      30
#define C_QUEUE_DESC            32
#define C_QUEUE_DRIVER          40
#define C_QUEUE_DEVICE          48

/* Where BARs go that are not below 4 GiB yet: 1 MiB a device, 128 KiB a BAR. */
#define BARS 0xd0000000

/*
 * RBX = the config space of the first function on bus 0 with this device and vendor
 * ID; RBP, the record, stays.
 */
        .macro  VIRTIO_SEEK id, text:vararg
        mov     $ECAM, %ebx
.Lseek\@:
        cmpl    $\id, (%rbx)
        je      .Lsought\@
        add     $0x1000, %ebx
        cmp     $ECAM + 0x100000, %ebx
        jb      .Lseek\@
        FAIL    \text
.Lsought\@:
        .endm

/*
 * Resets the device whose record is at RBP and agrees on VIRTIO_F_VERSION_1 and
 * nothing else (virtio 1.2 §3.1.1). RDI = its common configuration.
 */
        .macro  VIRTIO_AGREE text:vararg
        mov     V_COMMON(%rbp), %rdi
        movb    $0, C_STATUS(%rdi)
.Lreset\@:
        cmpb    $0, C_STATUS(%rdi)
        jne     .Lreset\@
        movb    $1, C_STATUS(%rdi)
        movb    $3, C_STATUS(%rdi)
        movl    $0, C_DRIVER_FEATURE_SELECT(%rdi)
        movl    $0, C_DRIVER_FEATURE(%rdi)
        movl    $1, C_DRIVER_FEATURE_SELECT(%rdi)
        movl    $1, C_DRIVER_FEATURE(%rdi)
        movb    $11, C_STATUS(%rdi)
        testb   $8, C_STATUS(%rdi)
        jnz     .Lagreed\@
        FAIL    \text
.Lagreed\@:
        .endm

/* In .bss: a queue of n descriptors (virtio 1.2 §2.7), at labels of its parts. */
        .macro  VIRTIO_QUEUE n
descriptors:
        .skip   16 * \n
        .balign 64
available:
        .skip   6 + 2 * \n
        .balign 64
used:   .skip   6 + 8 * \n
        .endm

/*
 * Enables the queue selected, which lies at descriptors, available and used, and
 * says DRIVER_OK. RDI is the common configuration; R13 = the queue's doorbell.
 */
        .macro  VIRTIO_ENABLE
        mov     $descriptors, %eax
        mov     %eax, C_QUEUE_DESC(%rdi)
        movl    $0, C_QUEUE_DESC + 4(%rdi)
        mov     $available, %eax
        mov     %eax, C_QUEUE_DRIVER(%rdi)
        movl    $0, C_QUEUE_DRIVER + 4(%rdi)
        mov     $used, %eax
        mov     %eax, C_QUEUE_DEVICE(%rdi)
        movl    $0, C_QUEUE_DEVICE + 4(%rdi)
        movw    $1, C_QUEUE_ENABLE(%rdi)
        movzwl  C_QUEUE_NOTIFY_OFF(%rdi), %eax
        imul    V_MULT(%rbp), %eax
        add     V_NOTIFY(%rbp), %rax
        mov     %rax, %r13
        movb    $15, C_STATUS(%rdi)
        .endm

/* Has entry 0 of the device's MSI-X table interrupt the boot CPU; RBP is its record. */
        .macro  VIRTIO_INTERRUPT vector
        mov     V_TABLE(%rbp), %rdi
        movl    $0xfee00000, (%rdi)
        movl    $0, 4(%rdi)
        movl    $\vector, 8(%rdi)
        movl    $0, 12(%rdi)
        .endm

/* The queue selected interrupts by entry 0. RDI is the common configuration. */
        .macro  VIRTIO_QUEUE_INTERRUPTS text:vararg
        movw    $0, C_QUEUE_VECTOR(%rdi)
        cmpw    $0, C_QUEUE_VECTOR(%rdi)
        je      .Lvector\@
        FAIL    \text
.Lvector\@:
        .endm

/*
 * Descriptors 0 to 2: a request of a disk (virtio 1.2 §5.2.6) to read its first R12D
 * pages to a buffer, with its header and status at these labels.
 */
        .macro  VIRTIO_READ buffer
        movq    $header, descriptors            /* the header: to read sector 0 */
        movl    $16, descriptors + 8
        movl    $0x10001, descriptors + 12      /* VIRTQ_DESC_F_NEXT, 1 */
        movq    $\buffer, descriptors + 16
        mov     %r12d, %eax
        shl     $12, %eax
        mov     %eax, descriptors + 24
        movl    $0x20003, descriptors + 28      /* and VIRTQ_DESC_F_WRITE, 2 */
        movq    $status, descriptors + 32
        movl    $1, descriptors + 40
        movl    $2, descriptors + 44
        .pushsection .data
        .balign 16
header: .long   0, 0                            /* VIRTIO_BLK_T_IN */
        .quad   0
        .popsection
        .pushsection .bss
status: .skip   1
        .popsection
        .endm

        .section .text
/*
 * Fills the record at RBP for the function whose config space is at RBX, after
 * placing its BARs below 4 GiB, and enables decoding, bus mastering and MSI-X.
 * Also loses R8 and R9.
 */
virtio_find:
        movw    $0, 4(%rbx)
        movzbl  0x34(%rbx), %r8d
        mov     $48, %r9d
1:      and     $0xfc, %r8d
        jz      9f
        movzbl  (%rbx,%r8), %eax
        cmp     $9, %eax
        je      3f
        cmp     $0x11, %eax
        je      4f
2:      movzbl  1(%rbx,%r8), %r8d
        dec     %r9d
        jnz     1b
9:      movw    $6, 4(%rbx)
        ret

3:      movzbl  4(%rbx,%r8), %eax       /* virtio_pci_cap */
        cmp     $5, %eax
        ja      2b
        call    bar
        mov     8(%rbx,%r8), %ecx
        add     %rcx, %rax
        movzbl  3(%rbx,%r8), %ecx
        cmp     $4, %ecx
        ja      2b
        mov     %rax, (%rbp,%rcx,8)
        cmp     $2, %ecx
        jne     2b
        mov     16(%rbx,%r8), %eax
        mov     %eax, V_MULT(%rbp)
        jmp     2b

4:      mov     4(%rbx,%r8), %ecx       /* MSI-X: BIR and offset */
        mov     %ecx, %eax
        and     $7, %eax
        cmp     $5, %eax
        ja      2b
        call    bar
        and     $~7, %ecx
        add     %rcx, %rax
        mov     %rax, V_TABLE(%rbp)
        movw    $0x8000, 2(%rbx,%r8)
        jmp     2b

/* RAX = the address of BAR number EAX, which is placed first if need be. Keeps RCX. */
bar:
        push    %rcx
        mov     %eax, %ecx
        lea     0x10(%rbx,%rax,4), %rdx
        mov     (%rdx), %eax
        mov     %eax, %esi
        and     $6, %esi                /* 4: a 64-bit BAR */
        cmp     $4, %esi
        jne     1f
        cmpl    $0, 4(%rdx)
        jne     2f
1:      and     $~15, %eax
        jnz     3f
2:      mov     %ebx, %eax
        and     $0xf8000, %eax
        shl     $5, %eax
        shl     $17, %ecx
        lea     BARS(%rax,%rcx), %eax
        mov     %eax, (%rdx)
        cmp     $4, %esi
        jne     3f
        movl    $0, 4(%rdx)
3:      pop     %rcx
        ret
