package workload

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// version is that of the protocol; both ends are built together.
const version = 1

// kind is a message's kind; see each message's type for what it carries.
type kind uint8

const (
	kindHello kind = iota + 1
	kindRun
	kindReady
	kindGo
	kindRound
	kindDone
	kindBye
	kindFailed
)

// maxFrame bounds what one end believes of the other, in bytes: the page numbers of
// 4 GiB that lie as badly as can be.
const maxFrame = 8 << 20

// Hello is the guest's first message.
type Hello struct{ CPUs int }

// Frames are pages whose numbers follow each other: PPN, PPN+1, … up to N of them.
type Frames struct {
	PPN uint64
	N   int
}

// Ready says where all pages of a workload are: for each region its pages in order.
type Ready struct{ Regions [][]Frames }

// Round is what the threads did in one round.
type Round struct {
	Index int
	Nanos uint64   // by the guest's clock, from the first thread's start to the last one's end
	Spans [][]Span // by thread and by its turn, in the order of Plan.Turns
}

// Done ends a workload. Stale is the number of loads that found what nobody wrote, and
// Lost what is missing from, or too much in, the sums of all increments: 0 both, or
// the monitor has lost something.
type Done struct{ Stale, Lost uint64 }

// ErrFailed is what the other end had to say when it could not go on.
var ErrFailed = errors.New("the workload failed")

// Conn is one end of the protocol. Its methods are for one goroutine.
type Conn struct {
	r *bufio.Reader
	w io.Writer
	b []byte // the frame that is being put together
}

// NewConn speaks over c.
func NewConn(c io.ReadWriter) *Conn { return &Conn{r: bufio.NewReader(c), w: c} }

func (c *Conn) begin(k kind) { c.b = append(c.b[:0], 0, 0, 0, 0, byte(k)) }
func (c *Conn) int(n int)    { c.b = binary.AppendUvarint(c.b, uint64(n)) }
func (c *Conn) text(s string) {
	c.int(len(s))
	c.b = append(c.b, s...)
}

func (c *Conn) send() error {
	if len(c.b)-4 > maxFrame {
		return fmt.Errorf("workload: a message of %d bytes is more than %d; use less memory", len(c.b)-4, maxFrame)
	}
	binary.LittleEndian.PutUint32(c.b, uint32(len(c.b)-4))
	_, err := c.w.Write(c.b)
	return err
}

// receive reads one message, which must be of kind want; a failure that the other
// end reports is an error.
func (c *Conn) receive(want ...kind) (kind, *payload, error) {
	var head [5]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n < 1 || n > maxFrame {
		return 0, nil, fmt.Errorf("workload: a message of %d bytes", n)
	}
	p := &payload{b: make([]byte, n-1)}
	if _, err := io.ReadFull(c.r, p.b); err != nil {
		return 0, nil, err
	}
	k := kind(head[4])
	if k == kindFailed {
		return 0, nil, fmt.Errorf("%w: %s", ErrFailed, strings.ToValidUTF8(p.text(), "?"))
	}
	for _, w := range want {
		if k == w {
			return k, p, nil
		}
	}
	return 0, nil, fmt.Errorf("workload: message %d where %v was due", k, want)
}

// payload is what is left of a message. Once it was too short, all it gives is zero.
type payload struct {
	b   []byte
	bad bool
}

func (p *payload) uint() uint64 {
	n, size := binary.Uvarint(p.b)
	if size <= 0 {
		p.bad, p.b = true, nil
		return 0
	}
	p.b = p.b[size:]
	return n
}

// count is a number up to limit.
func (p *payload) count(limit int) int {
	n := p.uint()
	if n > uint64(limit) {
		p.bad, p.b = true, nil
		return 0
	}
	return int(n)
}

func (p *payload) text() string {
	n := p.count(maxFrame)
	if n > len(p.b) {
		p.bad, p.b = true, nil
		return ""
	}
	s := string(p.b[:n])
	p.b = p.b[n:]
	return s
}

func (p *payload) end() error {
	if p.bad || len(p.b) > 0 {
		return errors.New("workload: a malformed message")
	}
	return nil
}

// Fail tells the other end why this one gives up.
func (c *Conn) Fail(why error) error {
	c.begin(kindFailed)
	s := why.Error()
	c.text(s[:min(len(s), 4096)])
	return c.send()
}

func (c *Conn) sendHello(h Hello) error {
	c.begin(kindHello)
	c.int(version)
	c.int(h.CPUs)
	return c.send()
}

// Hello waits for the guest's hello.
func (c *Conn) Hello() (Hello, error) {
	_, p, err := c.receive(kindHello)
	if err != nil {
		return Hello{}, err
	}
	if v := p.uint(); v != version {
		return Hello{}, fmt.Errorf("workload: the guest speaks version %d of the protocol, not %d: build its initrd again", v, version)
	}
	h := Hello{CPUs: p.count(1 << 20)}
	return h, p.end()
}

