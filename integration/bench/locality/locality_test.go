package locality

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"disco/integration/guest/workload"
	"disco/memory"
	"disco/numa"
	"disco/numa/balance"
)

// model is a guest of the test's own: vCPU i runs on node i*nodes/vcpus, and a page
// is on node 0 until act moves it.
type model struct {
	nodes  []numa.Node
	vcpus  int
	where  map[uint64]numa.Node
	copies map[uint64]uint32
	looks  int
	count  Counters
	mu     sync.Mutex
	moved  []numa.Node
	gone   chan struct{} // closed by Move; a guest that moves all its vCPUs has one
	// act is called before each look at the pages but the first.
	act func(m *model)
}

func (m *model) Locate(dst []numa.Node, p uint64) error {
	for i := range dst {
		dst[i] = m.where[p+uint64(i)]
	}
	return nil
}
func (m *model) Replicas(p uint64) uint32 { return m.copies[p] }
func (m *model) Nodes() []numa.Node       { return m.nodes }
func (m *model) Homes() []numa.Node {
	m.mu.Lock()
	defer m.mu.Unlock()
	homes := make([]numa.Node, m.vcpus)
	for i := range homes {
		switch {
		case len(m.moved) > 0:
			homes[i] = m.moved[len(m.moved)-1]
		case m.gone != nil:
			homes[i] = m.nodes[0]
		default:
			homes[i] = m.nodes[i*len(m.nodes)/m.vcpus]
		}
	}
	return homes
}
func (m *model) Move(to numa.Node) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.moved = append(m.moved, to)
	close(m.gone)
	return nil
}
func (m *model) Handled(uint64) (moved, copied uint64) {
	return m.count.Migrated, m.count.Replicated
}
func (m *model) Balance() balance.Stats { return balance.Stats{} }
func (m *model) Counters() Counters {
	m.looks++
	if m.act != nil && m.looks > 1 {
		m.act(m)
	}
	return m.count
}

// paper is a guest without a guest: its memory is made of words in this process.
type paper struct {
	cpus int
	next uint64
}

func (p *paper) CPUs() int                           { return p.cpus }
func (p *paper) Pin(_ int) error                     { return nil }
func (p *paper) Map(n int, _ bool) ([]uint64, error) { return make([]uint64, n*512), nil }
func (p *paper) Locate(w []uint64) ([]workload.Frames, error) {
	f := workload.Frames{PPN: p.next, N: len(w) / 512}
	p.next += uint64(f.N)
	return []workload.Frames{f}, nil
}

var twoNodes = []numa.Node{0, 1}

// driven runs one workload of 16 pages a thread on two nodes, two threads each.
func driven(t *testing.T, name string, m *model) *Run {
	t.Helper()
	host, guest := net.Pipe()
	defer host.Close()
	end := make(chan error, 1)
	go func() { end <- workload.Serve(workload.NewConn(guest), &paper{cpus: 4}, 3) }()
	c := workload.NewConn(host)
	if _, err := c.Hello(); err != nil {
		t.Fatal(err)
	}
	plan, err := workload.New(workload.Spec{Name: name, Pages: 16, Rounds: 8, Visits: 320, Threads: []int{0, 0, 1, 1}})
	if err != nil {
		t.Fatal(err)
	}
	m.nodes, m.vcpus = twoNodes, 4
	if m.where == nil {
		m.where = map[uint64]numa.Node{}
	}
	rounds := 0
	r, err := drive(c, m, []memory.Range{{Start: 0, Size: 1 << 30}}, twoNodes, plan, 1, func(Point) { rounds++ })
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Bye(); err != nil {
		t.Fatal(err)
	}
	if err := <-end; err != nil {
		t.Fatal(err)
	}
	if rounds != 8 || len(r.Points) != 8 || r.Whole.Total() != 8*320*4*workload.VisitAccesses {
		t.Fatalf("%d rounds, %d points, %d accesses", rounds, len(r.Points), r.Whole.Total())
	}
	return r
}

func TestDriveUntreated(t *testing.T) {
	for _, name := range workload.Names {
		if name == "moving" {
			continue
		}
		if r := driven(t, name, &model{}); r.Before.Local() != 0.5 || r.Settled.Local() != 0.5 || r.Whole.Lost != 0 {
			t.Errorf("%s: %v before, %v settled", name, r.Before.Local(), r.Settled.Local())
		}
	}
}

