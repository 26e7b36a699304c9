package traffic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"disco/integration/bench/resident"
	"disco/integration/guest"
)

// FilesRow is several guests that read the same file whole, at once, and have it
// in their page caches or mapped.
type FilesRow struct {
	Reading Reading `json:"reading"`
	Readers int     `json:"readers"`
	Bytes   uint64  `json:"bytes"`   // of the file
	Host    uint64  `json:"host"`    // of the file, in the host's page cache
	Server  int64   `json:"server"`  // in the server's page cache and the monitor's buffer cache
	Cached  uint64  `json:"cached"`  // in the readers' page caches, by their kernels
	Grown   int64   `json:"grown"`   // what the monitor's process had more when all had read than before
	Seconds float64 `json:"seconds"` // of the slowest, by its clock
	carried
}

// Memory is what of the machine's memory the file took, in bytes. What the readers'
// kernels count and what their process had more is the same, but for memory that they
// had before: the greater is taken.
func (r *FilesRow) Memory() int64 { return int64(r.Host) + r.Server + max(int64(r.Cached), r.Grown) }

// Factor is how often the file is there.
func (r *FilesRow) Factor() float64 { return float64(r.Memory()) / float64(r.Bytes) }

// files are what is read: to be sure of 2 % more takes more of it than to see that a
// file is there several times.
var files = map[Reading]struct {
	name string
	size int64
}{ByDAX: {"data", FileSize}, ByNFS: {"part", 16 << 20}, ByFUSE: {"part", 16 << 20}}

// folderTag is the name that guests mount the shared folder by.
const folderTag = "bench"

// readers runs the guests that read, and the one that they read from.
func (o *Options) readers(ctx context.Context, how Reading) (row *FilesRow, err error) {
	h, err := newDiscoHost(o, Auto)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, h.close()) }()
	row = &FilesRow{Reading: how, Readers: o.Readers, Bytes: uint64(files[how].size)}
	words := fmt.Sprintf("%s disco.task=files disco.way=%s disco.tag=%s disco.server=%s disco.name=%s", o.Cmdline, how, folderTag, serverAddress, files[how].name)
	var dir string
	if how == ByNFS {
		server, c, err := o.serve(ctx, h)
		if err != nil {
			return nil, err
		}
		row.Server = int64(c.file * float64(row.Bytes))
		watched, stop := watch(ctx, server)
		defer stop()
		ctx = watched
	} else if dir, err = makeFolder(files[how].name, files[how].size); err != nil {
		return nil, err
	} else {
		defer os.RemoveAll(dir)
	}
	var guests []*running
	for i := range o.Readers {
		name := fmt.Sprintf("reader-%d", i+1)
		words := words + " disco.address=" + address(i)
		var g *running
		if how == ByNFS {
			g, err = h.start(name, words, false)
		} else {
			g, err = h.withFolder(name, words, dir, how)
		}
		if err != nil {
			return nil, err
		}
		guests = append(guests, g)
	}
	if err := row.read(ctx, h, guests); err != nil {
		return nil, err
	}
	if dir != "" {
		if row.Host, err = resident.Cached(filepath.Join(dir, files[how].name)); err != nil {
			return nil, err
		}
	}
	o.say("%s: %d guests, %.2f × the file in machine memory, %.1f s", how, row.Readers, row.Factor(), row.Seconds)
	return row, nil
}

// read has the guests read, once all are there, and counts.
func (r *FilesRow) read(ctx context.Context, h *discoHost, guests []*running) error {
	var cached uint64 // before
	for _, g := range guests {
		e, err := g.await(ctx, "files", "ready")
		if err != nil {
			return err
		}
		n, err := e.Number("cached")
		if err != nil {
			return g.lost(err)
		}
		cached += n
	}
	before, err := h.memory()
	if err != nil {
		return err
	}
	began, err := h.carried()
	if err != nil {
		return err
	}
	for _, g := range guests {
		g.input("read\n")
	}
	for _, g := range guests {
		e, err := g.await(ctx, "files", "read")
		if err != nil {
			return err
		}
		var n, size, nanos uint64
		if err := e.Numbers(map[string]*uint64{"cached": &n, "bytes": &size, "nanos": &nanos}); err != nil {
			return g.lost(err)
		}
		if size != r.Bytes {
			return g.lost(fmt.Errorf("it read %d bytes of %d", size, r.Bytes))
		}
		r.Cached += n
		r.Seconds = max(r.Seconds, float64(nanos)/1e9)
	}
	r.Cached -= min(r.Cached, cached)
	after, err := h.memory()
	if err != nil {
		return err
	}
	ended, err := h.carried()
	if err != nil {
		return err
	}
	r.carried = ended.since(began)
	r.Grown = int64(after) - int64(before)
	return nil
}

// makeFolder makes a folder with a file as mkdata puts it on the disk, and the one to
// warm up with.
func makeFolder(file string, size int64) (dir string, err error) {
	if dir, err = os.MkdirTemp("", "disco-bench-"); err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	for name, size := range map[string]int64{file: size, "warm": 1 << 20} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			return "", err
		}
		_, err = io.Copy(f, io.LimitReader(&pattern{}, size))
		if err := errors.Join(err, f.Close()); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// pattern reads as guest.Pattern of guest.PatternHost, without end.
type pattern struct{ sector uint64 }

func (p *pattern) Read(b []byte) (int, error) {
	b = b[:len(b)/guest.SectorSize*guest.SectorSize]
	if len(b) == 0 {
		return 0, io.ErrShortBuffer
	}
	guest.Pattern(b, guest.PatternHost, p.sector)
	p.sector += uint64(len(b) / guest.SectorSize)
	return len(b), nil
}
