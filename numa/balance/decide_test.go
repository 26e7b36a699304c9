package balance

import (
	"slices"
	"testing"

	"disco/numa"
	"disco/numa/sample"
)

// uses is heat of 512 pages on a node, of which each node touched some probes.
func uses(home numa.Node, w sample.Writes, use ...uint16) sample.Heat {
	h := sample.Heat{First: 1024, Pages: 512, Home: home, Writes: w}
	copy(h.Use[:], use)
	for v, n := range use {
		if n > 0 {
			h.Users |= 1 << v
		}
	}
	return h
}

func with(h sample.Heat, f func(*sample.Heat)) sample.Heat {
	f(&h)
	return h
}

func TestDecide(t *testing.T) {
	leave := func(why Reason) []Action { return []Action{{Do: ToLeave, Why: why, First: 1024, Pages: 512}} }
	do := func(v Verb, to ...numa.Node) (as []Action) {
		for _, n := range to {
			as = append(as, Action{Do: v, First: 1024, Pages: 512, To: n})
		}
		return as
	}
	plenty := []int{1 << 20, 1 << 20, 1 << 20, 1 << 20}
	const u, w, r = sample.Unknown, sample.Written, sample.Unwritten
	for _, c := range []struct {
		name   string
		policy Policy
		heat   sample.Heat
		room   []int
		want   []Action
	}{
		{"nobody", Full, uses(0, u), nil, leave(Cold)},
		{"at home", Full, uses(1, u, 0, 8), nil, leave(Local)},
		{"one from afar", Full, uses(0, u, 0, 8), nil, do(ToMigrate, 1)},
		{"one from afar, writing", Full, uses(0, w, 0, 8), nil, do(ToMigrate, 1)},
		{"one from afar, migrate", Migrate, uses(0, u, 0, 8), nil, do(ToMigrate, 1)},
		{"one from afar, replicate", Replicate, uses(0, r, 0, 8), nil, do(ToReplicate, 1)},
		{"one from afar, replicate, unknown", Replicate, uses(0, u, 0, 8), nil, leave(Shared)},
		{"one from afar, replicate, written", Replicate, uses(0, w, 0, 8), nil, leave(Shared)},
		{"from afar, on a node that the guest does not run on", Full, uses(9, u, 0, 8), nil, do(ToMigrate, 1)},
		{"noise at home", Full, uses(0, w, 1, 8), nil, do(ToMigrate, 1)},
		{"noise from afar", Full, uses(0, w, 8, 1), nil, leave(Local)},
		{"no noise", Full, uses(0, w, 2, 8), nil, leave(Shared)},
		{"several read", Full, uses(0, r, 8, 8, 0, 8), nil, do(ToReplicate, 1, 3)},
		{"several read, replicate", Replicate, uses(0, r, 8, 8, 0, 8), nil, do(ToReplicate, 1, 3)},
		{"several read, migrate", Migrate, uses(0, r, 8, 8, 0, 8), nil, leave(Shared)},
		{"several but its own", Full, uses(0, r, 0, 8, 8), nil, do(ToReplicate, 1, 2)},
		{"several but its own, migrate", Migrate, uses(0, u, 0, 6, 8), nil, do(ToMigrate, 2)},
		{"several, some have copies", Full, with(uses(0, r, 8, 8, 8), func(h *sample.Heat) { h.Copies = 1 << 1 }), nil, do(ToReplicate, 2)},
		{"several, all have copies", Full, with(uses(0, r, 8, 8), func(h *sample.Heat) { h.Copies = 1 << 1 }), nil, leave(Local)},
		{"several write", Full, uses(0, w, 8, 8), nil, leave(Shared)},
		{"several, not known", Full, uses(0, u, 8, 8), nil, leave(Shared)},
		{"several write but its own", Full, uses(0, w, 0, 8, 8), nil, do(ToMigrate, 1)},
		{"several write but its own, replicate", Replicate, uses(0, w, 0, 8, 8), nil, leave(Shared)},
		{"copies are broken", Full, with(uses(0, sample.Broken), func(h *sample.Heat) { h.Copies = 1 << 1 }), nil, do(ToCollapse, 0)},
		{"the rest of what has copies is written", Full, with(uses(0, w, 8, 8), func(h *sample.Heat) { h.Copies = 1 << 1 }), nil, leave(Shared)},
		{"moved too often", Full, with(uses(0, u, 0, 8), func(h *sample.Heat) { h.Moves = 4 }), nil, leave(Capped)},
		{"moved often", Full, with(uses(0, u, 0, 8), func(h *sample.Heat) { h.Moves = 3 }), nil, do(ToMigrate, 1)},
		{"moved too often, but read", Full, with(uses(0, r, 8, 8), func(h *sample.Heat) { h.Moves = 4 }), nil, do(ToReplicate, 1)},
		{"no room", Full, uses(0, u, 0, 8), []int{1 << 20, 511, 0, 0}, leave(NoRoom)},
		{"just room", Full, uses(0, u, 0, 8), []int{0, 512, 0, 0}, do(ToMigrate, 1)},
		{"room for one copy", Full, uses(0, r, 8, 8, 8), []int{0, 0, 512, 0}, append(do(ToReplicate, 2), leave(NoRoom)...)},
		{"short run", Full, with(uses(0, r, 8, 8), func(h *sample.Heat) { h.Pages = 3 }), nil, []Action{{Do: ToLeave, Why: Short, First: 1024, Pages: 3}}},
		{"short run beside copies", Full, with(uses(0, r, 8, 8), func(h *sample.Heat) { h.Pages, h.Joins = 3, true }), nil, []Action{{Do: ToReplicate, First: 1024, Pages: 3, To: 1}}},
		{"short run that moves", Full, with(uses(0, u, 0, 8), func(h *sample.Heat) { h.Pages = 3 }), nil, []Action{{Do: ToMigrate, First: 1024, Pages: 3, To: 1}}},
	} {
		room := slices.Clone(c.room)
		if room == nil {
			room = slices.Clone(plenty)
		}
		got := Decide(topology(t, 4), []sample.Heat{c.heat}, Budget{
			Policy: c.policy, Nodes: []numa.Node{0, 1, 2, 3}, MaxMoves: 4, Room: room, MinRun: 4,
		}, nil)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// TestDecideSpendsRoom has more heat than a node has room for.
func TestDecideSpendsRoom(t *testing.T) {
	heat := slices.Repeat([]sample.Heat{uses(0, sample.Unknown, 0, 8)}, 3)
	room := []int{0, 1100}
	got := Decide(topology(t, 2), heat, Budget{Policy: Full, Nodes: []numa.Node{0, 1}, MaxMoves: 4, Room: room}, nil)
	if len(got) != 3 || got[0].Do != ToMigrate || got[1].Do != ToMigrate || got[2].Why != NoRoom || room[1] != 76 {
		t.Errorf("%v, room for %d left", got, room[1])
	}
}

// TestDecideNamesNodes has nodes whose numbers are not their places.
func TestDecideNamesNodes(t *testing.T) {
	got := Decide(topology(t, 8), []sample.Heat{uses(7, sample.Unknown, 8, 0), uses(3, sample.Unknown, 8, 0)},
		Budget{Policy: Full, Nodes: []numa.Node{3, 7}, MaxMoves: 4, Room: []int{9999, 9999}}, nil)
	if len(got) != 2 || got[0].Do != ToMigrate || got[0].To != 3 || got[1].Why != Local {
		t.Errorf("%v", got)
	}
}

func TestDecideAllocates(t *testing.T) {
	heat := slices.Repeat([]sample.Heat{uses(0, sample.Unwritten, 8, 8, 8, 8)}, 16)
	b := Budget{Policy: Full, Nodes: []numa.Node{0, 1, 2, 3}, MaxMoves: 4, Room: slices.Repeat([]int{1 << 40}, 4)}
	top, dst := topology(t, 4), make([]Action, 0, 64)
	if n := testing.AllocsPerRun(100, func() { dst = Decide(top, heat, b, dst[:0]) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
