// Package sched measures how tickets divide CPUs among real vCPUs: small guests of
// one vCPU that compute, in KVM, run by disco's scheduler, or by the kernel with
// cgroup weights.
//
// What is measured is each vCPU thread's own CPU clock, and the guests' count of
// the work that they did. Only what the guests had is divided: what else runs on
// the machine makes all of them slower.
//
// Not done here: Linux guests, and disks and networks.
package sched

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"disco/integration/bench"
	"disco/scheduler/host"
	"disco/vcpu/kvm"
)

// Policy is who schedules.
type Policy string

// The policies, in the order of the table.
const (
	Stride  Policy = "stride"
	Lottery Policy = "lottery"
	Cgroup  Policy = "cgroup" // the kernel, by cpu.weight or cpu.shares
)

// Policies are all.
var Policies = []Policy{Stride, Lottery, Cgroup}

// Options say what to measure.
type Options struct {
	CPUs     []int         // of the host, on which all guests run
	Nodes    []int         // of the host, one for each node of loads with several; those without enough are left out
	Time     time.Duration // for each load by stride; a third of it by the others
	Quantum  time.Duration
	Policies []Policy
	Loads    []string // empty for all
	Linux    bool     // measure guests with Linux, and no others
	Kernel   string   // theirs, and their initrd: the default guest's
	Initrd   string
	Cmdline  string // words for their kernel
	Many     int    // guests of the load of many; 0 for without
	Progress io.Writer
}

// Loads are the names of the loads, of tiny guests or of Linux's.
func Loads(many int, linux bool) []string {
	var names []string
	for _, l := range loads(many, linux) {
		names = append(names, l.name)
	}
	return names
}

// Row is what came of a load under a policy.
type Row struct {
	Load    string   `json:"load"`
	About   string   `json:"about,omitempty"`
	Policy  Policy   `json:"policy"`
	Guests  int      `json:"guests"`
	Phases  []Phase  `json:"phases"`
	Error   float64  `json:"error"`        // worst relative error of a guest's share in a phase, of many guests of that of all with the same tickets: 0.01 is 1 %
	Quanta  float64  `json:"quanta"`       // worst error of a guest in a phase, in quanta
	Sigma   float64  `json:"sigma"`        // and in standard deviations of a lottery's draws
	Window  float64  `json:"window_ms"`    // worst error of a guest in any second, of CPU time, for up to 10 guests
	Lost    float64  `json:"lost"`         // CPU time of this process beyond the guests', part of theirs
	Had     float64  `json:"had"`          // CPU time of the guests, part of the CPUs' time
	Workers float64  `json:"workers"`      // part of the guests' CPU time that the monitor's workers used for them
	Rate    float64  `json:"chunks_per_s"` // work of the first guest in a second of its CPU time
	Names   []string `json:"names"`
	Samples []Sample `json:"samples"`
}

// Phase is a span between changes.
type Phase struct {
	Want []float64 `json:"want"` // shares, which sum to 1
	Got  []float64 `json:"got"`
	CPU  float64   `json:"cpu_s"` // CPU time of all guests
}

// Sample is the CPU time that each guest has had, in s, at a time.
type Sample struct {
	At   float64   `json:"at"`
	Used []float64 `json:"used"`
}

// Results are all rows.
type Results struct {
	Setting string
	Rows    []Row
	// Alone is what scheduling costs a guest that has its CPU for itself: CPU
	// time of this process beyond the guest's, part of it.
	Alone   float64
	Aloned  bool     // that was measured
	Skipped []string // why what was not measured
}

// Run measures.
func Run(ctx context.Context, o Options) (*Results, error) {
	sys, err := kvm.Open("/dev/kvm")
	if err != nil {
		return nil, err
	}
	defer sys.Close()
	what := "Tiny guests"
	if o.Linux {
		what = "Linux guests"
	}
	res := &Results{Setting: fmt.Sprintf("%s on host CPUs %v, quantum %v, %v for each load by stride, a third of it by others", what, o.CPUs, o.Quantum, o.Time)}
	if !o.Linux && (len(o.Loads) == 0 || slices.Contains(o.Loads, "alone")) {
		if res.Alone, err = alone(ctx, sys, o); err != nil {
			return res, err
		}
		res.Aloned = true
	}
	for _, l := range loads(o.Many, o.Linux) {
		if len(o.Loads) > 0 && !slices.Contains(o.Loads, l.name) {
			continue
		}
		for _, p := range o.Policies {
			if l.only != nil && !slices.Contains(l.only, p) {
				continue
			}
			if l.nodes > len(o.Nodes) {
				res.Skipped = append(res.Skipped, fmt.Sprintf("%s, %s: it takes %d CPUs", l.name, p, l.nodes))
				continue
			}
			fmt.Fprintf(o.Progress, "bench: %s, %s\n", l.name, p)
			row, err := measure(ctx, sys, o, l, p)
			switch {
			case errors.Is(err, errNoCgroup):
				res.Skipped = append(res.Skipped, fmt.Sprintf("%s, %s: %v", l.name, p, err))
				continue
			case err != nil:
				return res, fmt.Errorf("%s, %s: %w", l.name, p, err)
			}
			res.Rows = append(res.Rows, *row)
		}
	}
	return res, nil
}

