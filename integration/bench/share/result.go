package share

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"text/tabwriter"

	"disco/integration/bench"
)

// Row is one run. Sizes are in bytes.
type Row struct {
	Mode    Mode    `json:"mode"`
	Guests  int     `json:"guests"`
	V       uint64  `json:"v"` // what the guests use, as they see it: what they were given less MemFree
	M       uint64  `json:"m"` // what the machine really uses, by the kernel's count
	Each    []Guest `json:"each"`
	Seconds float64 `json:"seconds"` // since the mode's first guest was started

	// Of disco's monitor. Frames is RAM, Cache and Overlay; M is Files and Own.
	Frames    uint64 `json:"frames,omitempty"`    // that the monitor gave out
	RAM       uint64 `json:"ram,omitempty"`       // of these, private to a guest
	Cache     uint64 `json:"cache,omitempty"`     // the one buffer cache
	Overlay   uint64 `json:"overlay,omitempty"`   // what the guests wrote to their disks
	Files     uint64 `json:"files,omitempty"`     // blocks of the process's memfds
	Own       uint64 `json:"own,omitempty"`       // the process's other memory: heap, stacks, program
	Shared    uint64 `json:"shared,omitempty"`    // of the guests' memory, pages of the cache
	Mapped    uint64 `json:"mapped,omitempty"`    // of reads, answered by mapping
	Copied    uint64 `json:"copied,omitempty"`    // of reads, answered by copying
	Kernel    uint64 `json:"kernel,omitempty"`    // of the guests' kernels, mapped when they were loaded
	Collapsed uint64 `json:"collapsed,omitempty"` // shared pages that a guest wrote to
	VMAs      uint64 `json:"vmas,omitempty"`      // mappings of the process

	// Of QEMU's guests.
	Merged  uint64 `json:"merged,omitempty"`  // by the kernel: pages that are not there for it
	Settled bool   `json:"settled,omitempty"` // before the look, nothing more was merged
}

// Ratio is V/M.
func (r *Row) Ratio() float64 { return float64(r.V) / float64(r.M) }

// FileCopies is how often what the guests have from their disks and of their kernel's
// file is there, on average: in the cache, and in guests' own pages, for what was copied
// to them and what they wrote to since. It is 1 if no guest has anything of its own. What holes in files
// read as is no part of it: guests make these zeroes themselves.
func (r *Row) FileCopies() float64 {
	own := r.Copied + r.Collapsed*pageSize
	return float64(r.Cache+own) / (float64(r.Mapped+r.Copied+r.Kernel) / float64(r.Guests))
}

// Results are the runs of one benchmark.
type Results struct {
	Rows    []*Row   `json:"rows"`
	Read    string   `json:"read"`
	Job     string   `json:"job"`
	CPUs    int      `json:"cpus"`    // of each guest
	Memory  uint64   `json:"memory"`  // of each guest
	Retried []string `json:"retried"` // guests that were lost, for which others were started
}

