package fs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"disco/folder"
	"disco/memory/arena"
	"disco/virtio"
	"disco/virtio/virtiotest"
)

// client is a driver that speaks FUSE.
type client struct {
	*virtiotest.Driver
	t      testing.TB
	dev    *Device
	dir    string
	window *Window
	unique uint64
}

const testWindow = 4 * piece

func start(t testing.TB, o virtiotest.Options) *client {
	t.Helper()
	if _, err := arena.VMAs.Measure(testWindow / piece); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files, err := folder.Open(folder.Config{Path: dir, MapFrom: 1})
	if err != nil {
		t.Fatal(err)
	}
	window, err := NewWindow(testWindow)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(files.Close(), window.Close()); err != nil {
			t.Error(err)
		}
	})
	dev, err := New(Config{Tag: "test", Backend: files, Queues: 2, Window: window})
	if err != nil {
		t.Fatal(err)
	}
	return &client{t: t, dev: dev, dir: dir, window: window, Driver: virtiotest.Start(t, dev, o)}
}

// mounted is start with a session begun.
func mounted(t testing.TB, o virtiotest.Options) *client {
	t.Helper()
	c := start(t, o)
	if errno, _ := c.do(opInit, 0, initBody(), 64); errno != 0 {
		t.Fatalf("init: %v", errno)
	}
	return c
}

func initBody() []byte {
	le := binary.LittleEndian
	p := make([]byte, 64)
	le.PutUint32(p[0:], 7)
	le.PutUint32(p[4:], 36)
	le.PutUint32(p[8:], 128<<10)
	le.PutUint32(p[12:], ^uint32(0))
	le.PutUint32(p[16:], ^uint32(0))
	return p
}

func (c *client) request(op uint32, node uint64, body []byte) []byte {
	le := binary.LittleEndian
	c.unique++
	p := make([]byte, inHeader, inHeader+len(body))
	le.PutUint32(p[0:], uint32(inHeader+len(body)))
	le.PutUint32(p[4:], op)
	le.PutUint64(p[8:], c.unique)
	le.PutUint64(p[16:], node)
	le.PutUint32(p[24:], uint32(os.Getuid()))
	le.PutUint32(p[28:], uint32(os.Getgid()))
	return append(p, body...)
}

// do sends a request, its body in a buffer of its own, and returns what came back.
func (c *client) do(op uint32, node uint64, body []byte, room int) (unix.Errno, []byte) {
	c.t.Helper()
	p := c.request(op, node, body)
	u := c.Rings[1].Do([][]byte{p[:inHeader], p[inHeader:]}, []int{outHeader, room})
	return c.answer(u)
}

func (c *client) answer(u virtiotest.Used) (unix.Errno, []byte) {
	c.t.Helper()
	le := binary.LittleEndian
	all := bytes.Join(u.Data, nil)
	if u.Written < outHeader || int(u.Written) > len(all) {
		c.t.Fatalf("%d bytes written", u.Written)
	}
	all = all[:u.Written]
	if n := le.Uint32(all); n != u.Written {
		c.t.Fatalf("an answer of %d bytes says %d", u.Written, n)
	}
	if got := le.Uint64(all[8:]); got != c.unique {
		c.t.Fatalf("the answer is to %d, not %d", got, c.unique)
	}
	return unix.Errno(-int32(le.Uint32(all[4:]))), all[outHeader:]
}

func (c *client) lookup(name string) uint64 {
	c.t.Helper()
	errno, p := c.do(1, 1, append([]byte(name), 0), int(unsafe.Sizeof(fuse.EntryOut{})))
	if errno != 0 {
		c.t.Fatalf("lookup %s: %v", name, errno)
	}
	return binary.LittleEndian.Uint64(p)
}

func (c *client) open(node uint64, flags uint32) uint64 {
	c.t.Helper()
	errno, p := c.do(14, node, words32(flags, 0), 16)
	if errno != 0 {
		c.t.Fatalf("open: %v", errno)
	}
	return binary.LittleEndian.Uint64(p)
}

