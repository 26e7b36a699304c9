package vmm

// setMachine makes m the current machine, nil while there is none, and hands it
// what was asked for meanwhile.
func (g *Guest) setMachine(m *machine) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.machine = m
	if !g.closed {
		close(g.turn)
		g.turn = make(chan struct{})
	}
	if m == nil {
		return
	}
	if g.killed != nil {
		m.end(ending{outcome: *g.killed})
	}
	if g.pressed {
		g.pressed = false
		m.pressPowerButton()
	}
}

// Kill ends the guest at once. Run returns with kind Killed, and reason.
func (g *Guest) Kill(reason string) {
	o := Outcome{Kind: Killed, Code: ExitPoweredOff, Reason: reason}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.killed = &o
	if g.machine != nil {
		g.machine.end(ending{outcome: o})
	}
}

// PressPowerButton asks the guest to power off, as a person would.
func (g *Guest) PressPowerButton() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.machine == nil {
		g.pressed = true
		return
	}
	g.machine.pressPowerButton()
}

// ResizeConsole tells the guest the size of its terminal in characters. A serial
// console has none.
func (g *Guest) ResizeConsole(cols, rows uint16) {
	if c := g.backends.console; c != nil {
		c.Resize(cols, rows)
	}
}
