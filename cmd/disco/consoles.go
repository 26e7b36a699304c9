package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// console is the other end of a guest's console.
type console struct {
	in    io.Reader // nil for nobody
	out   io.Writer
	close func() error // after the guest's end
}

// open makes the console of member i: a terminal, a file, or its lines on screen.
func (f *fleet) open(s *screen, i int) (console, error) {
	m := f.members[i]
	switch {
	case m.pty:
		p, err := openPTY()
		if err != nil {
			return console{}, err
		}
		fmt.Fprintf(f.stderr, "disco: %s: the console is %s\n", m.name(), p.name)
		return console{p, p, p.Close}, nil
	case f.consoleDir != "":
		file, err := os.Create(filepath.Join(f.consoleDir, m.name()+".log"))
		if err != nil {
			return console{}, err
		}
		return console{nil, file, file.Close}, nil
	}
	l := s.lines(m.name(), i)
	return console{nil, l, l.Close}, nil
}

// screen is where lines of several consoles come out, each after a name.
type screen struct {
	mu     sync.Mutex
	w      io.Writer
	width  int // of the names
	colour bool
}

func newScreen(w io.Writer, members []*member, plain bool) *screen {
	s := &screen{w: w}
	for _, m := range members {
		s.width = max(s.width, len(m.name()))
	}
	if f, ok := w.(*os.File); ok && !plain {
		s.colour = term.IsTerminal(int(f.Fd()))
	}
	return s
}

// colours of names in turn: cyan, yellow, green, magenta, blue, and their bright
// kin; red is for trouble.
var colours = []int{36, 33, 32, 35, 34, 96, 93, 92, 95, 94}

// lines is the Writer of console number i.
func (s *screen) lines(name string, i int) *lines {
	prefix := fmt.Sprintf("%-*s | ", s.width, name)
	if s.colour {
		prefix = fmt.Sprintf("\x1b[%dm%-*s |\x1b[0m ", colours[i%len(colours)], s.width, name)
	}
	return &lines{screen: s, prefix: prefix}
}

// longestLine is where a line is broken that has no end, in bytes.
const longestLine = 4 << 10

// lines writes whole lines to a screen, without what would move the cursor or
// change the terminal of all: several guests share it.
type lines struct {
	screen *screen
	prefix string

	mu     sync.Mutex
	line   []byte
	within sequence
}

// sequence is the part of a control sequence that comes next (ECMA-48 §5.4, §5.6).
type sequence int

const (
	plainText sequence = iota
	escaped
	parameters // after CSI
	stringBody // after OSC, DCS and their like, to BEL or ST
)

// Write takes everything, unless the screen is gone.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, b := range p {
		if !l.text(b) {
			continue
		}
		if b != '\n' {
			l.line = append(l.line, b)
		}
		if b == '\n' || len(l.line) == longestLine {
			if err := l.flush(); err != nil {
				return i, err
			}
		}
	}
	return len(p), nil
}

// text says whether a byte is to be shown.
func (l *lines) text(b byte) bool {
	const esc, bell = 0x1b, 0x07
	switch l.within {
	case escaped:
		switch {
		case b == '[':
			l.within = parameters
		case bytes.IndexByte([]byte("]PX^_"), b) >= 0:
			l.within = stringBody
		case b < 0x20 || b > 0x2f: // not one more before the last
			l.within = plainText
		}
		return false
	case parameters:
		if b >= 0x40 || b == '\n' {
			l.within = plainText
		}
		return b == '\n'
	case stringBody:
		switch b {
		case bell, '\n': // a line's end, too: nothing is hidden for long
			l.within = plainText
		case esc:
			l.within = escaped
		}
		return b == '\n'
	}
	if b == esc {
		l.within = escaped
	}
	return b >= 0x20 && b != 0x7f || b == '\n' || b == '\t'
}

// flush writes the line, in one piece.
func (l *lines) flush() error {
	text := string(l.line)
	if !utf8.Valid(l.line) || strings.ContainsFunc(text, unicode.IsControl) {
		text = strings.Map(func(r rune) rune {
			if unicode.IsControl(r) && r != '\t' {
				return -1
			}
			return r
		}, strings.ToValidUTF8(text, "\ufffd"))
	}
	l.line = l.line[:0]
	l.screen.mu.Lock()
	defer l.screen.mu.Unlock()
	_, err := io.WriteString(l.screen.w, l.prefix+text+"\n")
	return err
}

// Close writes a last line that has no end, unless a Write is stuck.
func (l *lines) Close() error {
	if l.mu.TryLock() {
		defer l.mu.Unlock()
		if len(l.line) > 0 {
			_ = l.flush() // a screen that is gone has told the guest's Output so
		}
	}
	return nil
}
