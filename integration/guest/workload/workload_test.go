package workload

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// fakeMachine has its memory in this process; pages get numbers in pieces of three.
type fakeMachine struct {
	cpus    int
	next    uint64
	failMap error
	maps    [][]uint64
}

func (m *fakeMachine) CPUs() int       { return m.cpus }
func (m *fakeMachine) Pin(_ int) error { return nil }

func (m *fakeMachine) Map(pages int, _ bool) ([]uint64, error) {
	if m.failMap != nil {
		return nil, m.failMap
	}
	words := make([]uint64, pages*pageWords)
	m.maps = append(m.maps, words)
	return words, nil
}

func (m *fakeMachine) Locate(words []uint64) ([]Frames, error) {
	var f []Frames
	for left := len(words) / pageWords; left > 0; left -= 3 {
		f = append(f, Frames{m.next, min(3, left)})
		m.next += 10
	}
	return f, nil
}

// ends are a host's and a guest's end of the protocol; the guest's error comes on the
// channel.
func ends(t *testing.T, m Machine) (*Conn, net.Conn, <-chan error) {
	t.Helper()
	host, guest := net.Pipe()
	end := make(chan error, 1)
	go func() {
		defer guest.Close()
		end <- Serve(NewConn(guest), m, 0)
	}()
	t.Cleanup(func() { host.Close() })
	return NewConn(host), host, end
}

func TestWorkloads(t *testing.T) {
	m := &fakeMachine{cpus: 4}
	c, _, end := ends(t, m)
	h, err := c.Hello()
	if err != nil || h.CPUs != 4 {
		t.Fatalf("hello %+v, %v", h, err)
	}
	for _, name := range Names {
		plan, err := New(Spec{Name: name, Pages: 12, Rounds: 4, Visits: 1000, Threads: []int{0, 0, 1, 1}})
		if err != nil {
			t.Fatal(err)
		}
		ready, err := c.Run(plan)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for i, frames := range ready.Regions {
			n := 0
			for _, f := range frames {
				n += f.N
			}
			if n != plan.Regions[i].Pages {
				t.Errorf("%s: %s has %d pages, want %d", name, plan.Regions[i].Name, n, plan.Regions[i].Pages)
			}
		}
		for i := range plan.Spec.Rounds {
			if err := c.Go(); err != nil {
				t.Fatal(err)
			}
			r, err := c.Round(plan, i)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			for thread, spans := range r.Spans {
				if len(spans) != len(plan.Turns(thread, i)) {
					t.Errorf("%s: thread %d made %v", name, thread, spans)
				}
			}
		}
		if err := c.Go(); err != nil {
			t.Fatal(err)
		}
		d, err := c.Done()
		if err != nil || d != (Done{}) {
			t.Errorf("%s: %+v, %v", name, d, err)
		}
	}
	if err := c.Bye(); err != nil {
		t.Fatal(err)
	}
	if err := <-end; err != nil {
		t.Error(err)
	}
}

// A monitor that loses a write, or shows an old page, is found out.
func TestWorkloadNoticesLoss(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func([]uint64)
		want  func(Done) bool
	}{
		{"private", func(w []uint64) { w[0]-- }, func(d Done) bool { return d.Lost == 1 && d.Stale == 0 }},
		{"private", func(w []uint64) { w[pageWords+40]++ }, func(d Done) bool { return d.Stale > 0 && d.Lost == 0 }},
		{"readshared", func(w []uint64) { w[7] = 0 }, func(d Done) bool { return d.Stale > 0 }},
		{"writeshared", func(w []uint64) { w[7] += 3 }, func(d Done) bool { return d.Lost == 3 }},
	} {
		m := &fakeMachine{cpus: 1}
		c, _, _ := ends(t, m)
		if _, err := c.Hello(); err != nil {
			t.Fatal(err)
		}
		plan, err := New(Spec{Name: tt.name, Pages: 4, Rounds: 2, Visits: 2000, Threads: []int{0}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Run(plan); err != nil {
			t.Fatal(err)
		}
		for i := range 2 {
			if err := c.Go(); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Round(plan, i); err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				tt.spoil(m.maps[0])
			}
		}
		if err := c.Go(); err != nil {
			t.Fatal(err)
		}
		if d, err := c.Done(); err != nil || !tt.want(d) {
			t.Errorf("%s: %+v, %v", tt.name, d, err)
		}
	}
}

func TestGuestFails(t *testing.T) {
	c, _, end := ends(t, &fakeMachine{cpus: 1, failMap: errors.New("no memory")})
	if _, err := c.Hello(); err != nil {
		t.Fatal(err)
	}
	plan, err := New(Spec{Name: "private", Pages: 4, Rounds: 2, Visits: 1, Threads: []int{0}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Run(plan); !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), "no memory") {
		t.Errorf("got %v", err)
	}
	if err := <-end; err == nil {
		t.Error("the guest's side saw no error")
	}
}

