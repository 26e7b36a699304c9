package traffic

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"disco/integration/bench"
)

// Results are the runs of one benchmark.
type Results struct {
	Memory    uint64      `json:"memory"` // of each guest, in bytes
	Bytes     int         `json:"bytes"`  // of each round of a stream
	Exchanges int         `json:"exchanges"`
	Readers   int         `json:"readers"`
	Rows      []Row       `json:"rows"`
	Files     []*FilesRow `json:"files"`
	Retried   []string    `json:"retried"` // runs that lost a guest, and were done once more
}

// has is whether a way was measured with all of these programs, at once.
func (r *Results) has(programs []Program, w Way) bool {
	for _, p := range programs {
		if r.values(p, w, (*Row).rate, nil) == nil {
			return false
		}
	}
	return true
}

// without leaves out the rows of ways that were not measured with all of these.
func (r *Results) without(programs []Program) {
	partly := map[Way]bool{}
	for _, w := range Ways {
		partly[w] = !r.has(programs, w)
	}
	r.Rows = slices.DeleteFunc(r.Rows, func(row Row) bool { return partly[row.Way] })
}

// reading is how a reading went, or nil.
func (r *Results) reading(how Reading) *FilesRow {
	i := slices.IndexFunc(r.Files, func(f *FilesRow) bool { return f.Reading == how })
	if i < 0 {
		return nil
	}
	return r.Files[i]
}

// values are a quantity of all rounds of a way that have it: those for which has is
// true, or all if it is nil.
func (r *Results) values(p Program, w Way, of func(*Row) float64, has func(*Row) bool) []float64 {
	var v []float64
	for i := range r.Rows {
		if row := &r.Rows[i]; row.Program == p && row.Way == w && (has == nil || has(row)) {
			v = append(v, of(row))
		}
	}
	return v
}

// median is that of all rounds' values; false if there are none.
func (r *Results) median(p Program, w Way, of func(*Row) float64) (float64, bool) {
	v := r.values(p, w, of, nil)
	if v == nil {
		return 0, false
	}
	return bench.NewBar("", v).Median, true
}

// What is promised.
const (
	promisedCopies = 1.0  // bytes copied for each that is delivered, always
	promisedMapped = 0.25 // the same for what comes from a file on the disk, map=auto
	promisedBulk   = 3.0  // rate ÷ that of QEMU's guests on taps
	promisedEcho   = 1.5  // the same for messages
	promisedFactor = 0.02 // how far a file read through DAX may be from being there once
)

// Promises are those that the runs say something about.
func (r *Results) Promises() []bench.Promise {
	var all []bench.Promise
	for _, p := range []Program{Auto, Always, Never} {
		most, some := 0.0, false
		for _, w := range Ways {
			for _, v := range r.values(p, w, (*Row).copies, nil) {
				most, some = max(most, v), true
			}
		}
		if some {
			all = append(all, bench.AtMost(fmt.Sprintf("bytes copied per byte delivered, any traffic, map=%s", p), promisedCopies, most))
		}
	}
	for _, w := range []Way{Sendfile, NFS} {
		if v, ok := r.median(Auto, w, (*Row).copies); ok {
			all = append(all, bench.AtMost(fmt.Sprintf("bytes copied per byte delivered, %s, map=auto", w), promisedMapped, v))
		}
	}
	for _, w := range Ways {
		ours, ok := r.median(Auto, w, (*Row).rate)
		theirs, ok2 := r.median(QEMU, w, (*Row).rate)
		if !ok || !ok2 {
			continue
		}
		want := promisedBulk
		if w == Echo {
			want = promisedEcho
		}
		all = append(all, bench.AtLeast(fmt.Sprintf("%s, rate ÷ that of QEMU on taps and a bridge", w), want, ours/theirs))
	}
	if f := r.reading(ByDAX); f != nil {
		name := fmt.Sprintf("machine memory for a file that %d guests read by DAX, distance from 1 × the file", f.Readers)
		all = append(all, bench.AtMost(name, promisedFactor, max(f.Factor()-1, 1-f.Factor())))
	}
	return all
}

// titles are the programs' names for people.
var titles = map[Program]string{
	Auto: "disco, map=auto", Always: "disco, map=always", Never: "disco, map=never", Tap: "disco, tap",
	QEMU: "QEMU, tap", Vhost: "QEMU, vhost-net",
}

