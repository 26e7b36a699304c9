package workload

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

const (
	pageWords = PageSize / 8
	stride    = pageWords / VisitAccesses // words from one access of a visit to the next
)

// Machine is what the guest's side needs of its machine.
type Machine interface {
	// CPUs is their number.
	CPUs() int
	// Pin binds the calling thread, which is locked to its goroutine, to a CPU.
	Pin(cpu int) error
	// Map returns zeroed memory that nobody has touched, beginning on a page.
	Map(pages int, huge bool) ([]uint64, error)
	// Locate returns the guest-physical page numbers of memory, which has been touched.
	Locate(memory []uint64) ([]Frames, error)
}

// Serve is the guest's side: it does what the host asks for until the host says
// bye, and then returns nil. Before all it takes ballast pages that it does not use.
func Serve(c *Conn, m Machine, ballast int) (err error) {
	defer func() {
		if err != nil {
			_ = c.Fail(err) // the host may be what failed
		}
	}()
	var crew crew
	defer crew.dismiss()
	if err := load(m, &crew, ballast); err != nil {
		return err
	}
	if err := c.sendHello(Hello{CPUs: m.CPUs()}); err != nil {
		return err
	}
	for {
		k, p, err := c.receive(kindRun, kindBye)
		if err != nil || k == kindBye {
			return err
		}
		s, err := p.spec()
		if err != nil {
			return err
		}
		plan, err := New(s)
		if err != nil {
			return err
		}
		if len(s.Threads) > m.CPUs() {
			return fmt.Errorf("workload: %d threads, but %d CPUs", len(s.Threads), m.CPUs())
		}
		if err := crew.fill(m, len(s.Threads)); err != nil {
			return err
		}
		if err := runPlan(c, m, &crew, plan); err != nil {
			return err
		}
	}
}

// load takes the memory that booting has used and given back, and keeps it: what
// loaded the kernel had touched it first, on whichever node, and the guest's kernel
// hands out such remnants before whole free blocks. The threads are made, and have
// memory of their own, before that: what a vCPU of another node touches first takes
// up to 2 MiB there, if the host has huge pages.
func load(m Machine, w *crew, pages int) (err error) {
	if pages == 0 {
		return nil
	}
	if err := w.fill(m, m.CPUs()); err != nil {
		return err
	}
	errs := make([]error, m.CPUs())
	take := func(thread, pages int) {
		words, err := m.Map(pages, false)
		if err != nil {
			errs[thread] = fmt.Errorf("workload: ballast: %w", err)
			return
		}
		for i := 0; i < len(words); i += pageWords {
			words[i] = 1
		}
	}
	w.do(m.CPUs(), func(t int) { take(t, ownPages) })
	w.do(1, func(int) { take(0, pages) })
	return errors.Join(errs...)
}

// ownPages are what each thread takes for itself before the ballast.
const ownPages = 64

// crew is a goroutine for each thread, each on its CPU.
type crew struct{ jobs []chan func() }

// fill makes them n.
func (w *crew) fill(m Machine, n int) error {
	for cpu := len(w.jobs); cpu < n; cpu++ {
		jobs, ready := make(chan func()), make(chan error)
		go func() {
			// Never unlocked: the thread ends with its affinity.
			runtime.LockOSThread()
			ready <- m.Pin(cpu)
			for job := range jobs {
				job()
			}
		}()
		w.jobs = append(w.jobs, jobs)
		if err := <-ready; err != nil {
			return fmt.Errorf("workload: thread %d: %w", cpu, err)
		}
	}
	return nil
}

// do has the first n threads do job, and waits.
func (w *crew) do(n int, job func(thread int)) {
	var all sync.WaitGroup
	all.Add(n)
	for i, jobs := range w.jobs[:n] {
		jobs <- func() {
			defer all.Done()
			job(i)
		}
	}
	all.Wait()
}

func (w *crew) dismiss() {
	for _, jobs := range w.jobs {
		close(jobs)
	}
}

// region is a Region in memory.
type region struct {
	Region
	words []uint64
	seed  uint64
}

// value is what the words of page i hold that nobody writes.
func (r *region) value(i int) uint64 { return (r.seed + uint64(i) + 1) * 0x9e3779b97f4a7c15 }

// fill touches all pages. Words that will be written begin at zero.
func (r *region) fill() {
	for i := range r.Pages {
		page, v := r.words[i*pageWords:][:pageWords], r.value(i)
		if r.Act == Add {
			page[0] = 0
			continue
		}
		for j := range page {
			page[j] = v
		}
		if r.Act == Update {
			page[0] = 0
		}
	}
}

