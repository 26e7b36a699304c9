package main

import (
	"fmt"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
)

// topScreen is disco top on a terminal.
type topScreen struct {
	ask   func() tea.Msg // for a topLook, or an error
	every time.Duration

	look          *topLook // nil before the first
	err           error    // that ended it
	by            int      // index of topOrders
	vcpus         bool     // are shown
	selected      string   // the guest whose details are shown
	first         int      // row that is shown
	width, height int
}

type topTick struct{}

func (s *topScreen) Init() tea.Cmd { return s.ask }

func (s *topScreen) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		s.width, s.height = msg.Width, msg.Height
	case topTick:
		return s, s.ask
	case *topLook:
		s.look = msg
		return s, tea.Tick(s.every, func(time.Time) tea.Msg { return topTick{} })
	case error:
		s.err = msg
		return s, tea.Quit
	case tea.KeyPressMsg:
		return s, s.key(msg.String())
	}
	return s, nil
}

func (s *topScreen) key(k string) tea.Cmd {
	switch k {
	case "q", "esc", "ctrl+c":
		return tea.Quit
	case "s":
		s.by = (s.by + 1) % len(topOrders)
	case "S":
		s.by = (s.by + len(topOrders) - 1) % len(topOrders)
	case "v":
		s.vcpus = !s.vcpus
	case "down", "j":
		s.move(1)
	case "up", "k":
		s.move(-1)
	case "pgdown", "space":
		s.move(max(1, s.height/2))
	case "pgup":
		s.move(-max(1, s.height/2))
	}
	return nil
}

// move selects a guest further down.
func (s *topScreen) move(n int) {
	if s.look == nil {
		return
	}
	if rows := s.look.rows(topOrders[s.by], false); len(rows) > 0 {
		s.selected = rows[min(max(0, s.at(rows)+n), len(rows)-1)].id()
	}
}

// at is the index of the guest that is selected; the first if it is gone.
func (s *topScreen) at(rows []topRow) int {
	for i := range rows {
		if rows[i].v == nil && rows[i].id() == s.selected {
			return i
		}
	}
	return 0
}

// id tells guests of all monitors apart.
func (r *topRow) id() string { return fmt.Sprintf("%d/%s", r.m.PID, r.g.Name) }

func (s *topScreen) View() tea.View {
	v := tea.NewView(strings.Join(s.lines(), "\n"))
	v.AltScreen = true
	v.WindowTitle = "disco top"
	return v
}

const topKeys = "q quit · s sort · v vCPUs · ↑↓ guest"

const (
	topReverse = "\x1b[7m"
	topBold    = "\x1b[1m"
	topPlain   = "\x1b[m"
)

// lines are the screen, none longer than it is wide and no more than it is high.
func (s *topScreen) lines() []string {
	if s.width <= 0 || s.height <= 0 {
		return nil
	}
	if s.look == nil {
		return []string{cut("disco top: asking …", s.width)}
	}
	by := topOrders[s.by]
	top := []string{cut(fmt.Sprintf("disco top: %s; by %s", s.look.title(), by.name), s.width)}
	for _, t := range s.look.Trouble {
		top = append(top, cut(t, s.width))
	}
	rows := s.look.rows(by, s.vcpus)
	header, table := topTable(rows, s.width)
	top = append(top, topReverse+fit(header, s.width)+topPlain)
	at := s.at(rows)
	var bottom []string
	if len(rows) > 0 {
		for _, line := range rows[at].g.details() {
			bottom = append(bottom, cut(line, s.width))
		}
	}
	bottom = append(bottom, cut(topKeys, s.width))
	const few = 3 // rows that there must be room for before details
	if s.height < len(top)+len(bottom)+few {
		bottom = nil
	}
	room := max(0, s.height-len(top)-len(bottom))
	s.first = min(s.first, max(0, len(rows)-room))
	if at < s.first {
		s.first = at
	} else if at >= s.first+room {
		s.first = at - room + 1
	}
	lines := top
	for i := s.first; i < min(len(rows), s.first+room); i++ {
		line := cut(table[i], s.width)
		if i == at {
			line = topBold + line + topPlain
		}
		lines = append(lines, line)
	}
	for len(lines)+len(bottom) < s.height {
		lines = append(lines, "")
	}
	lines = append(lines, bottom...)
	return lines[:min(len(lines), s.height)]
}
