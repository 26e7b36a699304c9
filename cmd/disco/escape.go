package main

import "io"

const (
	escapeKey = 0x01 // Ctrl-a
	leaveKey  = 'x'
)

// escapes reads what a person types, for the guest, less the keys that are for
// us: Ctrl-a x leaves, Ctrl-a Ctrl-a and Ctrl-a a send one Ctrl-a, and Ctrl-a
// with any other key sends nothing.
type escapes struct {
	r       io.Reader
	leave   func() // called once, by Read
	escaped bool
	left    bool
}

// Read returns io.EOF from the leaving key on.
func (e *escapes) Read(p []byte) (int, error) {
	for {
		if e.left {
			return 0, io.EOF
		}
		n, err := e.r.Read(p)
		kept := e.filter(p[:n])
		if kept > 0 || err != nil || len(p) == 0 {
			return kept, err
		}
	}
}

// filter keeps in p what is for the guest, and says how much that is.
func (e *escapes) filter(p []byte) int {
	kept := 0
	for _, b := range p {
		switch {
		case !e.escaped && b == escapeKey:
			e.escaped = true
		case !e.escaped:
			p[kept] = b
			kept++
		case b == leaveKey:
			e.left = true
			e.leave()
			return kept
		default:
			e.escaped = false
			if b == escapeKey || b == 'a' {
				p[kept] = escapeKey
				kept++
			}
		}
	}
	return kept
}