func words32(w ...uint32) []byte {
	var p []byte
	for _, v := range w {
		p = binary.LittleEndian.AppendUint32(p, v)
	}
	return p
}

func words64(w ...uint64) []byte {
	var p []byte
	for _, v := range w {
		p = binary.LittleEndian.AppendUint64(p, v)
	}
	return p
}

// transferBody is a fuse_read_in or a fuse_write_in.
func transferBody(fh, off uint64, size uint32) []byte {
	p := append(words64(fh, off), words32(size, 0)...)
	return append(p, make([]byte, 16)...)
}

func (c *client) file(name string, n int) []byte {
	c.t.Helper()
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*31 + i>>11)
	}
	if err := os.WriteFile(filepath.Join(c.dir, name), p, 0o644); err != nil {
		c.t.Fatal(err)
	}
	return p
}

func TestConfig(t *testing.T) {
	c := start(t, virtiotest.Options{})
	var p [40]byte
	for i := range p {
		c.dev.ReadConfig(uint64(i), p[i:i+1])
	}
	if string(p[:5]) != "test\x00" || binary.LittleEndian.Uint32(p[36:]) != 2 {
		t.Errorf("config space %q", p)
	}
	for _, tag := range []string{"", strings.Repeat("x", 37)} {
		if _, err := New(Config{Tag: tag}); err == nil {
			t.Errorf("tag %q is taken", tag)
		}
	}
}

func TestInit(t *testing.T) {
	c := start(t, virtiotest.Options{})
	if errno, _ := c.do(3, 1, make([]byte, 16), 200); errno != unix.EINVAL {
		t.Errorf("a request before FUSE_INIT: %v", errno)
	}
	if c.Paid() == 0 {
		t.Error("the guest paid for nothing")
	}
	errno, p := c.do(opInit, 0, initBody(), 64)
	if errno != 0 {
		t.Fatal(errno)
	}
	out := (*fuse.InitOut)(unsafe.Pointer(&p[0]))
	const need = fuse.CAP_MAP_ALIGNMENT | fuse.CAP_AUTO_INVAL_DATA | fuse.CAP_MAX_PAGES | fuse.CAP_HAS_INODE_DAX
	if out.Flags64()&need != need || out.MapAlignment != pieceShift || out.MaxWrite != maxData || out.MaxPages != maxData/4096 {
		t.Errorf("flags %#x, %+v", out.Flags64(), out)
	}
	if out.Flags64()&(fuse.CAP_PASSTHROUGH|fuse.CAP_POSIX_LOCKS|fuse.CAP_EXPORT_SUPPORT) != 0 {
		t.Errorf("flags %#x promise what there is not", out.Flags64())
	}
	for _, bad := range [][]byte{words32(6, 1, 0, 0), words32(7, 5, 0, 0), words32(8, 0, 0, 0)} {
		if errno, _ := c.do(opInit, 0, bad, 64); errno != unix.EPROTO {
			t.Errorf("version %v: %v", bad, errno)
		}
	}
	if errno, _ := c.do(opInit, 0, words32(7), 64); errno != unix.EINVAL {
		t.Errorf("a short FUSE_INIT: %v", errno)
	}
}