// A policy that moves the arrays of node 1's threads there after two rounds.
func TestDriveMigrated(t *testing.T) {
	r := driven(t, "private", &model{act: func(m *model) {
		if m.looks == 4 {
			for p := uint64(32); p < 64; p++ {
				m.where[p] = 1
			}
			m.count.Migrated = 32
		}
	}})
	if r.Before.Local() != 0.5 || r.Settled.Local() != 1 || r.Did.Migrated != 32 || r.Steady.Migrated != 0 {
		t.Errorf("%v before, %v settled, did %+v, %+v", r.Before.Local(), r.Settled.Local(), r.Did, r.Steady)
	}
	if got := r.Points[0].Local; got != 0.5 {
		t.Errorf("first round %v", got)
	}
}

func TestDriveReplicated(t *testing.T) {
	copies := map[uint64]uint32{}
	for p := range uint64(32) { // half of the table
		copies[p] = 1 << 1
	}
	r := driven(t, "readshared", &model{copies: copies})
	if got := r.Settled.Local(); got != 0.75 {
		t.Errorf("%v local", got)
	}
	if got := r.Settled.Counts[1][1]; got == 0 || r.Settled.Counts[0][1] != 0 {
		t.Errorf("counts %v", r.Settled.Counts)
	}
}

func TestDriveMoves(t *testing.T) {
	m := &model{gone: make(chan struct{})}
	m.act = func(m *model) {
		if m.looks == 7 {
			<-m.gone // the move takes this long
		}
	}
	r := driven(t, "moving", m)
	if !slices.Equal(m.moved, []numa.Node{1}) {
		t.Errorf("moved to %v", m.moved)
	}
	if first, last := r.Points[0].Local, r.Points[7].Local; first != 1 || last != 0 {
		t.Errorf("first %v, last %v", first, last)
	}
}

// A page that is nowhere for a moment is where it was; one that never was anywhere is
// remote to all.
func TestNowhere(t *testing.T) {
	r := driven(t, "private", &model{where: map[uint64]numa.Node{0: -1}})
	if r.Whole.Lost == 0 || r.Whole.Lost != r.Whole.Total()/64 {
		t.Errorf("%d of %d lost", r.Whole.Lost, r.Whole.Total())
	}
	m := &model{act: func(m *model) { m.where[5] = -1 }}
	if r := driven(t, "private", m); r.Whole.Lost != 0 {
		t.Errorf("%d lost", r.Whole.Lost)
	}
}

func TestCensusDoubts(t *testing.T) {
	plan, err := workload.New(workload.Spec{Name: "private", Pages: 4, Rounds: 2, Visits: 1, Threads: []int{0}})
	if err != nil {
		t.Fatal(err)
	}
	ram := []memory.Range{{Start: 0, Size: 64 << 12}, {Start: 1 << 32, Size: 4 << 12}}
	for _, tt := range []struct {
		f  workload.Frames
		ok bool
	}{
		{workload.Frames{PPN: 60, N: 4}, true}, {workload.Frames{PPN: 61, N: 4}, false},
		{workload.Frames{PPN: 1 << 20, N: 4}, true}, {workload.Frames{PPN: 1<<20 + 1, N: 4}, false},
	} {
		_, err := newCensus(plan, workload.Ready{Regions: [][]workload.Frames{{tt.f}}}, twoNodes, ram)
		if (err == nil) != tt.ok {
			t.Errorf("%+v: %v", tt.f, err)
		}
	}
}

func TestTally(t *testing.T) {
	a := NewTally(twoNodes)
	if a.Local() != 0 || a.Cost(DiscoLatency) != 1 {
		t.Error("an empty tally")
	}
	a.Add(0, 0, 60)
	a.Add(1, 1, 15)
	a.Add(1, 0, 25)
	b := NewTally(twoNodes)
	b.Merge(a)
	b.Merge(a)
	if a.Local() != 0.75 || b.Local() != 0.75 || b.Total() != 200 {
		t.Errorf("%v, %v, %d", a.Local(), b.Local(), b.Total())
	}
	if got := a.Cost(DiscoLatency); math.Abs(got-(0.75+0.25*3)) > 1e-12 {
		t.Errorf("cost %v", got)
	}
	a.Add(0, 7, 100)
	if a.Local() != 0.375 || a.Lost != 100 {
		t.Errorf("%v local, %d lost", a.Local(), a.Lost)
	}
	if got := a.Cost(DiscoLatency); math.Abs(got-(75+125*3)/200.) > 1e-12 {
		t.Errorf("cost %v", got)
	}
	// Latencies that differ by node weigh by node.
	l := Latencies{{0, 0}: 80, {0, 1}: 160, {1, 0}: 200, {1, 1}: 100}
	if got := b.Cost(l.Of); math.Abs(got-(120*80+30*100+50*200.)/(120*80+80*100)) > 1e-12 {
		t.Errorf("cost %v", got)
	}
	if got := l.String(); got != "80 to 100 ns local, 160 to 200 ns remote" {
		t.Error(got)
	}
}

