// Package bench is what the benchmarks write down: rows of what was measured,
// and the promised numbers with what they came to. A benchmark is a command in
// a folder below; it prints a table and leaves a Result as JSON, of which plot
// makes a picture.
//
// A benchmark measures and judges nothing but its own numbers: a promise that
// was missed is printed and recorded, and is no error.
package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
)

// Result is one run of a benchmark.
type Result struct {
	Name     string    `json:"name"`
	Setting  string    `json:"setting"` // what was measured on what, for people
	Series   []Series  `json:"series"`
	Promises []Promise `json:"promises"`
	Raw      any       `json:"raw"` // every single measurement
}

// Series is one quantity of all programs that were measured.
type Series struct {
	Name string `json:"name"`
	Unit string `json:"unit"`
	Bars []Bar  `json:"bars"`
}

// Bar is one program's part of a Series: the median of its values, and the
// least and greatest.
type Bar struct {
	Program string  `json:"program"`
	Median  float64 `json:"median"`
	Min     float64 `json:"min"`
	Max     float64 `json:"max"`
	Runs    int     `json:"runs"`
}

// Promise is a promised number and what it came to.
type Promise struct {
	Name string  `json:"name"`
	Want string  `json:"want"`
	Got  float64 `json:"got"`
	OK   bool    `json:"ok"`
}

// AtMost promises that got is not above limit.
func AtMost(name string, limit, got float64) Promise {
	return Promise{Name: name, Want: fmt.Sprintf("≤ %g", limit), Got: got, OK: got <= limit}
}

// AtLeast promises that got is not below limit.
func AtLeast(name string, limit, got float64) Promise {
	return Promise{Name: name, Want: fmt.Sprintf("≥ %g", limit), Got: got, OK: got >= limit}
}

// NewBar summarizes values, of which there is at least one.
func NewBar(program string, values []float64) Bar {
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	return Bar{Program: program, Median: (v[(n-1)/2] + v[n/2]) / 2, Min: v[0], Max: v[n-1], Runs: n}
}

// Shuffled is all in an order that depends on the round only, so that what comes
// first in one does not in the next.
func Shuffled[T any](all []T, round int) []T {
	s := slices.Clone(all)
	rand.New(rand.NewPCG(uint64(round), 0)).Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] })
	return s
}

// Write stores the Result as JSON at path, and makes the folder for it.
func (r *Result) Write(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// Read loads what Write stored.
func Read(path string) (*Result, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := &Result{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// ReadRaw loads the Raw of what Write stored into raw, a pointer; false if there is
// no such file.
func ReadRaw(path string, raw any) (bool, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := json.Unmarshal(b, &Result{Raw: raw}); err != nil {
		return false, &fs.PathError{Op: "read", Path: path, Err: err}
	}
	return true, nil
}

// Print shows the Result to people.
func (r *Result) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, r.Setting)
	for _, s := range r.Series {
		fmt.Fprintf(t, "\n%s\tmedian %s\tmin\tmax\truns\n", s.Name, s.Unit)
		for _, b := range s.Bars {
			fmt.Fprintf(t, "  %s\t%s\t%s\t%s\t%d\n", b.Program, figure(b.Median), figure(b.Min), figure(b.Max), b.Runs)
		}
	}
	fmt.Fprintln(t)
	if err := t.Flush(); err != nil {
		return err
	}
	return r.PrintPromises(w)
}

// PrintPromises shows what was promised and what came of it.
func (r *Result) PrintPromises(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, p := range r.Promises {
		verdict := "kept"
		if !p.OK {
			verdict = "MISSED"
		}
		fmt.Fprintf(t, "%s\t%s\tgot %s\t%s\n", p.Name, p.Want, figure(p.Got), verdict)
	}
	return t.Flush()
}

// figure is v with as many digits as people want.
func figure(v float64) string {
	if v == float64(int64(v)) {
		return fmt.Sprint(int64(v))
	}
	return fmt.Sprintf("%.2f", v)
}