func TestReadAndWrite(t *testing.T) {
	for _, o := range []virtiotest.Options{{}, {Refuse: virtio.FeatureIndirect | virtio.FeatureEventIndex}} {
		c := mounted(t, o)
		want := c.file("file", 300_000)
		fh := c.open(c.lookup("file"), unix.O_RDWR)
		read := func(off uint64, size uint32, room ...int) []byte {
			t.Helper()
			u := c.Rings[1].Do([][]byte{c.request(opRead, 0, transferBody(fh, off, size))}, room)
			errno, p := c.answer(u)
			if errno != 0 {
				t.Fatal(errno)
			}
			return p
		}
		if got := read(0, 300_000, 16, 100_000, 200_000); !bytes.Equal(got, want) {
			t.Error("the file is another")
		}
		// Headers and data lie where the driver likes.
		if got := read(7, 5000, 10, 6+4096, 904); !bytes.Equal(got, want[7:5007]) {
			t.Error("a piece of it is another")
		}
		if got := read(299_990, 4096, 16+4096); !bytes.Equal(got, want[299_990:]) {
			t.Error("its end is another")
		}
		if got := read(1<<40, 4096, 16+4096); len(got) != 0 {
			t.Errorf("%d bytes behind the end", len(got))
		}
		data := bytes.Repeat([]byte("data"), 1000)
		p := c.request(opWrite, 0, append(transferBody(fh, 4096, 4000), data...))
		u := c.Rings[1].Do([][]byte{p[:50], p[50:90], p[90:]}, []int{24})
		if errno, out := c.answer(u); errno != 0 || binary.LittleEndian.Uint32(out) != 4000 {
			t.Fatalf("%v, %v", errno, out)
		}
		got, err := os.ReadFile(filepath.Join(c.dir, "file"))
		if err != nil || !bytes.Equal(got[4096:8096], data) || !bytes.Equal(got[8096:], want[8096:]) || !bytes.Equal(got[:4096], want[:4096]) {
			t.Errorf("the host sees something else, %v", err)
		}
		if s := c.dev.Stats(); s.Written != 4000 || s.Read != 300_000+5000+10 || s.BadRequests != 0 {
			t.Errorf("%+v", s)
		}
	}
}

// TestManyAtOnce: requests of both queues, more than there are workers.
func TestManyAtOnce(t *testing.T) {
	c := mounted(t, virtiotest.Options{})
	want := c.file("file", 1<<20)
	fh := c.open(c.lookup("file"), unix.O_RDONLY)
	var all sync.WaitGroup
	for _, ring := range c.Rings[1:] {
		all.Go(func() {
			request := (&client{}).request(opRead, 0, transferBody(fh, 0, 0))
			for round := range 20 {
				at := map[int]int{}
				for i := range 50 {
					off := (round*50 + i) * 1000
					copy(request[inHeader+8:], words64(uint64(off)))
					copy(request[inHeader+16:], words32(1000))
					at[ring.Add([][]byte{request}, []int{outHeader, 1000})] = off
				}
				ring.Kick()
				for range 50 {
					u := ring.Wait()
					if off := at[u.ID]; !bytes.Equal(u.Data[1], want[off:off+1000]) {
						t.Errorf("what is at %d is another", off)
						return
					}
				}
			}
		})
	}
	all.Wait()
}

// setup is a fuse_setupmapping_in.
func setup(from, n, flags, at uint64) []byte { return words64(^uint64(0), from, n, flags, at) }

const reads, writes = 2, 3 // flags of a mapping

func TestMapping(t *testing.T) {
	c := mounted(t, virtiotest.Options{})
	want := c.file("file", 3*piece)
	node := c.lookup("file")
	if errno, _ := c.do(opSetupMapping, node, setup(piece, piece, writes, 2*piece), 0); errno != 0 {
		t.Fatal(errno)
	}
	if errno, _ := c.do(opSetupMapping, node, setup(0, piece, reads, 0), 0); errno != 0 {
		t.Fatal(errno)
	}
	if s := c.dev.Stats(); s.Mapped != 2*piece || s.Mappings != 2 {
		t.Errorf("%+v", s)
	}
	// This test is the guest.
	mem := c.window.Bytes()
	if !bytes.Equal(mem[2*piece:3*piece], want[piece:2*piece]) || !bytes.Equal(mem[:piece], want[:piece]) {
		t.Error("the window shows something else")
	}
	copy(mem[2*piece:], "written by the guest")
	if got, err := os.ReadFile(filepath.Join(c.dir, "file")); err != nil || !strings.HasPrefix(string(got[piece:]), "written by the guest") {
		t.Errorf("a store does not reach the file (%v)", err)
	}
	if errno, _ := c.do(opRemoveMapping, node, append(words32(2), words64(0, piece, 2*piece, piece)...), 0); errno != 0 {
		t.Fatal(errno)
	}
	if s := c.dev.Stats(); s.Mapped != 0 {
		t.Errorf("%d bytes are still mapped", s.Mapped)
	}
	if mappings(t, c.window) != 1 {
		t.Error("the window is not one reservation again")
	}
	if errno, _ := c.do(opDestroy, 0, nil, 0); errno != 0 {
		t.Error(errno)
	}
}

