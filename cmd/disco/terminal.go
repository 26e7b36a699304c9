package main

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// onTerminal says whether a person sits at both ends.
func (w *world) onTerminal() bool {
	in, ok := w.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return false
	}
	out, ok := w.stdout.(*os.File)
	return ok && term.IsTerminal(int(out.Fd()))
}

// terminal is the terminal at standard input, in raw mode.
type terminal struct {
	fd    int
	saved *term.State
}

// openTerminal puts the terminal in raw mode, so that all keys reach the guest.
// Output keeps turning \n into \r\n, for what is not the guest's. The caller
// must Close it.
func openTerminal(f *os.File) (*terminal, error) {
	fd := int(f.Fd())
	saved, err := term.MakeRaw(fd)
	if err != nil {
		return nil, err
	}
	t := &terminal{fd, saved}
	mode, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err == nil {
		mode.Oflag |= unix.OPOST | unix.ONLCR
		err = unix.IoctlSetTermios(fd, unix.TCSETS, mode)
	}
	if err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// size is the terminal's in characters; 80 by 24 if it does not know.
func (t *terminal) size() (cols, rows uint16) {
	c, r, err := term.GetSize(t.fd)
	if err != nil || c <= 0 || r <= 0 || c > 0xffff || r > 0xffff {
		return 80, 24
	}
	return uint16(c), uint16(r)
}

// Close gives the terminal back as it was. It may be called again.
func (t *terminal) Close() { _ = term.Restore(t.fd, t.saved) }

// samePlace says whether two outputs end in the same file or terminal.
func samePlace(a, b io.Writer) bool {
	fa, ok := a.(*os.File)
	if !ok {
		return false
	}
	fb, ok := b.(*os.File)
	if !ok {
		return false
	}
	sa, err := fa.Stat()
	if err != nil {
		return false
	}
	sb, err := fb.Stat()
	return err == nil && os.SameFile(sa, sb)
}