// Run sends s and waits for the guest to have made its memory.
func (c *Conn) Run(p *Plan) (Ready, error) {
	s := &p.Spec
	c.begin(kindRun)
	c.text(s.Name)
	c.int(s.Pages)
	c.int(s.Rounds)
	c.int(s.Visits)
	huge := 0
	if s.Huge {
		huge = 1
	}
	c.int(huge)
	c.int(len(s.Threads))
	for _, n := range s.Threads {
		c.int(n)
	}
	if err := c.send(); err != nil {
		return Ready{}, err
	}
	_, m, err := c.receive(kindReady)
	if err != nil {
		return Ready{}, err
	}
	return m.ready(p)
}

func (p *payload) spec() (Spec, error) {
	s := Spec{Name: p.text(), Pages: p.count(MaxPages), Rounds: p.count(MaxRounds), Visits: p.count(1 << 40)}
	s.Huge = p.count(1) == 1
	s.Threads = make([]int, p.count(MaxThreads))
	for i := range s.Threads {
		s.Threads[i] = p.count(MaxThreads)
	}
	return s, p.end()
}

func (c *Conn) sendReady(r Ready) error {
	c.begin(kindReady)
	for _, region := range r.Regions {
		c.int(len(region))
		for _, f := range region {
			c.b = binary.AppendUvarint(c.b, f.PPN)
			c.int(f.N)
		}
	}
	return c.send()
}

// ready reads what the guest says of plan's regions: all of each one's pages, and no
// page twice.
func (p *payload) ready(plan *Plan) (Ready, error) {
	r := Ready{Regions: make([][]Frames, len(plan.Regions))}
	seen := map[uint64]bool{}
	for i, region := range plan.Regions {
		left := region.Pages
		frames := make([]Frames, p.count(left))
		for j := range frames {
			f := Frames{PPN: p.uint(), N: p.count(left)}
			if f.PPN > 1<<40 {
				return r, fmt.Errorf("workload: page number %#x", f.PPN)
			}
			for n := range f.N {
				if seen[f.PPN+uint64(n)] {
					return r, fmt.Errorf("workload: page %#x is named twice", f.PPN+uint64(n))
				}
				seen[f.PPN+uint64(n)] = true
			}
			left -= f.N
			frames[j] = f
		}
		if left != 0 && !p.bad {
			return r, fmt.Errorf("workload: %s lacks %d pages", region.Name, left)
		}
		r.Regions[i] = frames
	}
	return r, p.end()
}

// Go lets the threads do a round, or the final check after the last one.
func (c *Conn) Go() error {
	c.begin(kindGo)
	return c.send()
}

func (c *Conn) sendRound(r Round) error {
	c.begin(kindRound)
	c.int(r.Index)
	c.b = binary.AppendUvarint(c.b, r.Nanos)
	for _, thread := range r.Spans {
		for _, s := range thread {
			c.int(s.First)
			c.int(s.Visits)
		}
	}
	return c.send()
}

// Round waits for the report of round index of plan.
func (c *Conn) Round(plan *Plan, index int) (Round, error) {
	_, p, err := c.receive(kindRound)
	if err != nil {
		return Round{}, err
	}
	r := Round{Index: p.count(MaxRounds), Nanos: p.uint(), Spans: make([][]Span, len(plan.Spec.Threads))}
	for t := range r.Spans {
		left := plan.Spec.Visits
		for _, turn := range plan.Turns(t, index) {
			s := Span{First: p.count(plan.Regions[turn.Region].Pages - 1), Visits: p.count(left)}
			left -= s.Visits
			r.Spans[t] = append(r.Spans[t], s)
		}
		if left != 0 && !p.bad {
			return r, fmt.Errorf("workload: thread %d owes %d visits in round %d", t, left, index)
		}
	}
	if r.Index != index {
		p.bad = true
	}
	return r, p.end()
}

func (c *Conn) sendDone(d Done) error {
	c.begin(kindDone)
	c.b = binary.AppendUvarint(c.b, d.Stale)
	c.b = binary.AppendUvarint(c.b, d.Lost)
	return c.send()
}

// Done waits for the end of a workload.
func (c *Conn) Done() (Done, error) {
	_, p, err := c.receive(kindDone)
	if err != nil {
		return Done{}, err
	}
	d := Done{Stale: p.uint(), Lost: p.uint()}
	return d, p.end()
}

// Bye ends the guest's program.
func (c *Conn) Bye() error {
	c.begin(kindBye)
	return c.send()
}