// mappings counts the VMAs of a window.
func mappings(t testing.TB, w *Window) int {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	start := uint64(uintptr(w.place(0)))
	n := 0
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err == nil && from < start+uint64(len(w.memory)) && to > start {
			n++
		}
	}
	return n
}

// TestBadMappings are refused, and change nothing.
func TestBadMappings(t *testing.T) {
	c := mounted(t, virtiotest.Options{})
	c.file("file", piece)
	node := c.lookup("file")
	for _, b := range [][]byte{
		setup(0, piece, reads, testWindow),
		setup(0, 2*piece, reads, testWindow-piece),
		setup(0, piece, reads, 4096),
		setup(4096, piece, reads, 0),
		setup(0, 4096, reads, 0),
		setup(0, 0, reads, 0),
		setup(0, ^uint64(0)&^(piece-1), reads, piece),
		setup(0, piece, reads, ^uint64(0)&^(piece-1)),
		setup(1<<63, piece, writes, 0),
		setup(0, piece, reads, 0)[:32],
	} {
		if errno, _ := c.do(opSetupMapping, node, b, 0); errno != unix.EINVAL {
			t.Errorf("%x: %v", b, errno)
		}
	}
	if errno, _ := c.do(opSetupMapping, node, setup(piece, piece, reads, 0), 0); errno != unix.EIO {
		t.Errorf("behind the end of the file: %v", errno)
	}
	for _, n := range []uint64{1, 999} { // a directory, and nothing
		if errno, _ := c.do(opSetupMapping, n, setup(0, piece, reads, 0), 0); errno == 0 {
			t.Errorf("node %d was mapped", n)
		}
	}
	for _, b := range [][]byte{
		append(words32(1), words64(1, piece)...), append(words32(1), words64(0, testWindow+piece)...),
		words32(1), append(words32(1<<31), words64(0, piece)...), nil,
	} {
		if errno, _ := c.do(opRemoveMapping, node, b, 0); errno != unix.EINVAL {
			t.Errorf("removing %x: %v", b, errno)
		}
	}
	if s := c.dev.Stats(); s.Mapped != 0 || s.Mappings != 0 {
		t.Errorf("%+v", s)
	}
}

// TestMend: pages that a file no longer has are found and replaced.
func TestMend(t *testing.T) {
	c := mounted(t, virtiotest.Options{})
	want := c.file("file", piece)
	node := c.lookup("file")
	if errno, _ := c.do(opSetupMapping, node, setup(0, piece, writes, piece), 0); errno != 0 {
		t.Fatal(errno)
	}
	if c.dev.Mend() {
		t.Error("something was mended where nothing is broken")
	}
	if err := os.Truncate(filepath.Join(c.dir, "file"), 5*4096+100); err != nil {
		t.Fatal(err)
	}
	if !c.dev.Mend() {
		t.Fatal("nothing was mended")
	}
	if s := c.dev.Stats(); s.Mended != piece/4096-6 {
		t.Errorf("%d pages were mended", s.Mended)
	}
	mem := c.window.Bytes()[piece : 2*piece]
	if !bytes.Equal(mem[:5*4096+100], want[:5*4096+100]) || !bytes.Equal(mem[5*4096+100:], make([]byte, piece-5*4096-100)) {
		t.Error("the window shows something else")
	}
	c.Stop()
	if n := mappings(t, c.window); n != 1 {
		t.Errorf("after a reset the window has %d mappings", n)
	}
}

