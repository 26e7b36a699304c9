package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"disco/memory"
	"disco/numa"
	"disco/numa/balance"
	"disco/vmm"
)

// threshold is a word that may follow the policy of --numa.
type threshold struct {
	name string
	text string // for the help
	set  func(*balance.Config, string) error
	get  func(balance.Config) string
}

var thresholds = []threshold{
	duration("tick", "how often the monitor looks and acts", func(c *balance.Config) *time.Duration { return &c.Tick }),
	duration("window", "how long samples are watched at least", func(c *balance.Config) *time.Duration { return &c.Window }),
	duration("max-window", "and at most", func(c *balance.Config) *time.Duration { return &c.MaxWindow }),
	duration("guard", "how long pages must stay unwritten before they are replicated", func(c *balance.Config) *time.Duration { return &c.GuardWindow }),
	duration("hold", "how long pages that could not be helped are left alone, doubling", func(c *balance.Config) *time.Duration { return &c.Hold }),
	duration("max-hold", "up to this", func(c *balance.Config) *time.Duration { return &c.MaxHold }),
	duration("decay", "time in which half of a block's moves are forgotten", func(c *balance.Config) *time.Duration { return &c.Decay }),
	number("max-moves", "how often a block may move", func(c *balance.Config) *int { return &c.MaxMoves }),
	number("fault-rate", "faults per second and node that sampling may cause when it finds nothing", func(c *balance.Config) *int { return &c.FaultRate }),
	number("move-rate", "pages per second that move at most", func(c *balance.Config) *int { return &c.MoveRate }),
	part("sample-share", "part of a CPU for sampling", func(c *balance.Config) *float64 { return &c.SampleShare }),
	part("move-share", "part of a CPU for moving", func(c *balance.Config) *float64 { return &c.MoveShare }),
	part("min-free", "part of a node's memory that stays free", func(c *balance.Config) *float64 { return &c.MinFree }),
}

func duration(name, text string, field func(*balance.Config) *time.Duration) threshold {
	return threshold{name, text,
		func(c *balance.Config, s string) (err error) { *field(c), err = parseDuration(s); return err },
		func(c balance.Config) string { return field(&c).String() }}
}

func number(name, text string, field func(*balance.Config) *int) threshold {
	return threshold{name, text,
		func(c *balance.Config, s string) (err error) { *field(c), err = parseCount(s); return err },
		func(c balance.Config) string { return strconv.Itoa(*field(&c)) }}
}

func part(name, text string, field func(*balance.Config) *float64) threshold {
	return threshold{name, text,
		func(c *balance.Config, s string) error {
			x, err := strconv.ParseFloat(s, 64)
			if err != nil {
				return errors.New("not a number; write one like 0.2")
			}
			*field(c) = x
			return nil
		},
		func(c balance.Config) string { return strconv.FormatFloat(*field(&c), 'g', -1, 64) }}
}

// parseBalance reads POLICY[,THRESHOLD=VALUE…].
func parseBalance(s string) (balance.Config, error) {
	words := strings.Split(s, ",")
	c := balance.Default()
	var err error
	if c.Policy, err = balance.ParsePolicy(words[0]); err != nil {
		return c, err
	}
	for _, w := range words[1:] {
		name, value, _ := strings.Cut(w, "=")
		i := slices.IndexFunc(thresholds, func(t threshold) bool { return t.name == name })
		if i < 0 {
			return c, fmt.Errorf("there is no threshold %q; see disco run --help", name)
		}
		if err := thresholds[i].set(&c, value); err != nil {
			return c, fmt.Errorf("%s=%s: %w", name, value, err)
		}
	}
	return c, c.Validate()
}

// parseThresholds reads THRESHOLD=VALUE….
func parseThresholds(s string) (balance.Config, error) {
	return parseBalance(balance.Full.String() + "," + s)
}

// formatBalance is what parseBalance reads.
func formatBalance(c balance.Config) string {
	s := c.Policy.String()
	for _, t := range thresholds {
		if text := t.get(c); text != t.get(balance.Default()) {
			s += "," + t.name + "=" + text
		}
	}
	return s
}

// thresholdsHelp lists the thresholds with their defaults.
func thresholdsHelp() string {
	var lines []string
	for _, t := range thresholds {
		lines = append(lines, fmt.Sprintf("%s=%s (%s)", t.name, t.get(balance.Default()), t.text))
	}
	return strings.Join(lines, ", ")
}

// parsePlacement reads auto, interleave, node=N or nodes=N,M,….
func parsePlacement(s string) (vmm.Placement, error) {
	switch s {
	case "auto":
		return vmm.Placement{}, nil
	case "interleave":
		return vmm.Placement{Kind: vmm.PlaceInterleave}, nil
	}
	key, value, _ := strings.Cut(s, "=")
	if key != "node" && key != "nodes" {
		return vmm.Placement{}, errors.New("there are auto, interleave, node=N and nodes=N,M")
	}
	nodes, err := parseNodes(value)
	if err != nil {
		return vmm.Placement{}, err
	}
	p := vmm.Placement{Kind: vmm.PlaceNodes, Nodes: nodes}
	if key == "node" && len(p.Nodes) > 1 {
		return vmm.Placement{}, errors.New("that is more than one node; write nodes=" + value)
	}
	return p, nil
}

func parseNodes(s string) ([]numa.Node, error) {
	var nodes []numa.Node
	for word := range strings.SplitSeq(s, ",") {
		n, err := strconv.ParseUint(word, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("%q is no node's number; write a list like 0,1", word)
		}
		nodes = append(nodes, numa.Node(n))
	}
	return nodes, nil
}

func formatPlacement(p vmm.Placement) string {
	switch p.Kind {
	case vmm.PlaceInterleave:
		return "interleave"
	case vmm.PlaceNodes:
		return "nodes=" + numa.FormatNodes(p.Nodes)
	}
	return "auto"
}

var hugeWords = map[string]memory.Huge{"off": memory.HugeOff, "thp": memory.HugeTHP, "2M": memory.Huge2M}

func parseHuge(s string) (memory.Huge, error) {
	if h, ok := hugeWords[s]; ok {
		return h, nil
	}
	return 0, errors.New("there are off, thp and 2M")
}

func formatHuge(h memory.Huge) string {
	for word, x := range hugeWords {
		if x == h {
			return word
		}
	}
	return fmt.Sprintf("Huge(%d)", int(h))
}

// parseFake reads a number of fake nodes.
func parseFake(s string) (int, error) {
	n, err := parseCount(s)
	if err == nil && (n < 1 || n > numa.MaxFake) {
		err = fmt.Errorf("choose 1 to %d", numa.MaxFake)
	}
	return n, err
}
