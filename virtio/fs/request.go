package fs

import (
	"encoding/binary"
	"sync"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"disco/virtio"
)

// Sizes of FUSE's structures in bytes (Linux, include/uapi/linux/fuse.h).
const (
	inHeader  = 40 // fuse_in_header
	outHeader = 16 // fuse_out_header
	transfer  = 40 // fuse_read_in, fuse_write_in
	mapping   = 40 // fuse_setupmapping_in
	unmapping = 16 // fuse_removemapping_one
	alignment = 30 // of map_alignment in fuse_init_out
)

const (
	// maxData bounds the data of a read or a write, in bytes.
	maxData = 1 << 20
	// maxInput bounds a request that is no write: an attribute with its name.
	maxInput = 72 << 10
	// maxOutput bounds an answer that is no read's data.
	maxOutput = maxData + 4096
)

// The requests that are answered here (enum fuse_opcode), or change how.
const (
	opForget        = 2
	opRead          = 15
	opWrite         = 16
	opInit          = 26
	opDestroy       = 38
	opBatchForget   = 42
	opSetupMapping  = 48
	opRemoveMapping = 49
)

// least is the size in bytes of the requests that go to the protocol server,
// headers included and names not. What is not here does not exist for the guest.
var least = map[uint32]uintptr{
	1:             inHeader, // LOOKUP
	opForget:      unsafe.Sizeof(fuse.ForgetIn{}),
	3:             unsafe.Sizeof(fuse.GetAttrIn{}),
	4:             unsafe.Sizeof(fuse.SetAttrIn{}),
	5:             inHeader, // READLINK
	6:             inHeader, // SYMLINK
	8:             unsafe.Sizeof(fuse.MknodIn{}),
	9:             unsafe.Sizeof(fuse.MkdirIn{}),
	10:            inHeader,     // UNLINK
	11:            inHeader,     // RMDIR
	12:            inHeader + 8, // RENAME
	13:            unsafe.Sizeof(fuse.LinkIn{}),
	14:            unsafe.Sizeof(fuse.OpenIn{}),
	17:            inHeader, // STATFS
	18:            unsafe.Sizeof(fuse.ReleaseIn{}),
	20:            unsafe.Sizeof(fuse.FsyncIn{}),
	21:            inHeader + 8, // SETXATTR
	22:            unsafe.Sizeof(fuse.GetXAttrIn{}),
	23:            unsafe.Sizeof(fuse.GetXAttrIn{}), // LISTXATTR
	24:            inHeader,                         // REMOVEXATTR
	25:            unsafe.Sizeof(fuse.FlushIn{}),
	27:            unsafe.Sizeof(fuse.OpenIn{}),    // OPENDIR
	28:            unsafe.Sizeof(fuse.ReadIn{}),    // READDIR
	29:            unsafe.Sizeof(fuse.ReleaseIn{}), // RELEASEDIR
	30:            unsafe.Sizeof(fuse.FsyncIn{}),   // FSYNCDIR
	35:            unsafe.Sizeof(fuse.CreateIn{}),
	opBatchForget: inHeader + 8,
	43:            unsafe.Sizeof(fuse.FallocateIn{}),
	44:            unsafe.Sizeof(fuse.ReadIn{}),   // READDIRPLUS
	45:            unsafe.Sizeof(fuse.RenameIn{}), // RENAME2
	46:            unsafe.Sizeof(fuse.LseekIn{}),
	47:            unsafe.Sizeof(fuse.CopyFileRangeIn{}),
}

// line is a queue that several workers serve. One waits for a request, under take;
// answers are given one at a time, under give. A worker holds neither while it
// answers.
type line struct {
	queue      *virtio.Queue
	take, give sync.Mutex
}

// worker answers one request at a time.
type worker struct {
	d     *Device
	line  *line
	chain virtio.Chain
	head  [inHeader + transfer]byte
	out   [outHeader + 64]byte
	in    []byte    // the rest of a request, for the protocol server
	parts [2][]byte // of the buffers for a header
}

func (w *worker) run() {
	q := w.line.queue
	for w.next() {
		mark := q.Begin()
		n := w.serve(&w.chain)
		if w.d.window != nil && w.d.window.cuts.Load() > 0 {
			// A guest must not hear that a file is longer before it can see that.
			w.d.follow(true)
		}
		w.line.give.Lock()
		q.Done(&w.chain, n)
		q.Flush()
		w.line.give.Unlock()
		q.End(mark)
	}
}

func (w *worker) next() bool {
	w.line.take.Lock()
	defer w.line.take.Unlock()
	q := w.line.queue
	for q.Wait() {
		if q.Next(&w.chain) {
			return true
		}
	}
	return false
}

// request is the header of one.
type request struct {
	op     uint32
	unique uint64
	node   uint64
}

