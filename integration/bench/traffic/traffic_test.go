package traffic

import (
	"bytes"
	"context"
	"errors"
	"io"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"disco/integration/bench/exits"
	"disco/integration/guest"
)

func TestConsole(t *testing.T) {
	const said = "[    1.2] Linux\r\ndisco-guest: net=up\r\n[ 2.0] x disco-guest: net=end way=nfs round=1 ops=5 bytes=4096 nanos=7\r\n"
	for _, piece := range []int{1, 7, len(said)} {
		c := newConsole()
		for rest := said; rest != ""; {
			n := min(piece, len(rest))
			_, _ = c.Write([]byte(rest[:n]))
			rest = rest[n:]
		}
		g := &running{name: "g", console: c, ended: make(chan error, 1)}
		if _, err := g.await(t.Context(), "net", "up"); err != nil {
			t.Fatal(err)
		}
		e, err := g.next(t.Context())
		var n, ops uint64
		if err == nil {
			err = e.Numbers(map[string]*uint64{"bytes": &n, "ops": &ops})
		}
		if err != nil || e["way"] != "nfs" || n != 4096 || ops != 5 {
			t.Errorf("in pieces of %d: %v, %v", piece, e, err)
		}
		if err := e.Numbers(map[string]*uint64{"way": &n}); err == nil {
			t.Error("a word is a number")
		}
	}
}

// TestRunning: what a guest said is heard before its end, and an end is an error.
func TestRunning(t *testing.T) {
	g := func(said string, ended error) *running {
		g := &running{name: "g", console: newConsole(), ended: make(chan error, 1)}
		_, _ = io.WriteString(g.console, said)
		g.ended <- ended
		return g
	}
	lost := errors.New("a signal")
	for name, c := range map[string]struct {
		guest *running
		want  error
		text  string
	}{
		"said and ended": {g("disco-guest: net=up\n", nil), nil, ""},
		"ended":          {g("oops\n", nil), errEnded, "oops"},
		"lost":           {g("oops\n", lost), lost, "oops"},
		"failed":         {g("disco-guest: result=failed reason=\"no disk\"\n", nil), nil, "no disk"},
	} {
		for range 2 { // an end stays
			_, err := c.guest.await(t.Context(), "net", "up")
			if c.want == nil && c.text == "" {
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
				break
			}
			if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%s: %v", name, err)
				break
			}
			if c.want == nil {
				break
			}
		}
	}
	ctx, stop := watch(t.Context(), g("", lost))
	defer stop()
	<-ctx.Done()
	if !errors.Is(context.Cause(ctx), lost) {
		t.Errorf("who waits for others is told %v", context.Cause(ctx))
	}
}

// sample is a run in which every promise is kept by a hair.
func sample() *Results {
	r := &Results{Bytes: 1000, Exchanges: 10, Readers: 4}
	memory := int64(1500)
	for _, p := range []Program{Auto, Never, QEMU} {
		for _, w := range Ways {
			row := Row{Program: p, Way: w, Ops: 10, Bytes: 1000, Seconds: 3, carried: carried{Delivered: 2000, Copied: 2000}, Exits: &exits.Exits{All: 40, Userspace: 4}}
			switch {
			case p == QEMU:
				row.Copied = 6000
			case p == Never && w != Echo:
				row.Seconds = 1.5
			case w == Echo:
				row.Seconds = 2
			default:
				row.Seconds = 1
			}
			if p == Auto && (w == Sendfile || w == NFS) {
				row.Copied, row.Mapped = 500, 1500
			}
			if w != Echo {
				row.Memory = &memory
			}
			r.Rows = append(r.Rows, row)
			again := row
			again.Round, again.Memory = 1, nil
			r.Rows = append(r.Rows, again)
		}
	}
	r.Files = []*FilesRow{{Reading: ByNFS, Readers: 4, Bytes: 100, Server: 200, Cached: 400}, {Reading: ByDAX, Readers: 4, Bytes: 1000, Host: 1000, Grown: 19}}
	return r
}

