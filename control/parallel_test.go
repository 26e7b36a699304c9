package control

import (
	"math"
	"testing"
)

func TestTLP(t *testing.T) {
	for _, tt := range []struct {
		name     string
		parallel []uint64
		want     float64
	}{
		{"nobody looked", nil, 0},
		{"no time", []uint64{0, 0, 0}, 0},
		{"idle", []uint64{100}, 0},
		{"idle with vCPUs", []uint64{100, 0, 0}, 0},
		{"one CPU", []uint64{0, 100}, 1},
		{"one CPU, mostly idle", []uint64{99, 1}, 1},
		{"all the time both", []uint64{0, 0, 7}, 2},
		{"half and half", []uint64{0, 50, 50}, 1.5},
		{"idle time does not count", []uint64{1000, 50, 50}, 1.5},
		{"four", []uint64{10, 20, 30, 0, 40}, (20 + 60 + 160) / 90.},
		{"centuries", []uint64{0, math.MaxUint64, math.MaxUint64}, 1.5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := TLP(tt.parallel); math.Abs(got-tt.want) > 1e-9 {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}
