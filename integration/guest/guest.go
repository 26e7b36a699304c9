// Package guest is the default guest's side of the tests: the words it prints
// and the patterns it expects on disks. The guest itself is Debian's cloud kernel
// with an initramfs that mkinitrd writes, in which init is the only process that
// is not started by hand.
//
// # What the guest prints
//
// Every line of its own begins with Prefix and goes to the console that the
// kernel command line names last; the rest is key=value words, so that a test can
// read them. The first line is Marker, before any module is loaded: with
// console=hvc0 alone it appears on COM1, since hvc0 is a module's. After each
// task comes
//
//	disco-guest: task=NAME result=ok
//	disco-guest: task=NAME result=failed reason=TEXT TO THE END OF THE LINE
//
// and at the end `disco-guest: end=poweroff`. The guest powers off after its
// tasks, whether or not they failed. A press of the power button powers it off at
// any time, with `disco-guest: button=power`, except during spin and hang.
//
// # Words of the kernel command line
//
//	disco.task=NAME[=ARG],…  run these tasks in this order; default: hello
//	disco.shell              then an interactive shell on the console; power off when it ends
//
// # Tasks
//
//	hello              what the guest sees: kernel=, cpus=, memory-kib=, disk=…, net=…, vsock-cid=…
//	cpus               a thread pinned to each CPU in turn; cpus= ran=
//	memory[=PERCENT]   fills that share of the free memory (default 50), checks it; bytes=
//	load=SECONDS       every CPU computes and interrupts the others; load-hops= rescheduled= called=
//	                   flushed=, and for each load-cpu= hops= ticks= (of its timer)
//	stress=SECONDS     (with an initrd that has it) stress-ng fills memory and checks it
//	clock=SECONDS      threads on different CPUs pass the time to and fro, and it must not go back;
//	                   clock-exchanges=
//	traffic=SECONDS/DEV/ADDRESS:PORT/…
//	                   writes DEV and reads it back while it exchanges data with echo servers,
//	                   checks it all, and leaves PatternGuest; blocks= (of 256 KiB)
//	                   bytes= (each server's) traffic-retransmitted= (TCP segments)
//	disk[=DEV]         checks that DEV (default vda) holds PatternHost, writes PatternGuest over
//	                   it, flushes, and checks what it reads back; dev= bytes=
//	disk-read[=DEV]    only checks that DEV holds PatternHost
//	disk-readonly[=DEV] checks PatternHost, and that DEV refuses to be opened for writing or to be written
//	disk-zero[=DEV]    writes zeroes over DEV's first half and discards its second half by
//	                   BLKZEROOUT and BLKDISCARD, and checks the zeroes
//	net                DHCP on every Ethernet interface; net= mac= address= gateway=
//	address=IF/ADDRESS/BITS
//	                   gives an interface an address without DHCP
//	http-get=URL       (after net) fetches URL, prints `http-body=LINE` for each line
//	http-serve=PORT    (after net) prints `http-serve=PORT`, answers GET / with PageBody, GET /pattern/BYTES
//	                   with so much of PatternHost, and ends at GET /stop
//	ping=NAME          (after net) waits until NAME answers a ping; ping=LINE
//	http-pattern=HOST:PORT/BYTES
//	                   (after net) waits until HOST serves it, fetches /pattern/BYTES and checks
//	                   it; bytes=
//	vsock-echo=PORT    prints `vsock-echo=PORT cid=N`, echoes one connection until its end; bytes=
//	vsock-connect=PORT connects to the host's PORT, sends PageBody, prints `vsock-reply=LINE`
//	rebind             takes each virtio device but the console from its driver and gives it
//	                   back; rebound=
//	folder=TAG[/OPTION…]
//	                   mounts the shared folder TAG at /mnt/TAG, with options of mount
//	                   such as dax or ro
//	script=FILE        runs FILE with busybox's shell; it fails if the script does
//	rng                reads 64 bytes from /dev/hwrng; rng=NAME
//	wait-button        prints `waiting=button` and waits for the power button
//	reboot             reboots
//	reboot-once[=DEV]  reboots if sector 0 of DEV (default vda) lacks a mark, having put it there;
//	                   else takes the mark away: rebooted=1
//	poweroff           powers off at once, without the tasks that follow
//	panic              makes the kernel panic
//	spin               every CPU runs a loop for ever; the power button does nothing
//	hang               nothing runs, for ever; the power button does nothing
//
// Not done: users and passwords, a kernel other than Debian's (mkinitrd takes any
// modules tree, but the tests are made for that one), IPv6 addresses other than
// the link's own.
package guest

import "encoding/binary"

const (
	// Prefix begins every line that the guest's init prints.
	Prefix = "disco-guest: "
	// Marker is the guest's first line from user space.
	Marker = Prefix + "userspace"
	// PageBody is what http-serve answers to GET /, and what vsock-connect sends.
	PageBody = "hello from the disco guest\n"
)

// SectorSize is the unit of Pattern, in bytes.
const SectorSize = 512

// Seeds of the patterns on a test disk.
const (
	PatternHost  = 0x484f5354 // what the host writes before the guest starts
	PatternGuest = 0x47554553 // what the guest leaves
)

// Pattern fills p with what a test disk holds from the given sector on: bytes
// that depend on the seed, the sector and the place in it, so that sectors that
// change places are noticed. len(p) is a multiple of SectorSize.
func Pattern(p []byte, seed uint32, sector uint64) {
	for len(p) >= SectorSize {
		x := sector<<32 | uint64(seed)
		for i := 0; i < SectorSize; i += 8 {
			x += weyl
			binary.LittleEndian.PutUint64(p[i:], mix(x))
		}
		p = p[SectorSize:]
		sector++
	}
}

// Word is the first of the eight-byte words of a sector of Pattern.
func Word(seed uint32, sector uint64) uint64 { return mix((sector<<32 | uint64(seed)) + weyl) }

const weyl = 0x9e3779b97f4a7c15

// mix is the finalizer of splitmix64 (Steele et al., OOPSLA'14).
func mix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