// settle is how long guests run before they are measured.
const settle = time.Second / 2

// stage is where the guests of a load run.
type stage interface {
	// begin makes the guests and starts them under a policy.
	begin(ctx context.Context, sys *kvm.System, p Policy) error
	// used is the CPU time that each guest has had, in s, its workers' included;
	// workers is that of all workers.
	used() []float64
	workers() float64
	// progress is how much the first guest has done, 0 where that is not counted.
	progress() uint64
	tickets(name string, n int64) error
	join(name string) error
	leave(name string) error
	close() error
}

func measure(ctx context.Context, sys *kvm.System, o Options, l load, p Policy) (row *Row, err error) {
	var s stage
	if l.kind == computing {
		s = newRig(o, l)
	} else {
		s = newHouse(o, l)
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.begin(ctx, sys, p); err != nil {
		return nil, err
	}
	if err := pause(ctx, settle); err != nil {
		return nil, err
	}
	span := o.Time
	if p != Stride {
		span /= 3
	}
	if l.slow > 0 {
		span = time.Duration(float64(span) * l.slow)
	}
	row = &Row{Load: l.name, About: l.about, Policy: p, Guests: len(l.guests)}
	for _, m := range l.guests {
		row.Names = append(row.Names, m.name)
	}
	own, work, began := processTime(), s.progress(), time.Now()
	first, workers := s.used(), s.workers()
	for _, ph := range l.phases {
		if ph.change != nil {
			if err := ph.change(s); err != nil {
				return nil, err
			}
		}
		if err := observe(ctx, s, row, o, l, ph, time.Duration(float64(span)*ph.part), began); err != nil {
			return nil, err
		}
	}
	last := s.used()
	all := 0.0
	for i := range last {
		all += last[i] - first[i]
	}
	row.Lost = (processTime() - own - all) / all
	row.Workers = (s.workers() - workers) / all
	cpus := 0
	for _, p := range l.pools(o) {
		cpus += len(p)
	}
	row.Had = all / (time.Since(began).Seconds() * float64(cpus))
	row.Rate = float64(s.progress()-work) / (last[0] - first[0])
	return row, nil
}

// sampleTime is between two samples: the windows of a second are of ten.
const sampleTime = 100 * time.Millisecond

// observe lets the guests run for a time, and adds what they had to the row.
func observe(ctx context.Context, s stage, row *Row, o Options, l load, ph phase, span time.Duration, began time.Time) error {
	var samples []Sample
	take := func() { samples = append(samples, Sample{At: time.Since(began).Seconds(), Used: s.used()}) }
	take()
	step := sampleTime
	if len(ph.want) > maxWindowed {
		step = span // what many had is not needed in between, and asking takes time
	}
	for end := time.Now().Add(span); time.Now().Before(end); take() {
		if err := pause(ctx, min(step, time.Until(end)+time.Millisecond)); err != nil {
			return err
		}
	}
	a, z := samples[0], samples[len(samples)-1]
	got, all := shares(a, z)
	want := l.want(ph.want, got)
	row.Phases = append(row.Phases, Phase{Want: want, Got: got, CPU: all})
	quanta := all / o.Quantum.Seconds()
	for i, w := range want {
		row.Quanta = max(row.Quanta, math.Abs(got[i]-w)*quanta)
	}
	for i, w := range want {
		if w == 0 {
			continue
		}
		g := got[i]
		if len(want) > maxWindowed {
			// Of so many each has few quanta; those with the same tickets are
			// looked at together.
			one := w
			w, g = 0, 0
			for k := range want {
				if want[k] == one {
					w, g = w+one, g+got[k]
				}
			}
		}
		row.Error = max(row.Error, math.Abs(g/w-1))
		row.Sigma = max(row.Sigma, math.Abs(got[i]-w)*quanta/math.Sqrt(quanta*w*(1-w)+1e-9))
	}
	if len(want) <= maxWindowed {
		for i := range samples {
			j := slices.IndexFunc(samples, func(s Sample) bool { return s.At >= samples[i].At+0.99 })
			if j < 0 {
				break
			}
			part, all := shares(samples[i], samples[j])
			for k, w := range want {
				row.Window = max(row.Window, math.Abs(part[k]-w)*all*1e3)
			}
		}
		row.Samples = append(row.Samples, samples...)
	}
	return nil
}

// maxWindowed is how many guests are looked at every second, and drawn.
const maxWindowed = 10

// want are the shares that were asked for: on each node, of what its guests had.
func (l *load) want(weights, got []float64) []float64 {
	if l.nodes == 0 {
		return normal(weights)
	}
	asked, had := make([]float64, l.nodes), make([]float64, l.nodes)
	for i, m := range l.guests {
		asked[m.node] += weights[i]
		had[m.node] += got[i]
	}
	want := make([]float64, len(weights))
	for i, m := range l.guests {
		want[i] = weights[i] / asked[m.node] * had[m.node]
	}
	return want
}

func normal(want []float64) []float64 {
	sum := 0.0
	for _, w := range want {
		sum += w
	}
	out := make([]float64, len(want))
	for i, w := range want {
		out[i] = w / sum
	}
	return out
}

// shares are the parts that each had between two samples, and what all had.
func shares(a, z Sample) (part []float64, all float64) {
	part = make([]float64, len(a.Used))
	for i := range part {
		part[i] = z.Used[i] - a.Used[i]
		all += part[i]
	}
	for i := range part {
		part[i] /= max(all, 1e-9)
	}
	return part, all
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// alone is what one guest on each CPU loses to scheduling: the monitor's CPU time
// with a scheduler less that without, as part of the guests'.
func alone(ctx context.Context, sys *kvm.System, o Options) (float64, error) {
	fmt.Fprintln(o.Progress, "bench: alone")
	// Two rounds of each, the better counts: what else this process does at
	// times, such as collecting garbage, is no part of it.
	least := map[bool]float64{true: math.Inf(1), false: math.Inf(1)}
	for range 2 {
		for _, scheduled := range []bool{false, true} {
			lost, err := aloneOnce(ctx, sys, o, scheduled)
			if err != nil {
				return 0, err
			}
			least[scheduled] = min(least[scheduled], lost)
		}
	}
	return max(0, least[true]-least[false]), nil
}

func aloneOnce(ctx context.Context, sys *kvm.System, o Options, scheduled bool) (lost float64, err error) {
	var s *host.Scheduler
	if scheduled {
		if s, err = host.New(host.Config{Pools: [][]int{o.CPUs}, Quantum: o.Quantum, Bound: true}); err != nil {
			return 0, err
		}
		defer s.Close()
	}
	var gs []*guest
	defer func() {
		for _, g := range gs {
			err = errors.Join(err, g.close())
		}
	}()
	// One more, which has halted for good, so that there is somebody to watch.
	for i := range len(o.CPUs) + 1 {
		cmdline := ""
		if i == len(o.CPUs) {
			cmdline = "work=1 rest=3600000000000"
		}
		g, err := newGuest(sys, fmt.Sprint("g", i), cmdline)
		if err != nil {
			return 0, err
		}
		gs = append(gs, g)
		if err := g.start(o.CPUs); err != nil {
			return 0, err
		}
		if scheduled {
			h, err := s.NewGuest(host.GuestConfig{Name: "g", Tickets: 100})
			if err != nil {
				return 0, err
			}
			defer h.Close()
			if _, err := h.Add(0, g.cpu, 0); err != nil {
				return 0, err
			}
		}
	}
	if err := pause(ctx, settle); err != nil {
		return 0, err
	}
	used := func() (all float64) {
		for _, g := range gs {
			all += g.used()
		}
		return all
	}
	own, theirs := processTime(), used()
	if err := pause(ctx, min(o.Time, 5*time.Second)); err != nil {
		return 0, err
	}
	theirs = used() - theirs
	return (processTime() - own - theirs) / theirs, nil
}

// processTime is the CPU time of this process, in s.
func processTime() float64 {
	var t unix.Timespec
	// It cannot fail for a clock that is always there.
	_ = unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t)
	return float64(t.Nano()) / 1e9
}

// Result is what the benchmark writes down.
func (r *Results) Result() *bench.Result {
	return &bench.Result{Name: "sched", Setting: r.Setting, Promises: r.promises(), Raw: r.Rows}
}
