package share

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const printed = "[    1.2] Linux\r\ndisco-guest: share=up cached=90 buffers=9\r\n" +
	"disco-guest: share=read files=10 bytes=4096 sum=00ff\r\n[    2.0] x disco-guest: share=job bytes=7 sum=aa\r\n" +
	"disco-guest: share=memory total=1000 free=400 cached=300 buffers=20 anonymous=10 slab=5\r\ndisco-guest: share=done\r\n"

func TestConsole(t *testing.T) {
	for _, piece := range []int{1, 7, len(printed)} {
		c := newConsole()
		for rest := printed; rest != ""; {
			n := min(piece, len(rest))
			c.Write([]byte(rest[:n]))
			rest = rest[n:]
		}
		select {
		case <-c.done:
		default:
			t.Fatal("not done")
		}
		want := Guest{Files: 10, Bytes: 4096, Sum: "00ff", JobSum: "aa", Before: 99, Total: 1000, Free: 400, Cached: 300, Buffers: 20, Anonymous: 10, Slab: 5}
		if got := c.said(); got != want {
			t.Errorf("in pieces of %d: %+v", piece, got)
		}
	}
}

func TestConsoleFailures(t *testing.T) {
	for _, text := range []string{
		"disco-guest: result=failed reason=\"no disk\"\n",
		"disco-guest: share=read files=x bytes=1 sum=0\n",
		"disco-guest: share=memory total=1 free=2 cached=0 buffers=0 anonymous=0 slab=0\n",
		"disco-guest: share=memory total=1\n",
		strings.Replace(printed, "cached=90", "cached=400", 1),
	} {
		c := newConsole()
		c.Write([]byte(text + printed))
		select {
		case <-c.failed:
		default:
			t.Errorf("%q is no failure", text)
		}
		select {
		case <-c.done:
			t.Errorf("%q: done after a failure", text)
		default:
		}
	}
}

func TestOptions(t *testing.T) {
	o := Options{}
	if problems := o.complete(); problems != nil || len(o.Guests) != 4 || o.Read != "/usr,/boot" {
		t.Errorf("%v, %+v", problems, o)
	}
	bad := Options{Guests: []int{0, 99}, Job: "play", Read: "usr,/a b"}
	if problems := bad.complete(); len(problems) != 5 {
		t.Errorf("%v", problems)
	}
	if m, err := ParseModes("auto,ksm"); err != nil || len(m) != 2 {
		t.Errorf("%v, %v", m, err)
	}
	if _, err := ParseModes("auto,"); err == nil {
		t.Error("a mode without a name")
	}
}

// row is a run in which each guest has 300 pages of file data.
func row(m Mode, n int, private, cache, shared uint64) *Row {
	r := &Row{Mode: m, Guests: n, RAM: uint64(n) * private, Cache: cache, Shared: uint64(n) * shared, Mapped: uint64(n) * shared, Copied: uint64(n) * (300 - shared)}
	for range n {
		r.Each = append(r.Each, Guest{Total: 1000, Free: 600, Cached: 300, Sum: "s"})
		r.V += 400
	}
	r.Frames = r.RAM + r.Cache
	r.Files = r.Frames
	r.M = r.Frames
	return r
}

func TestPromises(t *testing.T) {
	r := &Results{Rows: []*Row{row(Auto, 8, 80, 300, 300), row(Never, 8, 380, 8, 0)}}
	if got := r.Rows[0].FileCopies(); got != 1 {
		t.Errorf("%v copies where there is one", got)
	}
	if got := r.Rows[1].FileCopies(); got < 8 {
		t.Errorf("%v copies where there are eight", got)
	}
	check := func(want ...bool) {
		t.Helper()
		p := r.Promises()
		if len(p) != len(want) {
			t.Fatalf("%v", p)
		}
		for i := range p {
			if p[i].OK != want[i] {
				t.Errorf("%+v", p[i])
			}
		}
	}
	check(true, true, true, true, true, true)
	r.Rows[0].Each[3].Sum = "another"
	r.Rows[0].M = 3000
	r.Rows[1].Files += 1000
	r.Rows[1].M = 1000
	r.Rows[0].Copied = 300
	check(false, false, false, false, false, false)
	var out bytes.Buffer
	if err := r.Print(&out); err != nil || strings.Count(out.String(), "\n") != 4 {
		t.Errorf("%v:\n%s", err, &out)
	}
	if res := r.Result("here"); len(res.Series) != 2 || len(res.Series[0].Bars) != 2 {
		t.Errorf("%+v", res)
	}
}

// fake is a host whose guests are done at once, but for some that are lost.
type fake struct {
	lose  map[int]bool // by how many were started before
	began int
	here  int
	looks []int
}

func (f *fake) start(ended chan<- error) (*console, error) {
	c := newConsole()
	if f.lose[f.began] {
		ended <- errors.New("a crash")
	} else {
		c.Write([]byte(printed))
	}
	f.began++
	f.here++
	return c, nil
}

func (f *fake) drop() error { f.here--; return nil }

func (f *fake) look(context.Context) (*Row, error) {
	f.looks = append(f.looks, f.here)
	return &Row{M: 600}, nil
}

func (f *fake) close() error { return nil }

func TestRows(t *testing.T) {
	o := Options{Guests: []int{4, 1, 2}, Emulated: true, Memory: 1000}
	kept := 0
	o.Keep = func(*Results) error { kept++; return nil }
	if problems := o.complete(); problems != nil {
		t.Fatal(problems)
	}
	r := &Results{Rows: []*Row{{Mode: Never, Guests: 1}, {Mode: Auto, Guests: 2}}}
	h := &fake{lose: map[int]bool{0: true, 3: true}}
	if err := o.measure(context.Background(), Auto, h, r); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(h.looks, []int{1, 2, 4}) || kept != 3 || len(r.Retried) != 2 || len(r.Rows) != 4 || r.Rows[3].Mode != Never {
		t.Errorf("looks after %v, %d kept, %+v", h.looks, kept, r)
	}
	if row := r.find(Auto, 2); row.V != 1200 || row.Ratio() != 2 || len(row.Each) != 2 {
		t.Errorf("%+v", row)
	}
	if !o.whole(r, Auto) || o.whole(r, Never) {
		t.Error("what is whole")
	}
	o.Emulated = false
	if err := o.measure(context.Background(), Auto, &fake{lose: map[int]bool{1: true}}, r); err == nil || !strings.Contains(err.Error(), "a crash") {
		t.Errorf("a lost guest: %v", err)
	}
}

func TestResume(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.json")
	was := &Results{Read: "/usr,/boot", Job: "query", CPUs: 1, Memory: 512 << 20, Rows: []*Row{row(Auto, 1, 1, 1, 1)}}
	if err := was.Result("a test").Write(path); err != nil {
		t.Fatal(err)
	}
	o := Options{}
	o.complete()
	var err error
	if o.Resume, err = Load(path); err != nil {
		t.Fatal(err)
	}
	r := &Results{Read: o.Read, Job: o.Job, CPUs: o.CPUs, Memory: o.Memory}
	if err := o.resume(r); err != nil || r.find(Auto, 1) == nil {
		t.Errorf("%v, %+v", err, r)
	}
	r.Read = "/bin"
	if err := o.resume(r); err == nil || !strings.Contains(err.Error(), "other work") {
		t.Errorf("results of other work: %v", err)
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