// made is a run whose settled share is so many percent on two nodes.
func made(p Policy, name string, settled uint64) *Run {
	tally := func(local uint64) *Tally {
		t := NewTally(twoNodes)
		t.Add(0, 0, local)
		t.Add(0, 1, 100-local)
		return t
	}
	return &Run{
		Policy: p, Workload: name, Spec: workload.Spec{Pages: 100}, Before: tally(50), Settled: tally(settled), Whole: tally(settled),
		Points:  []Point{{Accesses: 50, Local: 0.5}, {Accesses: 100, Local: float64(settled) / 100, Settled: true}},
		SteadyS: 1, Seconds: 2,
	}
}

func TestPromises(t *testing.T) {
	base := func() *Results {
		return &Results{Nodes: 2, CPUs: 4, MaxMoves: 4, Runs: []*Run{
			made(Off, "private", 50), made(AutoNUMA, "private", 80), made(Full, "private", 99),
			made(Off, "writeshared", 50), made(AutoNUMA, "writeshared", 50), made(Full, "writeshared", 50),
			made(Off, "mixed", 50), made(AutoNUMA, "mixed", 99), made(Full, "mixed", 98),
		}}
	}
	for _, tt := range []struct {
		name   string
		spoil  func(r *Results)
		missed []string
	}{
		{"all kept", func(*Results) {}, nil},
		{"share", func(r *Results) { *r.Runs[2] = *made(Full, "private", 96) },
			[]string{"private, full: local once settled, %", "private, full: modelled cost ÷ uniform ideal (300/900 ns)"}},
		{"mixed may have less", func(r *Results) { *r.Runs[8] = *made(Full, "mixed", 91) },
			[]string{"mixed, full: points above autonuma, or both above 97 %"}},
		{"worse than off", func(r *Results) { *r.Runs[5] = *made(Full, "writeshared", 48) },
			[]string{"writeshared, full: points above off", "writeshared, full: points above autonuma, or both above 97 %"}},
		{"copies of what is written", func(r *Results) { r.Runs[5].OwnSteady.Copied = 1 }, []string{"writeshared, full: pages copied once settled"}},
		{"ping-pong", func(r *Results) { r.Runs[5].Own.Moved = 401 }, []string{"writeshared, full: moves of each page"}},
		{"dear samples", func(r *Results) { r.Runs[2].Did = Counters{Migrated: 100, Sampling: 201} },
			[]string{"full: sampling faults for each page moved or copied"}},
		{"restless", func(r *Results) { r.Runs[2].Steady.Sampling = 101 }, []string{"private, full: sampling faults per second and node once settled"}},
		{"faults for nothing", func(r *Results) { r.Runs[0].Did.Faults = 1 }, []string{"private, off: faults"}},
	} {
		r := base()
		tt.spoil(r)
		var missed []string
		for _, p := range r.Promises() {
			if !p.OK {
				missed = append(missed, p.Name)
			}
		}
		if !slices.Equal(missed, tt.missed) {
			t.Errorf("%s: missed %q, want %q", tt.name, missed, tt.missed)
		}
	}
}

func TestCheckUntreated(t *testing.T) {
	r := &Results{Nodes: 2, Runs: []*Run{made(Off, "private", 50), made(Full, "mixed", 97)}}
	if err := r.CheckUntreated(); err != nil {
		t.Error(err)
	}
	r.Nodes = 4
	if err := r.CheckUntreated(); err == nil || !strings.Contains(err.Error(), "should have been about 1/4") {
		t.Errorf("got %v", err)
	}
	r.Runs[0].Workload, r.Runs[1].Policy = "moving", Interleave
	if err := r.CheckUntreated(); err != nil {
		t.Error(err)
	}
}