// serve answers a request, and says how many bytes it wrote. What no driver does is
// counted, and answered with an error where there is room for one.
func (w *worker) serve(c *virtio.Chain) uint32 {
	w.d.requests.Add(1)
	le := binary.LittleEndian
	if c.Read(w.head[:inHeader]) < inHeader {
		w.d.badRequests.Add(1)
		return 0
	}
	r := request{op: le.Uint32(w.head[4:]), unique: le.Uint64(w.head[8:]), node: le.Uint64(w.head[16:])}
	rest := virtio.Len(c.Readable)
	if length := uint64(le.Uint32(w.head[:])); length < inHeader || length > uint64(inHeader+rest) {
		return w.refuse(c, r)
	}
	if r.op == opInit || r.op == opDestroy {
		w.d.session.Lock()
		defer w.d.session.Unlock()
		if r.op == opDestroy {
			w.d.end()
			return w.reply(c, r, fuse.OK, nil)
		}
		w.d.begin()
		return w.init(c, r)
	}
	w.d.session.RLock()
	defer w.d.session.RUnlock()
	if w.d.server == nil {
		return w.refuse(c, r)
	}
	switch r.op {
	case opRead:
		return w.read(c, r)
	case opWrite:
		return w.write(c, r)
	case opSetupMapping:
		return w.setupMapping(c, r)
	case opRemoveMapping:
		return w.removeMapping(c, r)
	}
	return w.pass(c, r)
}

// refuse answers what no driver asks.
func (w *worker) refuse(c *virtio.Chain, r request) uint32 {
	w.d.badRequests.Add(1)
	return w.reply(c, r, fuse.EINVAL, nil)
}

// reply answers with a status, and with a body where that is no error. Forgetting
// has no answer.
func (w *worker) reply(c *virtio.Chain, r request, s fuse.Status, body []byte) uint32 {
	if r.op == opForget || r.op == opBatchForget {
		return 0
	}
	if s != fuse.OK {
		body = nil
	}
	if virtio.Len(c.Writable) < outHeader+len(body) {
		if s == fuse.OK {
			w.d.badRequests.Add(1)
		}
		return 0
	}
	w.header(r, s, len(body))
	c.Write(w.out[:outHeader])
	c.Write(body)
	return uint32(outHeader + len(body))
}

// header fills in the header of an answer.
func (w *worker) header(r request, s fuse.Status, body int) {
	le := binary.LittleEndian
	le.PutUint32(w.out[0:], uint32(outHeader+body))
	le.PutUint32(w.out[4:], uint32(-int32(s)))
	le.PutUint64(w.out[8:], r.unique)
}

// structure reads the n bytes that follow the header.
func (w *worker) structure(c *virtio.Chain, n int) ([]byte, bool) {
	p := w.head[inHeader : inHeader+n]
	return p, c.Read(p) == n
}

// transfer is which file a read or a write is of, and where and how long it is there.
func (w *worker) transfer(c *virtio.Chain) (fh uint64, off int64, size int, ok bool) {
	p, ok := w.structure(c, transfer)
	if !ok {
		return 0, 0, 0, false
	}
	le := binary.LittleEndian
	fh, off, size = le.Uint64(p[0:]), int64(le.Uint64(p[8:])), int(le.Uint32(p[16:]))
	return fh, off, size, size <= maxData
}

// read fills the guest's buffers from a file.
func (w *worker) read(c *virtio.Chain, r request) uint32 {
	fh, off, size, ok := w.transfer(c)
	if !ok || virtio.Len(c.Writable) < outHeader+size {
		return w.refuse(c, r)
	}
	// The header's place is kept until it is known how much there was.
	header := w.split(c)
	cut(&c.Writable, size)
	n, s := w.d.backend.ReadV(fh, c.Writable, off)
	if s != fuse.OK {
		n = 0
	}
	w.d.read.Add(uint64(n))
	w.header(r, s, n)
	rest := w.out[:outHeader]
	for _, b := range header {
		rest = rest[copy(b, rest):]
	}
	return uint32(outHeader + n)
}

// split takes the buffers of a header off the writable ones. A header that lies in
// more than two would be the work of no driver; its chain gets what fits.
func (w *worker) split(c *virtio.Chain) [][]byte {
	header, left := w.parts[:0], outHeader
	for left > 0 && len(c.Writable) > 0 && len(header) < len(w.parts) {
		b := c.Writable[0]
		n := min(left, len(b))
		header = append(header, b[:n])
		left -= n
		if c.Writable[0] = b[n:]; n == len(b) {
			c.Writable = c.Writable[1:]
		}
	}
	return header
}

// cut shortens buffers to n bytes.
func cut(bufs *[][]byte, n int) {
	for i, b := range *bufs {
		if n <= len(b) {
			(*bufs)[i] = b[:n]
			*bufs = (*bufs)[:i+1]
			return
		}
		n -= len(b)
	}
}