func TestMoreThreadsThanCPUs(t *testing.T) {
	c, _, _ := ends(t, &fakeMachine{cpus: 1})
	if _, err := c.Hello(); err != nil {
		t.Fatal(err)
	}
	plan, err := New(Spec{Name: "private", Pages: 4, Rounds: 2, Visits: 1, Threads: []int{0, 0}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Run(plan); err == nil || !strings.Contains(err.Error(), "2 threads, but 1 CPUs") {
		t.Errorf("got %v", err)
	}
}

func TestSpecs(t *testing.T) {
	good := Spec{Name: "mixed", Pages: 8, Rounds: 2, Visits: 5, Threads: []int{0, 1}}
	if p, err := New(good); err != nil || p.Pages() != 2*4+16+2 {
		t.Fatalf("%+v, %v", p, err)
	}
	for _, spoil := range []func(*Spec){
		func(s *Spec) { s.Name = "none" },
		func(s *Spec) { s.Pages = 3 },
		func(s *Spec) { s.Pages = MaxPages + 1 },
		func(s *Spec) { s.Rounds = 3 },
		func(s *Spec) { s.Rounds = 0 },
		func(s *Spec) { s.Visits = 0 },
		func(s *Spec) { s.Threads = nil },
		func(s *Spec) { s.Threads = make([]int, MaxThreads+1) },
	} {
		s := good
		spoil(&s)
		if _, err := New(s); err == nil {
			t.Errorf("%+v was taken", s)
		}
	}
}

func TestPartners(t *testing.T) {
	for _, tt := range []struct{ nodes, want []int }{
		{[]int{0, 0, 1, 1}, []int{2, 3, 0, 1}},
		{[]int{0, 1, 0, 1}, []int{1, 2, 3, 0}},
		{[]int{0, 1, 2, 3}, []int{1, 2, 3, 0}},
		{[]int{0, 0, 1, 1, 2, 2, 3, 3}, []int{2, 3, 4, 5, 6, 7, 0, 1}},
		{[]int{5}, []int{0}},
	} {
		got := partners(tt.nodes)
		if len(got) != len(tt.want) {
			t.Fatal(got)
		}
		used := map[int]bool{}
		for i, p := range got {
			used[p] = true
			if len(tt.nodes) > 1 && tt.nodes[i] == tt.nodes[p] {
				t.Errorf("%v: thread %d gets the array of %d, on its own node", tt.nodes, i, p)
			}
		}
		if len(used) != len(got) {
			t.Errorf("%v: %v gives an array twice", tt.nodes, got)
		}
	}
}

func TestPattern(t *testing.T) {
	got := pattern([]Turn{{Weight: 10}, {Weight: 9}, {Weight: 1}})
	n := map[int]int{}
	for _, i := range got {
		n[i]++
	}
	if len(got) != 20 || n[0] != 10 || n[1] != 9 || n[2] != 1 {
		t.Errorf("%v", got)
	}
	if got := pattern([]Turn{{Weight: 1}}); !slices.Equal(got, []int{0}) {
		t.Errorf("%v", got)
	}
}

func TestWeights(t *testing.T) {
	for _, tt := range []struct {
		s    Span
		want []uint64
	}{
		{Span{0, 0}, []uint64{0, 0, 0, 0}},
		{Span{0, 8}, []uint64{2, 2, 2, 2}},
		{Span{3, 6}, []uint64{2, 1, 1, 2}},
		{Span{1, 2}, []uint64{0, 1, 1, 0}},
	} {
		w := make([]uint64, 4)
		tt.s.Weights(w)
		if !slices.Equal(w, tt.want) {
			t.Errorf("%v: %v, want %v", tt.s, w, tt.want)
		}
	}
}

// What a thread says of its round is what it did, page by page.
func TestSpansAreWhatWasVisited(t *testing.T) {
	r := &region{Region: Region{Pages: 7, Act: Update}, words: make([]uint64, 7*pageWords)}
	r.fill()
	k := cursors{3}
	want := make([]uint64, 7)
	for _, visits := range []int{1, 5, 20, 7, 0, 13} {
		spans, stale := k.round([]*region{r}, []Turn{{0, 1}}, visits)
		if stale != 0 {
			t.Fatalf("%d stale loads", stale)
		}
		spans[0].Weights(want)
	}
	for i, w := range want {
		if got := r.words[i*pageWords]; got != w {
			t.Errorf("page %d was visited %d times, the spans say %d", i, got, w)
		}
	}
}

func TestSettled(t *testing.T) {
	p, err := New(Spec{Name: "phase", Pages: 4, Rounds: 16, Visits: 1, Threads: []int{0, 1}})
	if err != nil {
		t.Fatal(err)
	}
	var got []int
	for i := range 16 {
		if p.Settled(i) {
			got = append(got, i)
		}
	}
	if !slices.Equal(got, []int{6, 7, 14, 15}) {
		t.Errorf("%v", got)
	}
}

// script plays a guest that says what it likes.
type script struct {
	bytes.Buffer // what it says
}

func (s *script) Write(p []byte) (int, error) { return len(p), nil }

func TestHostDoubtsTheGuest(t *testing.T) {
	plan, err := New(Spec{Name: "private", Pages: 4, Rounds: 2, Visits: 8, Threads: []int{0}})
	if err != nil {
		t.Fatal(err)
	}
	ready := func(frames ...Frames) func(*Conn) error {
		return func(c *Conn) error { return c.sendReady(Ready{Regions: [][]Frames{frames}}) }
	}
	round := func(r Round) func(*Conn) error { return func(c *Conn) error { return c.sendRound(r) } }
	for name, tt := range map[string]struct {
		say func(*Conn) error
		ask func(*Conn) error
	}{
		"too few pages":     {ready(Frames{1, 3}), func(c *Conn) error { _, err := c.Run(plan); return err }},
		"too many pages":    {ready(Frames{1, 5}), func(c *Conn) error { _, err := c.Run(plan); return err }},
		"a page twice":      {ready(Frames{1, 2}, Frames{2, 2}), func(c *Conn) error { _, err := c.Run(plan); return err }},
		"a page beyond all": {ready(Frames{1 << 50, 4}), func(c *Conn) error { _, err := c.Run(plan); return err }},
		"no region":         {func(c *Conn) error { return c.sendReady(Ready{}) }, func(c *Conn) error { _, err := c.Run(plan); return err }},
		"another round":     {round(Round{Index: 1, Spans: [][]Span{{{0, 8}}}}), func(c *Conn) error { _, err := c.Round(plan, 0); return err }},
		"too few visits":    {round(Round{Spans: [][]Span{{{0, 7}}}}), func(c *Conn) error { _, err := c.Round(plan, 0); return err }},
		"too many visits":   {round(Round{Spans: [][]Span{{{0, 9}}}}), func(c *Conn) error { _, err := c.Round(plan, 0); return err }},
		"beyond the region": {round(Round{Spans: [][]Span{{{4, 8}}}}), func(c *Conn) error { _, err := c.Round(plan, 0); return err }},
		"out of turn":       {func(c *Conn) error { return c.sendDone(Done{}) }, func(c *Conn) error { _, err := c.Round(plan, 0); return err }},
		"an old guest": {func(c *Conn) error { c.begin(kindHello); c.int(0); c.int(1); return c.send() },
			func(c *Conn) error { _, err := c.Hello(); return err }},
		"silence": {func(*Conn) error { return nil }, func(c *Conn) error { _, err := c.Hello(); return err }},
	} {
		s := &script{}
		guest := &Conn{w: &s.Buffer}
		if err := tt.say(guest); err != nil {
			t.Fatal(err)
		}
		if err := tt.ask(NewConn(s)); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestSpecOnTheWire(t *testing.T) {
	plan, err := New(Spec{Name: "phase", Pages: 4, Rounds: 2, Visits: 1 << 33, Threads: []int{3, 0, 9}, Huge: true})
	if err != nil {
		t.Fatal(err)
	}
	s := &script{}
	var sent bytes.Buffer
	c := &Conn{w: &sent, r: NewConn(s).r}
	if _, err := c.Run(plan); err == nil {
		t.Fatal("a silent guest was ready")
	}
	_, p, err := NewConn(&sent).receive(kindRun)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := p.spec(); err != nil || !reflect.DeepEqual(got, plan.Spec) {
		t.Errorf("%+v, %v", got, err)
	}
}

func FuzzHost(f *testing.F) {
	plan, err := New(Spec{Name: "mixed", Pages: 8, Rounds: 2, Visits: 20, Threads: []int{0, 1}})
	if err != nil {
		f.Fatal(err)
	}
	var seed bytes.Buffer
	c := &Conn{w: &seed}
	ready := Ready{}
	at := uint64(0)
	for _, r := range plan.Regions {
		ready.Regions = append(ready.Regions, []Frames{{at, r.Pages}})
		at += uint64(r.Pages)
	}
	for _, err := range []error{c.sendReady(ready), c.sendDone(Done{1, 2}), c.Fail(fmt.Errorf("x"))} {
		if err != nil {
			f.Fatal(err)
		}
	}
	f.Add(seed.Bytes())
	f.Add([]byte{1, 0, 0, 0, 3})
	f.Add([]byte("\x02\x00\x00\x00\x080")) // a text longer than its message
	f.Fuzz(func(_ *testing.T, b []byte) {
		for _, ask := range []func(*Conn) error{
			func(c *Conn) error { _, err := c.Hello(); return err },
			func(c *Conn) error { _, err := c.Run(plan); return err },
			func(c *Conn) error { _, err := c.Round(plan, 1); return err },
			func(c *Conn) error { _, err := c.Done(); return err },
		} {
			s := &script{}
			s.Buffer.Write(b)
			_ = ask(NewConn(s))
		}
	})
}
