package locality

import (
	"fmt"
	"reflect"
	"slices"

	"disco/integration/bench"
)

// Load reads the results that a benchmark wrote to path; nil if there is no such file.
func Load(path string) (*Results, error) {
	var r Results
	if found, err := bench.ReadRaw(path, &r); err != nil || !found {
		return nil, err
	}
	return &r, nil
}

// resume takes over what b.o.Resume has of the work that is to be done. It is an error
// if that was other work.
func (b *benchmark) resume() error {
	was := b.o.Resume
	if was == nil || len(was.Runs) == 0 {
		return nil
	}
	if was.Nodes != len(b.o.Nodes) || was.CPUs != b.o.CPUs || was.MaxMoves != b.o.maxMoves() {
		return fmt.Errorf("the results to go on with are of %d nodes, %d CPUs and at most %d moves, not %d, %d and %d",
			was.Nodes, was.CPUs, was.MaxMoves, len(b.o.Nodes), b.o.CPUs, b.o.maxMoves())
	}
	if was.Thresholds != b.o.Thresholds || was.Pause != b.o.Pause {
		return fmt.Errorf("the results to go on with are of other thresholds or pauses: %+v and %v, not %+v and %v", was.Thresholds, was.Pause, b.o.Thresholds, b.o.Pause)
	}
	if b.o.Visits == 0 {
		b.o.Visits = was.Runs[0].Spec.Visits
	}
	for _, run := range was.Runs {
		want := b.o.spec(run.Workload, b.o.Visits, run.Spec.Threads)
		if !reflect.DeepEqual(run.Spec, want) {
			return fmt.Errorf("the results to go on with are of other work: %s under %s was %+v, and would be %+v", run.Workload, run.Policy, run.Spec, want)
		}
	}
	for _, p := range b.o.Policies {
		if !b.whole(was, p) {
			continue
		}
		b.done = append(b.done, p)
		b.results.Runs = append(b.results.Runs, of(was.Runs, p, func(r *Run) Policy { return r.Policy })...)
		b.results.Tables = append(b.results.Tables, of(was.Tables, p, func(t Tables) Policy { return t.Policy })...)
		b.say("%s: measured before", p)
	}
	b.results.Retried = was.Retried
	if i := slices.IndexFunc(was.Wanted, func(p Policy) bool { return !b.whole(was, p) }); i >= 0 {
		b.results.Retried = append(b.results.Retried, fmt.Sprintf("%s: what ran it came to an end; begun again with it", was.Wanted[i]))
	}
	return nil
}

// whole says whether r has all that is wanted of a policy.
func (b *benchmark) whole(r *Results, p Policy) bool {
	return !slices.ContainsFunc(b.o.Workloads, func(w string) bool {
		return (w != "moving" || p.moves()) && r.find(p, w) == nil
	})
}

// of is those of a policy.
func of[T any](all []T, p Policy, policy func(T) Policy) []T {
	return slices.DeleteFunc(slices.Clone(all), func(x T) bool { return policy(x) != p })
}