// write writes the guest's buffers to a file.
func (w *worker) write(c *virtio.Chain, r request) uint32 {
	fh, off, size, ok := w.transfer(c)
	if !ok || virtio.Len(c.Readable) < size {
		return w.refuse(c, r)
	}
	cut(&c.Readable, size)
	n, s := w.d.backend.WriteV(fh, c.Readable, off)
	if s == fuse.OK {
		w.d.written.Add(uint64(n))
	}
	body := w.out[outHeader : outHeader+8] // fuse_write_out
	binary.LittleEndian.PutUint64(body, uint64(uint32(n)))
	return w.reply(c, r, s, body)
}

// collect copies a request out of the guest, for the protocol server.
func (w *worker) collect(c *virtio.Chain) bool {
	rest := virtio.Len(c.Readable)
	if rest > maxInput {
		return false
	}
	w.in = append(w.in[:0], w.head[:inHeader]...)
	w.in = append(w.in, make([]byte, rest)...)
	c.Read(w.in[inHeader:])
	return true
}

// init has the protocol server settle what is spoken, and adds the window.
func (w *worker) init(c *virtio.Chain, r request) uint32 {
	const least = inHeader + 16 // fuse_init_in, as it was before its second flags
	if !w.collect(c) || len(w.in) < least || len(w.in) > int(unsafe.Sizeof(fuse.InitIn{})) {
		w.d.end()
		return w.refuse(c, r)
	}
	le := binary.LittleEndian
	if major, minor := le.Uint32(w.in[inHeader:]), le.Uint32(w.in[inHeader+4:]); major != 7 || minor < 31 {
		w.d.end()
		return w.reply(c, r, fuse.Status(unix.EPROTO), nil)
	}
	var out [outHeader + unsafe.Sizeof(fuse.InitOut{})]byte
	n, s := w.d.server.HandleRequest([][]byte{w.in}, [][]byte{out[:]})
	if s != fuse.OK || n < outHeader+alignment+2 {
		w.d.end()
		return w.refuse(c, r)
	}
	if w.d.window != nil {
		le.PutUint16(out[outHeader+alignment:], pieceShift)
	}
	return w.reply(c, r, fuse.OK, out[outHeader:n])
}

// pass has the protocol server answer.
func (w *worker) pass(c *virtio.Chain, r request) uint32 {
	size, known := least[r.op]
	if !known {
		return w.reply(c, r, fuse.ENOSYS, nil)
	}
	if !w.collect(c) || uintptr(len(w.in)) < size || virtio.Len(c.Writable) > maxOutput {
		return w.refuse(c, r)
	}
	n, s := w.d.server.HandleRequest([][]byte{w.in}, c.Writable)
	if s != fuse.OK {
		return w.refuse(c, r)
	}
	return uint32(n)
}

// setupMapping puts a range of a file into the window.
func (w *worker) setupMapping(c *virtio.Chain, r request) uint32 {
	p, ok := w.structure(c, mapping)
	if !ok {
		return w.refuse(c, r)
	}
	if w.d.window == nil {
		return w.reply(c, r, fuse.ENOSYS, nil)
	}
	const write = 1 // FUSE_SETUPMAPPING_FLAG_WRITE
	le := binary.LittleEndian
	from, n, flags, at := le.Uint64(p[8:]), le.Uint64(p[16:]), le.Uint64(p[24:]), le.Uint64(p[32:])
	if !w.d.window.holds(at, n) || from%piece != 0 || from > 1<<62 {
		return w.refuse(c, r)
	}
	writable := flags&write != 0
	fd, s := w.d.backend.OpenMap(r.node, int64(from), int64(n), writable)
	if s == fuse.OK {
		s = w.d.window.put(at, n, fd, int64(from), r.node, writable)
		_ = unix.Close(fd)
	}
	return w.reply(c, r, s, nil)
}

// removeMapping takes ranges out of the window.
func (w *worker) removeMapping(c *virtio.Chain, r request) uint32 {
	p, ok := w.structure(c, 4)
	if !ok {
		return w.refuse(c, r)
	}
	if w.d.window == nil {
		return w.reply(c, r, fuse.ENOSYS, nil)
	}
	le := binary.LittleEndian
	count := le.Uint32(p)
	if uint64(count)*unmapping > uint64(virtio.Len(c.Readable)) {
		return w.refuse(c, r)
	}
	for range count {
		p, _ := w.structure(c, unmapping)
		at, n := le.Uint64(p[0:]), le.Uint64(p[8:])
		if !w.d.window.holds(at, n) {
			return w.refuse(c, r)
		}
		if s := w.d.window.take(at, n); s != fuse.OK {
			return w.reply(c, r, s, nil)
		}
	}
	return w.reply(c, r, fuse.OK, nil)
}