func TestPrint(t *testing.T) {
	r := &Results{Nodes: 2, Runs: []*Run{made(Off, "private", 50), made(Full, "private", 99)},
		Tables:  []Tables{{Policy: Full, Nodes: twoNodes, Grown: []int64{40, 36}}, {Policy: Full, Thin: true, Nodes: twoNodes, Grown: []int64{8, 0}}},
		Retried: []string{"full: the guest is gone"}}
	r.Runs[1].Did = Counters{Migrated: 11, Replicated: 22, Collapsed: 33, Sampling: 44, Copied: 55 << 20, Relayed: 66}
	var b strings.Builder
	if err := r.Print(&b, []Model{{"Disco's 300/900 ns", DiscoLatency}}, true); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"50.0     99.0  99.0        11          22         33        44    55.0          66  2.00 s",
		"second-level page tables, full: node 0 40 KiB, node 1 36 KiB\n",
		"a guest was lost and booted once more: full: the guest is gone\n",
		"Modelled, not measured", "off 2.00 (2.00)  full 1.02 (1.02)",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in:\n%s", want, &b)
		}
	}
	if strings.Contains(b.String(), "8 KiB") {
		t.Error("a thin guest's tables are shown")
	}
	b.Reset()
	if err := r.Print(&b, nil, false); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.String(), "2.00 s") || !strings.Contains(b.String(), "not meaningful here") {
		t.Errorf("times in the lab:\n%s", &b)
	}
}

func TestResult(t *testing.T) {
	r := &Results{Nodes: 2, Runs: []*Run{made(Off, "private", 50), made(Full, "private", 99)}}
	res := r.Result("on a desk")
	if len(res.Series) != 1 || len(res.Series[0].Bars) != 2 || res.Series[0].Bars[1].Median != 99 {
		t.Errorf("series %+v", res.Series)
	}
	if err := res.Write(filepath.Join(t.TempDir(), "numa.json")); err != nil {
		t.Error(err)
	}
}

func TestChart(t *testing.T) {
	r := &Results{Nodes: 2}
	for _, name := range workload.Names {
		for _, p := range Policies {
			r.Runs = append(r.Runs, made(p, name, 90))
		}
	}
	var b bytes.Buffer
	if err := r.Chart(&b, "a < b"); err != nil {
		t.Fatal(err)
	}
	lines, texts := 0, 0
	d := xml.NewDecoder(bytes.NewReader(b.Bytes()))
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("not XML: %v", err)
		}
		if e, ok := token.(xml.StartElement); ok {
			switch e.Name.Local {
			case "polyline":
				lines++
			case "text":
				texts++
			}
		}
	}
	if lines != len(workload.Names)*len(Policies) || texts == 0 || !strings.Contains(b.String(), "a &lt; b") {
		t.Errorf("%d lines, %d texts", lines, texts)
	}
}

func TestParsePolicies(t *testing.T) {
	got, err := ParsePolicies("full,off,full")
	if err != nil || !slices.Equal(got, []Policy{Off, Full}) {
		t.Errorf("%v, %v", got, err)
	}
	for _, s := range []string{"", "off,", "Off", "all"} {
		if _, err := ParsePolicies(s); err == nil {
			t.Errorf("%q was taken", s)
		}
	}
}

func TestBalancing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "numa_balancing")
	if err := os.WriteFile(file, []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	is := func(want string) {
		t.Helper()
		if b, err := os.ReadFile(file); err != nil || string(b) != want {
			t.Errorf("%q, %v; want %q", b, err, want)
		}
	}
	b, err := openBalancingAt(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		do   func() error
		want string
	}{
		{func() error { return b.set(false) }, "0"}, {func() error { return b.set(true) }, "1"},
		{func() error { return b.set(false) }, "0"}, {b.restore, "1"},
	} {
		if err := step.do(); err != nil {
			t.Error(err)
		}
		is(step.want)
	}
	b, err = openBalancingAt(file + "-absent")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.set(false), b.restore()); err != nil {
		t.Error(err)
	}
	if err := b.set(true); err == nil {
		t.Error("autonuma without numa_balancing")
	}
}

func TestHostActs(t *testing.T) {
	got := parseHostActs("nr_free_pages 9\nnuma_hint_faults 7\nnuma_pages_migrated 3\nnuma_x\n")
	if want := (Counters{Migrated: 3, Copied: 3 * 4096, Faults: 7, Sampling: 7}); got != want {
		t.Errorf("%+v", got)
	}
}