// TestFollow: what a file loses becomes zeros, and what it gets is there before the
// guest hears of it.
func TestFollow(t *testing.T) {
	c := mounted(t, virtiotest.Options{})
	want := c.file("file", piece)
	path := filepath.Join(c.dir, "file")
	node := c.lookup("file")
	if errno, _ := c.do(opSetupMapping, node, setup(0, piece, writes, piece), 0); errno != 0 {
		t.Fatal(errno)
	}
	mem := c.window.Bytes()[piece : 2*piece]
	same := func(step string, n int) {
		t.Helper()
		if !bytes.Equal(mem[:n], want[:n]) || !bytes.Equal(mem[n:], make([]byte, piece-n)) {
			t.Errorf("%s: the window shows something else", step)
		}
	}
	truncate := func(n int) {
		t.Helper()
		if err := os.Truncate(path, int64(n)); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []int{100*4096 + 5, 50 * 4096, 0} {
		truncate(n)
		c.dev.follow(false)
		same(fmt.Sprint("cut to ", n), n)
	}
	if s := c.dev.Stats(); s.Mapped != 0 || s.Mended != piece/4096 {
		t.Errorf("%+v", s)
	}
	for _, n := range []int{10, 70*4096 + 1, piece} {
		if err := os.WriteFile(path, want[:n], 0o644); err != nil { // by way of 0
			t.Fatal(err)
		}
		if errno, p := c.do(3, node, make([]byte, 16), 120); errno != 0 || binary.LittleEndian.Uint64(p[24:]) != uint64(n) {
			t.Fatalf("the guest hears of %d bytes, %v", binary.LittleEndian.Uint64(p[24:]), errno)
		}
		same(fmt.Sprint("grown to ", n), n)
	}
	copy(mem, "a store")
	if got, err := os.ReadFile(path); err != nil || !bytes.HasPrefix(got, []byte("a store")) {
		t.Errorf("a store does not reach the file (%v)", err)
	}
	if errno, _ := c.do(opRemoveMapping, node, append(words32(1), words64(piece, piece)...), 0); errno != 0 {
		t.Fatal(errno)
	}
	if n := mappings(t, c.window); n != 1 || c.window.cuts.Load() != 0 {
		t.Errorf("%d mappings, %d pieces with zeros", n, c.window.cuts.Load())
	}
}

// TestHostileRequests: no answer, or an error, and the device goes on.
func TestHostileRequests(t *testing.T) {
	c := mounted(t, virtiotest.Options{})
	c.file("file", 10)
	node := c.lookup("file")
	fh := c.open(node, unix.O_RDWR)
	for op := range uint32(70) {
		if op == opInit || op == opDestroy {
			continue
		}
		for _, body := range [][]byte{nil, {0}, bytes.Repeat([]byte{0xff}, 24), bytes.Repeat([]byte{0xff}, 200), make([]byte, 200), transferBody(fh, 1<<63, 1<<20)} {
			for _, room := range [][]int{nil, {1}, {outHeader}, {outHeader, 8}, {outHeader, 300}} {
				c.Rings[1].Do([][]byte{c.request(op, node, body)}, room)
			}
		}
	}
	for _, p := range [][]byte{{1}, make([]byte, 39), make([]byte, 40), bytes.Repeat([]byte{0xff}, 40)} {
		c.Rings[1].Do([][]byte{p}, []int{64})
	}
	c.Rings[1].Do([][]byte{bytes.Repeat([]byte{'a'}, maxInput+100)}, []int{64})
	if c.Failed() != nil {
		t.Errorf("the device stopped: %v", c.Failed())
	}
	if c.dev.Stats().BadRequests == 0 {
		t.Error("nothing was counted")
	}
	c.lookup("file")
}

func TestReadDoesNotAllocate(t *testing.T) {
	c := mounted(t, virtiotest.Options{})
	c.file("file", 64<<10)
	fh := c.open(c.lookup("file"), unix.O_RDWR)
	w := &worker{d: c.dev}
	data := make([]byte, 64<<10)
	header := make([]byte, outHeader+8)
	var chain virtio.Chain
	for op, room := range map[uint32][][]byte{opRead: {header[:outHeader], data}, opWrite: {header}} {
		size := uint32(64 << 10)
		in := [][]byte{c.request(op, 0, transferBody(fh, 0, size)), data}
		var readable, writable [2][]byte
		n := testing.AllocsPerRun(100, func() {
			copy(readable[:], in)
			copy(writable[:], room)
			chain.Readable, chain.Writable = readable[:len(in)], writable[:len(room)]
			if w.serve(&chain) <= outHeader {
				t.Fatal("it failed")
			}
		})
		if n > 0 {
			t.Errorf("request %d allocates %.1f times", op, n)
		}
	}
}

// FuzzRequests has any bytes for a request, in a folder with a file, a directory
// and a link that leads out.
func FuzzRequests(f *testing.F) {
	template := &client{}
	for op, body := range map[uint32][]byte{
		1: []byte("file\x00"), opForget: words64(1), 3: make([]byte, 16), 4: make([]byte, 88), 5: nil, 6: []byte("a\x00b\x00"),
		8: append(make([]byte, 16), "n\x00"...), 9: append(make([]byte, 8), "d\x00"...), 10: []byte("file\x00"), 11: []byte("dir\x00"),
		12: append(words64(1), "file\x00x\x00"...), 13: append(words64(2), "l\x00"...), 14: words32(2, 0), opRead: transferBody(1, 0, 100),
		opWrite: transferBody(1, 0, 4), 17: nil, 18: make([]byte, 24), 21: append(words32(1, 0), "user.x\x00y"...), 22: append(words32(9, 0), "user.x\x00"...),
		23: words32(9, 0), 27: words32(0, 0), 28: transferBody(1, 0, 100), 35: append(words32(0x42, 0o644, 0, 0), "c\x00"...), opBatchForget: append(words32(1, 0), words64(2, 1)...),
		44: transferBody(1, 0, 400), 45: append(append(words64(1), words32(2, 0)...), "file\x00dir\x00"...), opSetupMapping: setup(0, piece, reads, 0),
		opRemoveMapping: append(words32(1), words64(0, piece)...), opInit: initBody(), opDestroy: nil, 47: make([]byte, 56), 46: make([]byte, 24),
	} {
		f.Add(template.request(op, 1, body), uint16(200))
		f.Add(template.request(op, 2, body), uint16(16))
	}
	top := f.TempDir()
	secret := filepath.Join(top, "secret")
	if err := errors.Join(os.WriteFile(secret, []byte("secret"), 0o644), os.Mkdir(filepath.Join(top, "folder"), 0o755)); err != nil {
		f.Fatal(err)
	}
	if _, err := arena.VMAs.Measure(testWindow / piece); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, request []byte, room uint16) {
		dir, err := os.MkdirTemp(filepath.Join(top, "folder"), "")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		if err := errors.Join(os.WriteFile(filepath.Join(dir, "file"), make([]byte, 5000), 0o644), os.Mkdir(filepath.Join(dir, "dir"), 0o755),
			os.Symlink(secret, filepath.Join(dir, "out"))); err != nil {
			t.Fatal(err)
		}
		files, err := folder.Open(folder.Config{Path: dir, Nodes: 10, Files: 3, Cached: 2})
		if err != nil {
			t.Fatal(err)
		}
		window, err := NewWindow(testWindow)
		if err != nil {
			t.Fatal(err)
		}
		dev, err := New(Config{Tag: "t", Backend: files, Window: window})
		if err != nil {
			t.Fatal(err)
		}
		w := &worker{d: dev}
		serve := func(p []byte, room int) {
			out := make([]byte, room)
			c := virtio.Chain{Readable: [][]byte{p}, Writable: [][]byte{out[:room/3], out[room/3:]}}
			if n := w.serve(&c); int(n) > room {
				t.Fatalf("%d bytes written, of %d", n, room)
			}
		}
		driver := &client{}
		serve(driver.request(opInit, 0, initBody()), 200)
		for _, name := range []string{"file\x00", "dir\x00", "out\x00"} { // nodes 2, 3 and 4
			serve(driver.request(1, 1, []byte(name)), 200)
		}
		serve(driver.request(14, 2, words32(2, 0)), 200) // and file 1
		serve(request, int(room))
		serve(driver.request(3, 2, make([]byte, 16)), 200)
		dev.end()
		if err := errors.Join(files.Close(), window.Close()); err != nil {
			t.Fatal(err)
		}
		if p, err := os.ReadFile(secret); string(p) != "secret" || err != nil {
			t.Fatalf("the secret is %q, %v", p, err)
		}
	})
}
