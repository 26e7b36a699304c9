package uffd

import (
	"errors"
	"os"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const page = 4096

// mapping is a new file of n pages, mapped twice: the first is registered.
func mapping(t *testing.T, u *FD, n int) (watched, plain []byte) {
	t.Helper()
	fd, err := unix.MemfdCreate("uffd", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, int64(n)*page); err != nil {
		t.Fatal(err)
	}
	for _, b := range []*[]byte{&watched, &plain} {
		if *b, err = unix.Mmap(fd, 0, n*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Munmap(*b) })
	}
	if err := u.Register(watched); err != nil {
		t.Fatal(err)
	}
	return watched, plain
}

// access reads or writes a byte by a system call, which may wait for a fault.
func access(call uintptr, b []byte) <-chan error {
	done := make(chan error, 1)
	go func() {
		c := [1]byte{'x'}
		local := unix.Iovec{Base: &c[0], Len: 1}
		remote := unix.RemoteIovec{Base: uintptr(unsafe.Pointer(&b[0])), Len: 1}
		if _, _, errno := unix.Syscall6(call, uintptr(os.Getpid()), uintptr(unsafe.Pointer(&local)), 1, uintptr(unsafe.Pointer(&remote)), 1, 0); errno != 0 {
			done <- errno
		}
		close(done)
	}()
	return done
}

func opened(t *testing.T) *FD {
	t.Helper()
	u, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := u.Close(); err != nil {
			t.Error(err)
		}
	})
	return u
}

func one(t *testing.T, u *FD) Event {
	t.Helper()
	var events [MaxEvents]Event
	for {
		n, err := u.Read(events[:])
		if err != nil || n > 1 {
			t.Fatalf("%d events, %v", n, err)
		}
		if n == 1 {
			return events[0]
		}
	}
}

func TestHostFaults(t *testing.T) {
	u := opened(t)
	watched, plain := mapping(t, u, 8)
	copy(plain, make([]byte, 6*page)) // the file has six pages

	done := access(unix.SYS_PROCESS_VM_READV, watched[page:])
	e := one(t, u)
	if e.Addr != uintptr(unsafe.Pointer(&watched[page])) || e.Protect || e.Write {
		t.Errorf("a read of an unmapped page: %+v", e)
	}
	if n, err := u.Continue(watched[page:]); err != nil || n != 5*page {
		t.Errorf("continued %d bytes, %v", n, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n, err := u.Continue(watched[page : 2*page]); err != nil || n != 0 {
		t.Errorf("continued %d bytes of a mapped page, %v", n, err)
	}
	if n, err := u.Continue(watched[7*page:]); err != nil || n != 0 {
		t.Errorf("continued %d bytes that the file does not have, %v", n, err)
	}

	if err := u.Protect(watched[page : 3*page]); err != nil {
		t.Fatal(err)
	}
	if err := <-access(unix.SYS_PROCESS_VM_READV, watched[page:]); err != nil {
		t.Error(err)
	}
	done = access(unix.SYS_PROCESS_VM_WRITEV, watched[2*page:])
	if e := one(t, u); e.Addr != uintptr(unsafe.Pointer(&watched[2*page])) || !e.Protect || !e.Write || e.Thread == 0 {
		t.Errorf("a store to a protected page: %+v", e)
	}
	if plain[2*page] != 0 {
		t.Error("it went through")
	}
	if err := u.Wake(watched[2*page : 3*page]); err != nil {
		t.Error(err)
	}
	one(t, u) // it tries again
	if err := u.Unprotect(watched[2*page : 3*page]); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil || plain[2*page] != 'x' {
		t.Errorf("an unprotected store: %q, %v", plain[2*page], err)
	}
	// A page that the file does not have raises none.
	if err := <-access(unix.SYS_PROCESS_VM_WRITEV, watched[6*page:]); err != nil {
		t.Error(err)
	}
}

func TestHostRefusals(t *testing.T) {
	u := opened(t)
	private, err := unix.Mmap(-1, 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(private)
	for name, err := range map[string]error{
		"register private memory":           u.Register(private),
		"protect unregistered memory":       u.Protect(private),
		"register what is not page-aligned": u.Register(private[1:]),
	} {
		if err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestHostStop(t *testing.T) {
	u := opened(t)
	done := make(chan error)
	go func() {
		_, err := u.Read(make([]Event, MaxEvents))
		done <- err
	}()
	time.Sleep(10 * time.Millisecond)
	if err := u.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, ErrStopped) {
		t.Error(err)
	}
}
