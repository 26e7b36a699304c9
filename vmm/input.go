package vmm

import (
	"errors"
	"io"
)

// feed carries Config.Stdin to the console. A Read under way when the guest ends
// stays until its reader returns.
func (g *Guest) feed() {
	buf := make([]byte, 4<<10)
	for {
		n, err := g.cfg.Stdin.Read(buf)
		if n > 0 && g.input(buf[:n]) != nil {
			return
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				g.log.Warn("console input", "err", err)
			}
			return
		}
	}
}

// input hands p to the console, over restarts too: the virtio console outlives
// them, and the 8250's successor gets what its machine did not take. It fails
// when the Guest is closed.
func (g *Guest) input(p []byte) error {
	if c := g.backends.console; c != nil {
		_, err := c.Input(p)
		return err
	}
	for {
		g.mu.Lock()
		m, turn, closed := g.machine, g.turn, g.closed
		g.mu.Unlock()
		if closed {
			return io.ErrClosedPipe
		}
		if m != nil {
			n, err := m.serial.Input(p)
			if err == nil {
				return nil
			}
			p = p[n:]
		}
		<-turn
	}
}
