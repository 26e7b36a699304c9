package vmm

import (
	"math"
	"testing"
)

func TestEntitle(t *testing.T) {
	one, two := [][]int{{0}}, [][]int{{0, 1}}
	type guest struct {
		tickets int64
		group   string
		pools   []int // of its vCPUs
		limit   float64
	}
	for _, tt := range []struct {
		name   string
		pools  [][]int
		guests []guest
		want   []float64
	}{
		{"alone", two, []guest{{100, "", []int{0}, 0}}, []float64{1}},
		{"alone with two", two, []guest{{100, "", []int{0, 0}, 0}}, []float64{2}},
		{"two to one", one, []guest{{200, "", []int{0}, 0}, {100, "", []int{0}, 0}}, []float64{2. / 3, 1. / 3}},
		{"vCPUs divide", one, []guest{{200, "", []int{0, 0}, 0}, {100, "", []int{0}, 0}}, []float64{2. / 3, 1. / 3}},
		{"no more than a CPU each", two, []guest{{100, "", []int{0}, 0}, {1, "", []int{0}, 0}, {1, "", []int{0}, 0}}, []float64{1, .5, .5}},
		{"a limit", two, []guest{{100, "", []int{0, 0}, 0.5}}, []float64{0.5}},
		{"groups", one, []guest{{7, "a", []int{0}, 0}, {21, "a", []int{0}, 0}, {300, "", []int{0}, 0}}, []float64{.25 * .25, .25 * .75, .75}},
		{"a group with tickets", one, []guest{{7, "rich", []int{0}, 0}, {100, "", []int{0}, 0}}, []float64{.75, .25}},
		{"inflation", one, []guest{{1, "a", []int{0}, 0}, {1 << 20, "a", []int{0}, 0}, {100, "", []int{0}, 0}}, []float64{0, .5, .5}},
		{"nodes", [][]int{{0}, {1}}, []guest{{300, "", []int{0}, 0}, {100, "", []int{0}, 0}, {1, "", []int{1}, 0}}, []float64{.75, .25, 1}},
		{"not running", one, []guest{{100, "", nil, 0}, {100, "", []int{0}, 0}}, []float64{0, 1}},
		{"the host schedules", nil, []guest{{0, "", []int{0}, 0}}, []float64{0}},
		{"nobody", one, nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var all []Live
			for _, g := range tt.guests {
				l := Live{Tickets: g.tickets, Group: g.group, Limit: g.limit}
				for _, p := range g.pools {
					l.VCPUs = append(l.VCPUs, LiveVCPU{Pool: p})
				}
				all = append(all, l)
			}
			entitle(all, tt.pools, map[string]int64{"rich": 300})
			for i, want := range tt.want {
				if got := all[i].Asked; math.Abs(got-want) > 1e-4 {
					t.Errorf("guest %d: %v CPUs, want %v", i, got, want)
				}
			}
		})
	}
}