// visit is one visit of page i, the nth of its thread; it returns the number of loads
// that found something wrong.
func (r *region) visit(i, n int) (stale uint64) {
	page := r.words[i*pageWords:][:pageWords:pageWords]
	off := (n + n/stride) % stride // every word in time, whatever the number of pages
	switch r.Act {
	case Read:
		v := r.value(i)
		for j := off; j < pageWords; j += stride {
			if page[j] != v {
				stale++
			}
		}
	case Update:
		v := r.value(i)
		for j := off + stride; j < pageWords; j += stride {
			if page[j] != v {
				stale++
			}
		}
		page[0]++
	case Add:
		for j := off; j < pageWords; j += stride {
			atomic.AddUint64(&page[j], 1)
		}
	}
	return stale
}

// sum is the sum of all increments.
func (r *region) sum() uint64 {
	sum := uint64(0)
	for i := range r.Pages {
		page := r.words[i*pageWords:][:pageWords]
		switch r.Act {
		case Update:
			sum += page[0]
		case Add:
			for _, w := range page {
				sum += w
			}
		}
	}
	return sum
}

// cursors are where a thread is in each region.
type cursors []int

// round does a thread's visits of one round.
func (k cursors) round(regions []*region, turns []Turn, visits int) (spans []Span, stale uint64) {
	spans = make([]Span, len(turns))
	for i, t := range turns {
		spans[i].First = k[t.Region]
	}
	order := pattern(turns)
	at := 0
	for n := range visits {
		turn := order[at]
		if at++; at == len(order) {
			at = 0
		}
		index := turns[turn].Region
		r := regions[index]
		stale += r.visit(k[index], n)
		if k[index]++; k[index] == r.Pages {
			k[index] = 0
		}
		spans[turn].Visits++
	}
	return spans, stale
}

// runPlan makes the memory, does the rounds and checks.
func runPlan(c *Conn, m Machine, w *crew, plan *Plan) error {
	regions, ready, err := prepare(m, w, plan)
	if err != nil {
		return err
	}
	if err := c.sendReady(ready); err != nil {
		return err
	}
	threads := len(plan.Spec.Threads)
	places := make([]cursors, threads)
	for t := range places {
		places[t] = make(cursors, len(regions))
		for i, r := range regions {
			// Apart from each other where they share a region.
			places[t][i] = t * r.Pages / threads
		}
	}
	made := make([]uint64, len(regions)) // visits
	stale := make([]uint64, threads)
	for index := range plan.Spec.Rounds {
		if _, _, err := c.receive(kindGo); err != nil {
			return err
		}
		round := Round{Index: index, Spans: make([][]Span, threads)}
		began := time.Now()
		w.do(threads, func(t int) {
			spans, bad := places[t].round(regions, plan.Turns(t, index), plan.Spec.Visits)
			round.Spans[t], stale[t] = spans, stale[t]+bad
		})
		round.Nanos = uint64(time.Since(began))
		for t, spans := range round.Spans {
			for i, turn := range plan.Turns(t, index) {
				made[turn.Region] += uint64(spans[i].Visits)
			}
		}
		if err := c.sendRound(round); err != nil {
			return err
		}
	}
	if _, _, err := c.receive(kindGo); err != nil {
		return err
	}
	var done Done
	for _, n := range stale {
		done.Stale += n
	}
	w.do(1, func(int) {
		for i, r := range regions {
			done.Lost += lost(r, made[i])
		}
	})
	return c.sendDone(done)
}

// lost is by how much a region's sum is not what visits made of it.
func lost(r *region, visits uint64) uint64 {
	want := visits
	switch r.Act {
	case Read:
		return 0
	case Add:
		want *= VisitAccesses
	}
	got := r.sum()
	return max(got, want) - min(got, want)
}

// prepare has vCPU 0's thread make and touch all memory.
func prepare(m Machine, w *crew, plan *Plan) (regions []*region, ready Ready, err error) {
	w.do(1, func(int) {
		for i, shape := range plan.Regions {
			r := &region{Region: shape, seed: uint64(i) << 32}
			if r.words, err = m.Map(r.Pages, plan.Spec.Huge); err != nil {
				err = fmt.Errorf("workload: memory for %s: %w", r.Name, err)
				return
			}
			r.fill()
			frames, e := m.Locate(r.words)
			if err = e; err != nil {
				err = fmt.Errorf("workload: page numbers of %s: %w", r.Name, err)
				return
			}
			regions, ready.Regions = append(regions, r), append(ready.Regions, frames)
		}
	})
	return regions, ready, err
}