// quantities are what is said of each way.
var quantities = []struct {
	name string
	unit func(Way) string
	of   func(*Row) float64
	has  func(*Row) bool
}{
	{"rate", Way.unit, (*Row).rate, nil},
	{"copies", func(Way) string { return "bytes copied/byte delivered" }, (*Row).copies, nil},
	{"exits", func(w Way) string { return "exits/" + w.piece() }, func(r *Row) float64 { return float64(r.Exits.All) / r.pieces() }, nil},
	{"exits to the monitor", func(w Way) string { return "exits/" + w.piece() }, func(r *Row) float64 { return float64(r.Exits.Userspace) / r.pieces() }, nil},
	{"machine memory", func(Way) string { return "bytes/byte of data" }, func(r *Row) float64 { return float64(*r.Memory) / float64(r.Bytes) },
		func(r *Row) bool { return r.Memory != nil }},
}

// piece is what exits are counted for.
func (w Way) piece() string {
	if w == Echo {
		return "exchange"
	}
	return "MB"
}

func (r *Row) pieces() float64 {
	if r.Way == Echo {
		return float64(r.Ops)
	}
	return r.megabytes()
}

// Print shows the runs to people, one line for each program and way: medians.
func (r *Results) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "way\tprogram\trate\t\t÷ QEMU, tap\tcopied\tmapped\texits\tof these to the monitor\tmemory\t")
	fmt.Fprintln(t, "\t\t\t\t\tper byte delivered\t\tper MB or exchange\t\tper byte\t")
	for _, way := range Ways {
		theirs, known := r.median(QEMU, way, (*Row).rate)
		for _, p := range Programs {
			rate, ok := r.median(p, way, (*Row).rate)
			if !ok {
				continue
			}
			ratio := "-"
			if known {
				ratio = fmt.Sprintf("%.2f", rate/theirs)
			}
			mapped, _ := r.median(p, way, (*Row).mapped)
			cells := []string{}
			for _, q := range quantities[1:] {
				cell := "-"
				if v := r.values(p, way, q.of, q.has); v != nil {
					cell = fmt.Sprintf("%.2f", bench.NewBar("", v).Median)
				}
				cells = append(cells, cell)
			}
			cells = slices.Insert(cells, 1, fmt.Sprintf("%.2f", mapped))
			fmt.Fprintf(t, "%s\t%s\t%.1f\t%s\t%s\t%s\t\n", way, titles[p], rate, way.unit(), ratio, strings.Join(cells, "\t"))
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if len(r.Files) > 0 {
		fmt.Fprintln(t, "\nread by\tguests\tfile\tmachine memory\t× the file\tguests' page caches\ttime\tcopied\tmapped\t")
		for _, f := range r.Files {
			fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%.2f\t%s\t%.1f s\t%s\t%s\t\n", f.Reading, f.Readers, mib(f.Bytes), mib(uint64(max(0, f.Memory()))), f.Factor(),
				mib(f.Cached), f.Seconds, mib(f.Copied), mib(f.Mapped))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	for _, why := range r.Retried {
		fmt.Fprintf(w, "done once more: %s\n", why)
	}
	return nil
}

func mib(n uint64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// Result is what is written down.
func (r *Results) Result(setting string) *bench.Result {
	res := &bench.Result{Name: "net", Setting: setting, Promises: r.Promises(), Raw: r}
	for _, way := range Ways {
		for _, q := range quantities {
			s := bench.Series{Name: string(way) + ": " + q.name, Unit: q.unit(way)}
			for _, p := range Programs {
				if v := r.values(p, way, q.of, q.has); v != nil {
					s.Bars = append(s.Bars, bench.NewBar(titles[p], v))
				}
			}
			if len(s.Bars) > 0 {
				res.Series = append(res.Series, s)
			}
		}
	}
	if len(r.Files) > 0 {
		s := bench.Series{Name: fmt.Sprintf("A file read by %d guests: machine memory", r.Readers), Unit: "× the file"}
		for _, f := range r.Files {
			s.Bars = append(s.Bars, bench.NewBar(string(f.Reading), []float64{f.Factor()}))
		}
		res.Series = append(res.Series, s)
	}
	return res
}

// Load reads the results that a benchmark wrote to path; nil if there is no such file.
func Load(path string) (*Results, error) {
	r := &Results{}
	if found, err := bench.ReadRaw(path, r); err != nil || !found {
		return nil, err
	}
	return r, nil
}
