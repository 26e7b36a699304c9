package lab

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// link is one end of the connection between the host and the lab's init. Its
// methods may be called from any goroutine.
type link struct {
	conn io.ReadWriter
	in   [streams]*inbox
	out  [streams]*outbox

	sending sync.Mutex
	scratch []byte // under sending
}

func newLink(conn io.ReadWriter) *link {
	l := &link{conn: conn}
	for s := range streams {
		l.in[s] = newInbox(l, s)
		l.out[s] = newOutbox(l, s)
	}
	return l
}

// send writes one frame. It blocks while the other end reads nothing, and the
// other end's serve always reads.
func (l *link) send(k kind, s stream, payload []byte) error {
	l.sending.Lock()
	defer l.sending.Unlock()
	l.scratch = appendFrame(l.scratch[:0], frame{k, s, payload})
	_, err := l.conn.Write(l.scratch)
	return err
}

func (l *link) sendNumbers(k kind, s stream, numbers ...uint32) error {
	b := make([]byte, 0, 8)
	for _, n := range numbers {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	return l.send(k, s, b)
}

var errTooLong = errors.New("command line and environment are too long")

func (l *link) sendJSON(k kind, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > maxPayload {
		return fmt.Errorf("%w: %d bytes, at most %d", errTooLong, len(b), maxPayload)
	}
	return l.send(k, 0, b)
}

// serve reads frames until handle returns false, the connection ends (io.EOF) or
// the other end breaks the protocol. Stream frames are dealt with here; all others go
// to handle, which must not block. When it returns, readers of streams that have not
// ended get an error.
func (l *link) serve(handle func(frame) (more bool, err error)) error {
	err := l.read(handle)
	for s := range streams {
		l.in[s].fail(err)
		l.out[s].fail(err)
	}
	return err
}

func (l *link) read(handle func(frame) (bool, error)) error {
	r := bufio.NewReaderSize(l.conn, 64<<10)
	var buf []byte
	for {
		f, err := readFrame(r, &buf)
		if err != nil {
			return err
		}
		switch f.kind {
		case kindData:
			err = l.in[f.stream].put(f.payload)
		case kindEOF:
			l.in[f.stream].fail(io.EOF)
		case kindCredit:
			var n []uint32
			if n, err = f.numbers(1); err == nil {
				err = l.out[f.stream].grant(n[0])
			}
		default:
			var more bool
			if more, err = handle(f); err == nil && !more {
				return nil
			}
		}
		if err != nil {
			return err
		}
	}
}

// end is what both ends of a stream have.
type end struct {
	link   *link
	stream stream

	mu      sync.Mutex
	changed sync.Cond // of what is below, and the inbox's bytes
	room    int       // bytes granted and not sent, or not received, yet
	err     error     // the stream's end, if there is one
}

func (e *end) init(l *link, s stream) {
	e.link, e.stream = l, s
	e.changed.L = &e.mu
}

// fail makes Write return err from now on, and Read once what has arrived is read.
func (e *end) fail(err error) {
	if err == nil {
		err = io.ErrClosedPipe
	}
	e.mu.Lock()
	if e.err == nil {
		e.err = err
	}
	e.mu.Unlock()
	e.changed.Broadcast()
}

// inbox is the receiving end of a stream: an io.Reader that gives credit as it is
// read. It grants nothing before open.
type inbox struct {
	end
	buf bytes.Buffer
}

func newInbox(l *link, s stream) *inbox {
	b := &inbox{}
	b.init(l, s)
	return b
}

// open grants the first window.
func (b *inbox) open() error { return b.credit(window) }

func (b *inbox) credit(n int) error {
	b.mu.Lock()
	b.room += n
	b.mu.Unlock()
	return b.link.sendNumbers(kindCredit, b.stream, uint32(n))
}

func (b *inbox) put(p []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(p) > b.room {
		return fmt.Errorf("%w: stream %d: %d bytes came, %d were granted", errProtocol, b.stream, len(p), b.room)
	}
	if b.err != nil {
		return fmt.Errorf("%w: stream %d: %d bytes came after its end", errProtocol, b.stream, len(p))
	}
	b.room -= len(p)
	b.buf.Write(p)
	b.changed.Signal()
	return nil
}

// Read implements io.Reader, for one reader at a time.
func (b *inbox) Read(p []byte) (int, error) {
	b.mu.Lock()
	for b.buf.Len() == 0 && b.err == nil {
		b.changed.Wait()
	}
	if b.buf.Len() == 0 {
		defer b.mu.Unlock()
		return 0, b.err
	}
	n, _ := b.buf.Read(p)
	ended := b.err != nil
	b.mu.Unlock()
	if ended {
		return n, nil
	}
	// An error here is of the connection, and serve reports it.
	_ = b.credit(n)
	return n, nil
}

// outbox is the sending end of a stream: an io.WriteCloser that waits for credit.
type outbox struct{ end }

func newOutbox(l *link, s stream) *outbox {
	b := &outbox{}
	b.init(l, s)
	return b
}

func (b *outbox) grant(n uint32) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n > window || b.room+int(n) > window {
		return fmt.Errorf("%w: stream %d: credit of %d over a window of %d", errProtocol, b.stream, n, window)
	}
	b.room += int(n)
	b.changed.Broadcast()
	return nil
}

// ready waits until something can be written, so that a source need not be read
// before its bytes are wanted.
func (b *outbox) ready() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.room == 0 && b.err == nil {
		b.changed.Wait()
	}
	return b.err
}

// Write implements io.Writer.
func (b *outbox) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		if err := b.ready(); err != nil {
			return done, err
		}
		b.mu.Lock()
		n := min(b.room, len(p)-done, maxData)
		b.room -= n
		b.mu.Unlock()
		if err := b.link.send(kindData, b.stream, p[done:done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// Close says that the stream has ended.
func (b *outbox) Close() error { return b.link.send(kindEOF, b.stream, nil) }

// fill copies r to the outbox, reading nothing before it is wanted, and closes the
// outbox at the end of r.
func (b *outbox) fill(r io.Reader) error {
	buf := make([]byte, maxData)
	for {
		if err := b.ready(); err != nil {
			return err
		}
		n, err := r.Read(buf)
		if _, werr := b.Write(buf[:n]); werr != nil {
			return werr
		}
		if err == io.EOF {
			return b.Close()
		}
		if err != nil {
			_ = b.Close()
			return err
		}
	}
}
