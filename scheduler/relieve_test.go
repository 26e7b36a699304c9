package scheduler

import "testing"

func TestRelieve(t *testing.T) {
	hog := func(place int, used, waited float64) Mover {
		return Mover{Place: place, To: []int{0, 1}, VCPUs: 1, Used: used, Waited: waited}
	}
	costly := func(m Mover, cost, slow float64) Mover {
		m.Cost, m.Slow = cost, slow
		return m
	}
	for _, c := range []struct {
		name    string
		places  []Place
		movers  []Mover
		who, to int // -1 for nobody
	}{
		{"nobody is there", []Place{{1, 0}, {1, 0}}, nil, -1, 0},
		{"two on one CPU, the other node stands still", []Place{{1, 1}, {1, 0}}, []Mover{hog(0, .5, .5), hog(0, .5, .5)}, 0, 1},
		{"the other way", []Place{{1, 0}, {1, 1}}, []Mover{hog(1, .5, .5), hog(1, .5, .5)}, 0, 0},
		{"nobody waits", []Place{{2, 2}, {2, 0}}, []Mover{hog(0, 1, 0), hog(0, 1, 0)}, -1, 0},
		{"both are full", []Place{{1, 1}, {1, 1}}, []Mover{hog(0, .5, .5), hog(0, .5, .5), hog(1, 1, 0)}, -1, 0},
		{"the other is nearly full", []Place{{1, 1}, {1, .95}}, []Mover{hog(0, .5, .5), hog(0, .5, .5)}, -1, 0},
		{"the one whose move costs less", []Place{{1, 1}, {1, 0}}, []Mover{costly(hog(0, .5, .5), 5, 0), costly(hog(0, .5, .5), 1, 0)}, 1, 1},
		{"a move that takes longer than it lasts", []Place{{1, 1}, {1, 0}}, []Mover{costly(hog(0, .5, .5), 20, 0), costly(hog(0, .5, .5), 20, 0)}, -1, 0},
		{"remote memory makes it slower than waiting", []Place{{1, 1}, {1, 0}}, []Mover{costly(hog(0, .9, .1), 0, 1), hog(0, .1, 0)}, -1, 0},
		{"it is slower there, but much less so than waiting", []Place{{1, 1}, {1, 0}}, []Mover{costly(hog(0, .25, .75), 0, .3), hog(0, .75, .25)}, 1, 1},
		{"it may not go there", []Place{{1, 1}, {1, 0}}, []Mover{{Place: 0, To: []int{0}, VCPUs: 1, Used: .5, Waited: .5}}, -1, 0},
		{"part of the way: half a CPU is free", []Place{{1, 1}, {2, 1.5}}, []Mover{hog(0, .25, .75), hog(0, .75, .25)}, 0, 1},
		{"a guest of two vCPUs to where there is one CPU", []Place{{2, 2}, {1, 0}}, []Mover{
			{Place: 0, To: []int{1}, VCPUs: 2, Used: 1, Waited: 1}, {Place: 0, To: []int{1}, VCPUs: 1, Used: .5, Waited: .5}, {Place: 0, To: []int{1}, VCPUs: 1, Used: .5, Waited: .5},
		}, 0, 1},
		{"of three nodes the one with the most room", []Place{{2, 2}, {2, 1.7}, {2, 0}}, []Mover{
			{Place: 0, To: []int{0, 1, 2}, VCPUs: 1, Used: .5, Waited: .5}, {Place: 0, To: []int{0, 1, 2}, VCPUs: 2, Used: 1.5, Waited: .5},
		}, 0, 2},
	} {
		who, to, ok := Relieve(c.places, c.movers)
		if !ok {
			who, to = -1, 0
		}
		if who != c.who || to != c.to {
			t.Errorf("%s: %d moves to %d, want %d to %d", c.name, who, to, c.who, c.to)
		}
	}
}