func TestSecondLevel(t *testing.T) {
	text := "Node 1 PageTables:         1000 kB\nNode 1 SecPageTables:       123 kB\n"
	if got, ok := secondLevel(text); got != 123 || !ok {
		t.Errorf("%d, %v", got, ok)
	}
	if _, ok := secondLevel("Node 1 PageTables: 1000 kB\n"); ok {
		t.Error("found in an old kernel's")
	}
}

func Example_roundDigits() {
	fmt.Println(roundDigits(123456), roundDigits(99), roundDigits(0))
	// Output: 120000 99 1
}

// TestResume: what a benchmark that was broken off has of the same work is not done again.
func TestResume(t *testing.T) {
	o := Options{
		Nodes: []numa.Node{0, 1}, CPUs: 2, Size: 1 << 20, Rounds: 8, Visits: 100,
		Policies: []Policy{Off, Interleave, Full}, Workloads: []string{"private", "moving"}, Progress: io.Discard,
	}
	run := func(p Policy, name string, threads ...int) *Run {
		return &Run{Policy: p, Workload: name, Spec: o.spec(name, 100, threads), Settled: NewTally(o.Nodes)}
	}
	was := &Results{
		Runs:  []*Run{run(Off, "private", 0, 1), run(Off, "moving", 0), run(Interleave, "private", 0, 1), run(Full, "private", 0, 1)},
		Nodes: 2, CPUs: 2, Wanted: o.Policies, MaxMoves: o.maxMoves(), Tables: []Tables{{Policy: Off}, {Policy: Full}}, Retried: []string{"off: lost"},
	}
	path := filepath.Join(t.TempDir(), "r.json")
	if err := was.Result("a test").Write(path); err != nil {
		t.Fatal(err)
	}
	var err error
	if o.Resume, err = Load(path); err != nil {
		t.Fatal(err)
	}
	b := &benchmark{o: &o, results: &Results{}}
	if err := b.resume(); err != nil {
		t.Fatal(err)
	}
	// Full was not moved yet, and Interleave never is.
	if want := []Policy{Off, Interleave}; !slices.Equal(b.done, want) {
		t.Errorf("it takes over %v, want %v", b.done, want)
	}
	if r := b.results; len(r.Runs) != 3 || len(r.Tables) != 1 || len(r.Retried) != 2 || !strings.HasPrefix(r.Retried[1], "full:") {
		t.Errorf("it goes on with %+v", r)
	}

	o.Resume.Wanted = []Policy{Off, Interleave}
	b = &benchmark{o: &o, results: &Results{}}
	if err := b.resume(); err != nil || len(b.results.Retried) != 1 {
		t.Errorf("more is asked for than before: %v, %q", err, b.results.Retried)
	}

	o.Visits = 200
	if err := (&benchmark{o: &o, results: &Results{}}).resume(); err == nil || !strings.Contains(err.Error(), "other work") {
		t.Errorf("results of other work: %v", err)
	}
	o.Pause = time.Second
	if err := (&benchmark{o: &o, results: &Results{}}).resume(); err == nil || !strings.Contains(err.Error(), "pauses") {
		t.Errorf("results with other pauses: %v", err)
	}
	o.CPUs = 4
	if err := (&benchmark{o: &o, results: &Results{}}).resume(); err == nil || !strings.Contains(err.Error(), "2 CPUs") {
		t.Errorf("results of another guest: %v", err)
	}
	if r, err := Load(filepath.Join(t.TempDir(), "none")); r != nil || err != nil {
		t.Errorf("no file: %v, %v", r, err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), "r.json") {
		t.Errorf("half a file: %v", err)
	}
}

// TestRising: a run that ends while its pages still come near says so.
func TestRising(t *testing.T) {
	points := func(shares ...float64) (r Run) {
		for _, s := range shares {
			r.Points = append(r.Points, Point{Local: max(s, -s), Settled: s >= 0}) // a negative one is not settled
		}
		return r
	}
	for _, tt := range []struct {
		what string
		run  Run
		want bool
	}{
		{"settled", points(-0.5, -0.9, 0.98, 0.985, 0.98), false},
		{"not yet", points(-0.5, -0.6, 0.7, 0.7, 0.8), true},
		{"worse", points(-0.5, 0.9, 0.5), false},
		{"settled, and settled again higher", points(-0.2, 0.5, 0.5, -0.1, 1, 1), false},
		{"not the second time", points(-0.2, 1, 1, -0.1, 0.1, 0.5), true},
		{"nothing", Run{}, false},
	} {
		if got := tt.run.rising(); got != tt.want {
			t.Errorf("%s: %v", tt.what, got)
		}
	}
}