// Load reads the results that a benchmark wrote to path; nil if there is no such file.
func Load(path string) (*Results, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := &Results{}
	if err := json.Unmarshal(b, &bench.Result{Raw: r}); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// add puts a row in its place, and takes the one that was there before.
func (r *Results) add(row *Row) {
	r.Rows = slices.DeleteFunc(r.Rows, func(old *Row) bool { return old.Mode == row.Mode && old.Guests == row.Guests })
	r.Rows = append(r.Rows, row)
	slices.SortStableFunc(r.Rows, func(a, b *Row) int {
		return cmp.Or(cmp.Compare(slices.Index(Modes, a.Mode), slices.Index(Modes, b.Mode)), cmp.Compare(a.Guests, b.Guests))
	})
}

// find is one run, or nil.
func (r *Results) find(m Mode, guests int) *Row {
	i := slices.IndexFunc(r.Rows, func(row *Row) bool { return row.Mode == m && row.Guests == guests })
	if i < 0 {
		return nil
	}
	return r.Rows[i]
}

// What is promised.
const (
	promisedRatio  = 3.0
	promisedMost   = 8     // guests that the promises are about
	promisedCopies = 1.02  // of file data that all guests read
	promisedCopied = 0.001 // of reads; what looks for partitions reads parts of pages
	promisedNever  = 1.15  // V/M without sharing
	promisedAgree  = 0.02  // the monitor's count and the kernel's
)

// Promises are those that the runs say something about.
func (r *Results) Promises() []bench.Promise {
	var all []bench.Promise
	for _, m := range []Mode{Auto, Always} {
		row := r.find(m, promisedMost)
		if row == nil {
			continue
		}
		name := func(s string) string { return fmt.Sprintf("%s, %d guests, --disk-share %s", s, promisedMost, m) }
		all = append(all,
			bench.AtLeast(name("V/M"), promisedRatio, row.Ratio()),
			bench.AtMost(name("copies of the file data that all read"), promisedCopies, row.FileCopies()),
			bench.AtMost(name("of what was read, copied"), promisedCopied, float64(row.Copied)/float64(row.Copied+row.Mapped)))
	}
	if row := r.find(Never, promisedMost); row != nil {
		all = append(all, bench.AtMost(fmt.Sprintf("V/M, %d guests, --disk-share never", promisedMost), promisedNever, row.Ratio()))
	}
	if len(r.Rows) == 0 {
		return all
	}
	first, others, gap := r.Rows[0].Each[0], 0, 0.0
	for _, row := range r.Rows {
		for _, g := range row.Each {
			if g.Sum != first.Sum || g.JobSum != first.JobSum || g.Bytes != first.Bytes {
				others++
			}
		}
		if row.Frames > 0 {
			gap = max(gap, float64(max(row.Frames, row.Files)-min(row.Frames, row.Files))/float64(row.Files))
		}
	}
	return append(all,
		bench.AtMost("guests that read or made something else than the first", 0, float64(others)),
		bench.AtMost("the monitor's count of frames and the kernel's, relative difference", promisedAgree, gap))
}

// Print shows the runs to people, one line each.
func (r *Results) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "MiB\t\t\t\t\tprivate\t\t\tread by\t\tcopies of\tpages\t\t\t")
	fmt.Fprintln(t, "guests\tmode\tV\tM\tV/M\tRAM\tcache\tmonitor\tmapping\tcopying\tfile data\tcollapsed\tmerged\tVMAs\t")
	for _, row := range r.Rows {
		m := func(n uint64) string {
			if n == 0 {
				return "-"
			}
			return fmt.Sprintf("%.1f", float64(n)/(1<<20))
		}
		copies, merged := "-", "-"
		if row.Mode != KSM {
			copies = fmt.Sprintf("%.2f", row.FileCopies())
		} else if merged = m(row.Merged); !row.Settled {
			merged += " and on"
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%.2f\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%d\t\n", row.Guests, row.Mode, m(row.V), m(row.M), row.Ratio(),
			m(row.RAM), m(row.Cache), m(row.Own), m(row.Mapped), m(row.Copied), copies, row.Collapsed, merged, row.VMAs)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, why := range r.Retried {
		fmt.Fprintf(w, "a guest was lost, and another started: %s\n", why)
	}
	return nil
}

// Result is what is written down.
func (r *Results) Result(setting string) *bench.Result {
	res := &bench.Result{Name: "share", Setting: setting, Promises: r.Promises(), Raw: r}
	for _, q := range []struct {
		name, unit string
		of         func(*Row) float64
	}{
		{"What the guests use ÷ what the machine uses", "V/M", (*Row).Ratio},
		{"What the machine uses", "MiB", func(row *Row) float64 { return float64(row.M) / (1 << 20) }},
	} {
		s := bench.Series{Name: q.name, Unit: q.unit}
		for _, row := range r.Rows {
			s.Bars = append(s.Bars, bench.NewBar(fmt.Sprintf("%s, %d", row.Mode, row.Guests), []float64{q.of(row)}))
		}
		res.Series = append(res.Series, s)
	}
	return res
}
