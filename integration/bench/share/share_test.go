package share

import (
	"bytes"
	"strings"
	"testing"
)

const said = "[    1.2] Linux\r\ndisco-guest: share=up cached=90 buffers=9\r\n" +
	"disco-guest: share=read files=10 bytes=4096 sum=00ff\r\n[    2.0] x disco-guest: share=job bytes=7 sum=aa\r\n" +
	"disco-guest: share=memory total=1000 free=400 cached=300 buffers=20 anonymous=10 slab=5\r\ndisco-guest: share=done\r\n"

func TestConsole(t *testing.T) {
	for _, piece := range []int{1, 7, len(said)} {
		c := newConsole()
		for rest := said; rest != ""; {
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
		strings.Replace(said, "cached=90", "cached=400", 1),
	} {
		c := newConsole()
		c.Write([]byte(text + said))
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
	c := newConsole()
	c.Write(bytes.Repeat([]byte("x"), 1<<20))
	if last := c.last(); len(last[len(last)-1]) != longestLine {
		t.Errorf("%d bytes of a line are kept", len(last[len(last)-1]))
	}
}

func TestOptions(t *testing.T) {
	o := Options{}
	if problems := o.complete(); problems != nil || len(o.Guests) != 4 || o.Read != "/usr" {
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
	r := &Row{Mode: m, Guests: n, RAM: uint64(n) * private, Cache: cache, Shared: uint64(n) * shared}
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
	check(true, true, true, true, true)
	r.Rows[0].Each[3].Sum = "another"
	r.Rows[0].M = 3000
	r.Rows[1].Files += 1000
	r.Rows[1].M = 1000
	r.Rows[0].Shared -= 300
	check(false, false, false, false, false)
	var out bytes.Buffer
	if err := r.Print(&out); err != nil || strings.Count(out.String(), "\n") != 4 {
		t.Errorf("%v:\n%s", err, &out)
	}
	if res := r.Result("here"); len(res.Series) != 2 || len(res.Series[0].Bars) != 2 {
		t.Errorf("%+v", res)
	}
}
