package main

import (
	"bytes"
	"io"
	"os"

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

// openTerminal puts the terminal in raw mode: all keys reach the guest, and what
// it writes is shown as it comes, as the terminal that it has in front of it there
// has already made \r\n of \n. What is not the guest's goes through returning. The
// caller must Close it.
func openTerminal(f *os.File) (*terminal, error) {
	fd := int(f.Fd())
	saved, err := term.MakeRaw(fd)
	if err != nil {
		return nil, err
	}
	return &terminal{fd, saved}, nil
}

// besideRaw is where to write messages while the terminal is raw: to w, which
// comes to that terminal if it is one.
func besideRaw(w io.Writer) io.Writer {
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return &returning{w}
	}
	return w
}

// returning writes lines for a terminal that shows bytes as they come.
type returning struct{ w io.Writer }

func (r *returning) Write(p []byte) (int, error) {
	if _, err := r.w.Write(bytes.ReplaceAll(p, []byte("\n"), []byte("\r\n"))); err != nil {
		return 0, err
	}
	return len(p), nil
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