func TestPromises(t *testing.T) {
	r := sample()
	all := r.Promises()
	if len(all) != 2+2+len(Ways)+1 {
		t.Fatalf("%d promises: %+v", len(all), all)
	}
	for _, p := range all {
		if !p.OK {
			t.Errorf("missed: %+v", p)
		}
	}
	worse := map[string]func(r *Results){
		"any traffic, map=never": func(r *Results) {
			for i := range r.Rows {
				if r.Rows[i].Program == Never && r.Rows[i].Round == 1 {
					r.Rows[i].Copied++
				}
			}
		},
		"sendfile, map=auto": func(r *Results) {
			for i := range r.Rows {
				if r.Rows[i].Program == Auto && r.Rows[i].Way == Sendfile {
					r.Rows[i].Copied++
				}
			}
		},
		"echo, rate": func(r *Results) {
			for i := range r.Rows {
				if r.Rows[i].Program == Auto && r.Rows[i].Way == Echo {
					r.Rows[i].Seconds = 2.01
				}
			}
		},
		"write, rate": func(r *Results) {
			for i := range r.Rows {
				if r.Rows[i].Program == Auto && r.Rows[i].Way == Write {
					r.Rows[i].Seconds = 1.01
				}
			}
		},
		"by DAX": func(r *Results) { r.Files[1].Host = 960 },
	}
	for name, spoil := range worse {
		r := sample()
		spoil(r)
		for _, p := range r.Promises() {
			if missed := strings.Contains(p.Name, name); missed == p.OK {
				t.Errorf("%s spoilt: %+v", name, p)
			}
		}
	}
	if all := (&Results{}).Promises(); len(all) != 0 {
		t.Errorf("promises of nothing: %v", all)
	}
}

func TestResults(t *testing.T) {
	r := sample()
	path := filepath.Join(t.TempDir(), "net.json")
	if was, err := Load(path); was != nil || err != nil {
		t.Errorf("of no file: %v, %v", was, err)
	}
	res := r.Result("here")
	if err := res.Write(path); err != nil {
		t.Fatal(err)
	}
	was, err := Load(path)
	if err != nil || !reflect.DeepEqual(was, r) {
		t.Errorf("%+v, %v", was, err)
	}
	if !was.has([]Program{Auto, QEMU}, Echo) || was.has([]Program{Auto, Vhost}, Echo) || was.reading(ByDAX) == nil || was.reading(ByFUSE) != nil {
		t.Error("what is measured is not known")
	}
	all := len(was.Rows)
	if was.without([]Program{Auto, QEMU}); len(was.Rows) != all {
		t.Errorf("%d rows of %d are left, though all ways were measured", len(was.Rows), all)
	}
	was.Rows = slices.DeleteFunc(was.Rows, func(row Row) bool { return row.Program == QEMU && row.Way != NFS })
	if was.without([]Program{Auto, QEMU}); len(was.Rows) == 0 || slices.ContainsFunc(was.Rows, func(row Row) bool { return row.Way != NFS }) {
		t.Errorf("of ways that were measured in part there is left: %+v", was.Rows)
	}
	// Five ways of five quantities, but messages take no memory that is counted.
	if len(res.Series) != 5*5-1+1 {
		t.Errorf("%d series", len(res.Series))
	}
	var b strings.Builder
	if err := r.Print(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"disco, map=auto", "QEMU, tap", "3.00", "6.00"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

func TestOptions(t *testing.T) {
	o := Options{}
	if problems := o.complete(); problems != nil || len(o.Programs) < 3 || o.Readers != 4 {
		t.Errorf("%v, %+v", problems, o)
	}
	bad := Options{Readers: 99, Bytes: 1}
	if problems := bad.complete(); len(problems) != 2 {
		t.Errorf("%v", problems)
	}
	if p, err := ParsePrograms("auto,vhost"); err != nil || !reflect.DeepEqual(p, []Program{Auto, Vhost}) {
		t.Errorf("%v, %v", p, err)
	}
	if w, err := ParseWays("none"); err != nil || w == nil || len(w) != 0 {
		t.Errorf("%v, %v", w, err)
	}
	if _, err := ParseReadings("dax,tape"); err == nil {
		t.Error("a way to read that is not there is taken")
	}
}

func TestPattern(t *testing.T) {
	got, want := make([]byte, 64*guest.SectorSize), make([]byte, 64*guest.SectorSize)
	guest.Pattern(want, guest.PatternHost, 0)
	if _, err := io.ReadFull(&pattern{}, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the folder's files are others than the disk's (%v)", err)
	}
}
