package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"disco/integration/guest"
)

// trafficBlock is how much of a disk is written and read back at once.
const trafficBlock = 256 << 10

// tryTraffic keeps a disk and network connections busy together, checks every
// byte, and leaves PatternGuest on the disk.
func tryTraffic(arg string) error {
	words := strings.Split(arg, "/")
	if len(words) < 2 {
		return fmt.Errorf("traffic=%s: want SECONDS/DEV/ADDRESS:PORT", arg)
	}
	d, err := seconds(words[0])
	if err != nil {
		return err
	}
	disk, err := openDisk(words[1], os.O_RDWR|unix.O_DIRECT)
	if err != nil {
		return err
	}
	defer disk.Close()
	var all sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	fail := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		errs = append(errs, err)
	}
	end := time.Now().Add(d)

	workers := int64(2 * runtime.NumCPU())
	part := disk.size / workers / trafficBlock * trafficBlock
	if part == 0 {
		return fmt.Errorf("%s: %d bytes are too few for %d writers", disk.Name(), disk.size, workers)
	}
	passes := make([]int, workers)
	for i := range workers {
		all.Go(func() {
			last := (i + 1) * part
			if i == workers-1 {
				last = disk.size
			}
			n, err := churn(disk.File, i*part, last, end)
			passes[i] = n
			if err != nil {
				fail(fmt.Errorf("%s: %w", disk.Name(), err))
			}
		})
	}
	echoed := make([]uint64, len(words)-2)
	again := retransmitted()
	for i, to := range words[2:] {
		all.Go(func() {
			n, err := exchange(to, uint32(i), end)
			echoed[i] = n
			if err != nil {
				fail(fmt.Errorf("%s: after %d bytes: %w", to, n, err))
			}
		})
	}
	all.Wait()
	blocks := 0
	for _, n := range passes {
		blocks += n
	}
	say("traffic-disk=%s blocks=%d", words[1], blocks)
	for i, to := range words[2:] {
		say("traffic-net=%s bytes=%d", to, echoed[i])
	}
	say("traffic-retransmitted=%d", retransmitted()-again)
	if err := disk.Sync(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// retransmitted is how many TCP segments this guest has sent again: frames that
// were lost, or acknowledged late.
func retransmitted() uint64 {
	var names []string
	for line := range strings.Lines(readText("/proc/net/snmp")) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] != "Tcp:" {
			continue
		}
		if names == nil {
			names = words
			continue
		}
		for i, name := range names {
			if name == "RetransSegs" && i < len(words) {
				n, _ := strconv.ParseUint(words[i], 10, 64)
				return n
			}
		}
	}
	return 0
}

// churn writes and reads back, piece by piece and past the page cache, the part
// of a disk from at to last, over and over until the end, and says how many
// blocks that were. Its last pass leaves PatternGuest.
func churn(d *os.File, at, last int64, end time.Time) (blocks int, err error) {
	p, err := unix.Mmap(-1, 0, 2*trafficBlock, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return 0, fmt.Errorf("mmap: %w", err)
	}
	defer unix.Munmap(p)
	for seed := uint32(at) + 1; ; seed++ {
		final := !time.Now().Before(end)
		if final {
			seed = guest.PatternGuest
		}
		for from := at; from < last; from += trafficBlock {
			n := min(trafficBlock, last-from)
			wrote, got := p[:n], p[trafficBlock:trafficBlock+n]
			guest.Pattern(wrote, seed, uint64(from/guest.SectorSize))
			// Pieces of 4 KiB up to the whole, of another size each time.
			piece := int64(4096) << ((uint32(blocks) + seed) % 7)
			if err := inPieces(wrote, from, piece, d.WriteAt); err != nil {
				return blocks, err
			}
			clear(got)
			if err := inPieces(got, from, piece, d.ReadAt); err != nil {
				return blocks, err
			}
			if i := mismatch(got, wrote); i >= 0 {
				return blocks, fmt.Errorf("byte %d is not what was written, in pieces of %d", from+int64(i), piece)
			}
			blocks++
		}
		if final {
			return blocks, nil
		}
	}
}

func inPieces(p []byte, at, piece int64, do func([]byte, int64) (int, error)) error {
	for len(p) > 0 {
		n := min(piece, int64(len(p)))
		if _, err := do(p[:n], at); err != nil {
			return err
		}
		p, at = p[n:], at+n
	}
	return nil
}

// exchange sends a pattern to an echo server until the end, checks what comes
// back, and says how much that was.
func exchange(to string, seed uint32, end time.Time) (echoed uint64, err error) {
	fd, err := dial(to)
	if err != nil {
		return 0, err
	}
	c := os.NewFile(uintptr(fd), to)
	defer c.Close()
	sent := make(chan error, 1)
	go func() {
		p := make([]byte, 64<<10)
		for sector := uint64(0); time.Now().Before(end); sector += uint64(len(p) / guest.SectorSize) {
			guest.Pattern(p, seed, sector)
			if _, err := c.Write(p); err != nil {
				sent <- err
				return
			}
		}
		sent <- unix.Shutdown(fd, unix.SHUT_WR)
	}()
	got, want := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(c, got)
		if n > 0 {
			guest.Pattern(want, seed, echoed/guest.SectorSize)
			if i := mismatch(got[:n], want[:n]); i >= 0 {
				return echoed, fmt.Errorf("byte %d came back wrong", i)
			}
			echoed += uint64(n)
		}
		if err == io.EOF {
			return echoed, <-sent
		}
		if err != nil {
			return echoed, err
		}
	}
}

// dial connects to ADDRESS:PORT, of IPv4.
func dial(to string) (fd int, err error) {
	address, p, _ := strings.Cut(to, ":")
	port, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return -1, fmt.Errorf("%q is no ADDRESS:PORT", to)
	}
	at := &unix.SockaddrInet4{Port: int(port)}
	words := strings.Split(address, ".")
	if len(words) != 4 {
		return -1, fmt.Errorf("%q is no IPv4 address", address)
	}
	for i, w := range words {
		b, err := strconv.ParseUint(w, 10, 8)
		if err != nil {
			return -1, fmt.Errorf("%q is no IPv4 address", address)
		}
		at.Addr[i] = byte(b)
	}
	if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	if err := unix.Connect(fd, at); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("connect: %w", err)
	}
	return fd, nil
}
