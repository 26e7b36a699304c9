package sched

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"disco/vcpu/kvm"
)

// TestKVMShares has real vCPUs divide a CPU: by tickets, with one that halts all
// the time, with groups, and with guests in storms of exits. The machine may be
// busy with other things, so the bounds are wide; make bench-sched has the figures.
func TestKVMShares(t *testing.T) {
	sys, err := kvm.Open("/dev/kvm")
	if err != nil {
		t.Fatal(err)
	}
	defer sys.Close()
	o := Options{CPUs: []int{0}, Nodes: []int{0, 1}, Time: 2 * time.Second, Quantum: 4 * time.Millisecond, Progress: io.Discard}
	most := map[string]float64{"3:2:1": 0.15, "resting": 0.15, "storms": 0.3, "nodes": 0.2, "workers": 0.6, "inflation": 0.3, "join": 0.3}
	for _, l := range loads(0, false) {
		limit, ok := most[l.name]
		if !ok {
			continue
		}
		t.Run(l.name, func(t *testing.T) {
			row, err := measure(context.Background(), sys, o, l, Stride)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%+v", row.Phases)
			if row.Error > limit && row.Quanta > 3 { // on a busy machine there are few quanta in all
				t.Errorf("a share is %.1f %% off", 100*row.Error)
			}
		})
	}
}

// TestKVMManyEnd starts and ends 100 guests that compete for one CPU.
func TestKVMManyEnd(t *testing.T) {
	sys, err := kvm.Open("/dev/kvm")
	if err != nil {
		t.Fatal(err)
	}
	defer sys.Close()
	l := ratio(make([]int64, 100)...)
	for i := range l.guests {
		l.guests[i].tickets = int64(i + 1)
	}
	r := newRig(Options{CPUs: []int{0}, Quantum: 2 * time.Millisecond}, l)
	err = r.begin(t.Context(), sys, Stride)
	if e := r.close(); e != nil || err != nil {
		t.Error(err, e)
	}
}

// TestShares reads samples as they are: phases, classes of many guests, windows.
func TestShares(t *testing.T) {
	a := Sample{At: 1, Used: []float64{1, 2, 3}}
	z := Sample{At: 2, Used: []float64{1.5, 2.25, 3.25}}
	part, all := shares(a, z)
	if all != 1 || part[0] != 0.5 || part[1] != 0.25 || part[2] != 0.25 {
		t.Errorf("got %v of %v", part, all)
	}
	if got := normal([]float64{3, 0, 1}); got[0] != 0.75 || got[1] != 0 || got[2] != 0.25 {
		t.Errorf("got %v", got)
	}
}

// TestResults prints and draws what was measured, and judges it.
func TestResults(t *testing.T) {
	row := Row{
		Load: "2:1", Policy: Stride, Guests: 2, Names: []string{"g0", "g<1>"}, Error: 0.02, Window: 5, Lost: 0.001,
		Phases:  []Phase{{Want: []float64{2. / 3, 1. / 3}, Got: []float64{0.65, 0.35}, CPU: 1}},
		Samples: []Sample{{At: 0, Used: []float64{0, 0}}, {At: 1, Used: []float64{0.65, 0.35}}},
	}
	r := Results{Setting: "a test", Rows: []Row{row}, Skipped: []string{"1:1, cgroup: none"}}
	var table, chart strings.Builder
	if err := r.Print(&table); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"66.67 33.33", "65.00 35.00", "2.00 %", "not measured: 1:1, cgroup: none"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, &table)
		}
	}
	if err := r.Chart(&chart); err != nil {
		t.Fatal(err)
	}
	if s := chart.String(); !strings.Contains(s, "<polyline") || strings.Contains(s, "g<1>") || strings.Contains(s, "NaN") {
		t.Errorf("the chart is %s", s)
	}
	missed := 0
	for _, p := range r.Result().Promises {
		if !p.OK {
			missed++
		}
	}
	if missed != 1 {
		t.Errorf("%d promises are missed, want the one of the shares: %+v", missed, r.Result().Promises)
	}
}
