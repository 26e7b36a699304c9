package devices

import (
	"io"
	"sync"
)

// The registers of a 16550A, by offset (TI PC16550D data sheet, table 2).
const (
	regData        = 0 // RBR, THR; divisor low with DLAB
	regIER         = 1 // divisor high with DLAB
	regIIR         = 2 // FCR when written
	regLCR         = 3
	regMCR         = 4
	regLSR         = 5
	regMSR         = 6
	regScratch     = 7
	serialRegs     = 8
	serialFIFO     = 16
	serialBacklog  = 4096
	ierReceive     = 1 << 0
	ierTransmit    = 1 << 1
	ierLineStatus  = 1 << 2
	ierModemStatus = 1 << 3
	iirNone        = 1
	iirModemStatus = 0
	iirTransmit    = 2
	iirReceive     = 4
	iirLineStatus  = 6
	iirTimeout     = 12
	iirFIFO        = 0xc0
	fcrEnable      = 1 << 0
	fcrClearRx     = 1 << 1
	fcrTrigger     = 3 << 6
	lcrDLAB        = 1 << 7
	mcrDTR         = 1 << 0
	mcrRTS         = 1 << 1
	mcrOut1        = 1 << 2
	mcrOut2        = 1 << 3
	mcrLoop        = 1 << 4
	lsrData        = 1 << 0
	lsrOverrun     = 1 << 1
	lsrEmpty       = 1<<5 | 1<<6 // THRE, TEMT
	msrCTS         = 1 << 4
	msrDSR         = 1 << 5
	msrRI          = 1 << 6
	msrDCD         = 1 << 7
)

// Serial is a 16550A UART with infinitely fast transmission: eight registers,
// a receive FIFO of 16 bytes, one interrupt.
//
// The far end is a terminal that always asserts CTS, DSR and DCD and honours
// RTS: input waits, up to 4 KiB, while the guest has not raised it, so what is
// typed before the driver opens the port is not lost. Output that the Writer
// does not take shows as "transmitter not empty", which stops an interrupt
// driven driver; one that transmits all the same waits in its vCPU until there
// is room or Close.
//
// The interrupt is an edge: the line pulses whenever a cause appears that was
// not there before. Baud rate, parity and break are kept but mean nothing.
type Serial struct {
	out  *Output
	line Line
	in   *Pipe
	stop chan struct{}
	once sync.Once

	mu       sync.Mutex
	ier, fcr byte
	lcr, mcr byte
	scratch  byte
	divisor  [2]byte
	overrun  bool
	thre     bool // the "transmitter empty" cause has not been acknowledged
	full     bool // the guest may have seen the transmitter not empty
	msrOld   byte // modem lines when MSR was last read
	rx       [serialFIFO]byte
	rxHead   int
	rxLen    int
}

// NewSerial makes a Serial that sends to out and interrupts by line. The caller
// keeps out.
func NewSerial(out *Output, line Line) *Serial {
	s := &Serial{
		out: out, line: line,
		in:      NewPipe(serialBacklog),
		stop:    make(chan struct{}),
		divisor: [2]byte{12, 0},
		msrOld:  msrCTS | msrDSR | msrDCD,
	}
	out.OnRoom(s.drained)
	return s
}

// Input is what the terminal sends to the guest. It waits while the guest does
// not read, and fails with io.ErrClosedPipe after Close.
func (s *Serial) Input(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n := s.in.Put(p[done:], s.stop)
		if n == 0 {
			return done, io.ErrClosedPipe
		}
		done += n
		s.update(s.refill)
	}
	return done, nil
}

// Close frees every vCPU and goroutine that waits in s. Output sent later is
// kept only as far as there is room for it. Closing twice is harmless.
func (s *Serial) Close() {
	s.once.Do(func() { close(s.stop); s.in.Close() })
}

// update changes registers under the lock and pulses the line for new causes.
func (s *Serial) update(change func()) {
	s.mu.Lock()
	before := s.causes()
	change()
	pulse := s.causes()&^before != 0
	s.mu.Unlock()
	if pulse {
		s.line.Pulse()
	}
}

// causes are the enabled interrupt causes, as bits of IER; none while OUT2 or
// loopback keeps the line off the bus.
func (s *Serial) causes() byte {
	if s.mcr&mcrOut2 == 0 || s.mcr&mcrLoop != 0 {
		return 0
	}
	return s.pending()
}

func (s *Serial) pending() byte {
	var c byte
	if s.rxLen > 0 {
		c |= ierReceive
	}
	if s.thre {
		c |= ierTransmit
	}
	if s.overrun {
		c |= ierLineStatus
	}
	if s.modemChanges() != 0 {
		c |= ierModemStatus
	}
	return c & s.ier
}

// refill moves waiting input to the receive FIFO.
func (s *Serial) refill() {
	if s.mcr&(mcrRTS|mcrLoop) != mcrRTS {
		return
	}
	var b [serialFIFO]byte
	n := s.in.TakeNow(b[:s.fifo()-s.rxLen])
	for _, c := range b[:n] {
		s.receive(c)
	}
}

// fifo is how many bytes the receiver holds.
func (s *Serial) fifo() int {
	if s.fcr&fcrEnable == 0 {
		return 1
	}
	return serialFIFO
}

func (s *Serial) receive(c byte) {
	if s.rxLen >= s.fifo() {
		s.overrun = true
		return
	}
	s.rx[(s.rxHead+s.rxLen)%serialFIFO] = c
	s.rxLen++
}

func (s *Serial) drained() {
	s.update(func() {
		if s.full && s.out.Room() >= serialFIFO {
			s.full = false
			s.thre = true
		}
	})
}

// modem is MSR without its change bits.
func (s *Serial) modem() byte {
	if s.mcr&mcrLoop == 0 {
		return msrCTS | msrDSR | msrDCD
	}
	// Loopback wires RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD.
	return s.mcr&mcrRTS<<3 | s.mcr&mcrDTR<<5 | s.mcr&mcrOut1<<4 | s.mcr&mcrOut2<<4
}

// modemChanges are MSR's change bits; the ring indicator's is for its end only.
func (s *Serial) modemChanges() byte {
	now := s.modem()
	return ((now ^ s.msrOld) &^ (now & msrRI)) >> 4
}

// Read reads registers; an access of several bytes is split, as on an ISA bus.
func (s *Serial) Read(offset uint64, p []byte) {
	s.mu.Lock()
	before := s.causes()
	for i := range p {
		p[i] = s.readReg((offset + uint64(i)) % serialRegs)
	}
	pulse := s.causes()&^before != 0
	s.mu.Unlock()
	if pulse {
		s.line.Pulse()
	}
}

func (s *Serial) readReg(r uint64) byte {
	switch r {
	case regData:
		if s.lcr&lcrDLAB != 0 {
			return s.divisor[0]
		}
		var c byte
		if s.rxLen > 0 {
			c = s.rx[s.rxHead]
			s.rxHead = (s.rxHead + 1) % serialFIFO
			s.rxLen--
		}
		s.refill()
		return c
	case regIER:
		if s.lcr&lcrDLAB != 0 {
			return s.divisor[1]
		}
		return s.ier
	case regIIR:
		id := s.identify()
		if id == iirTransmit {
			s.thre = false
		}
		if s.fcr&fcrEnable != 0 {
			id |= iirFIFO
		}
		return id
	case regLCR:
		return s.lcr
	case regMCR:
		return s.mcr
	case regLSR:
		var v byte
		if s.rxLen > 0 {
			v |= lsrData
		}
		if s.overrun {
			v |= lsrOverrun
			s.overrun = false
		}
		if s.out.Room() >= serialFIFO {
			v |= lsrEmpty
		} else {
			s.full = true
		}
		return v
	case regMSR:
		v := s.modem() | s.modemChanges()
		s.msrOld = s.modem()
		return v
	default:
		return s.scratch
	}
}

// identify is the pending cause of the highest priority (PC16550D table 5).
// Input below the FIFO's trigger level counts as timed out at once.
func (s *Serial) identify() byte {
	c := s.pending()
	switch {
	case c&ierLineStatus != 0:
		return iirLineStatus
	case c&ierReceive != 0:
		if s.fcr&fcrEnable != 0 && s.rxLen < [4]int{1, 4, 8, 14}[s.fcr>>6] {
			return iirTimeout
		}
		return iirReceive
	case c&ierTransmit != 0:
		return iirTransmit
	case c&ierModemStatus != 0:
		return iirModemStatus
	}
	return iirNone
}

// Write writes registers; an access of several bytes is split, as on an ISA bus.
func (s *Serial) Write(offset uint64, p []byte) {
	for i := range p {
		r := (offset + uint64(i)) % serialRegs
		s.mu.Lock()
		if r == regData && s.lcr&lcrDLAB == 0 && s.mcr&mcrLoop == 0 {
			s.mu.Unlock()
			s.out.Put(p[i:i+1], s.stop)
			s.mu.Lock()
		}
		before := s.causes()
		s.writeReg(r, p[i])
		pulse := s.causes()&^before != 0
		s.mu.Unlock()
		if pulse {
			s.line.Pulse()
		}
	}
}

func (s *Serial) writeReg(r uint64, v byte) {
	switch r {
	case regData:
		switch {
		case s.lcr&lcrDLAB != 0:
			s.divisor[0] = v
			return
		case s.mcr&mcrLoop != 0:
			s.receive(v)
		}
		s.transmitted()
	case regIER:
		if s.lcr&lcrDLAB != 0 {
			s.divisor[1] = v
			return
		}
		old := s.ier
		s.ier = v & (ierReceive | ierTransmit | ierLineStatus | ierModemStatus)
		switch {
		case s.ier&ierTransmit == 0:
			s.thre = false
		case old&ierTransmit == 0:
			s.transmitted()
		}
	case regIIR:
		if (v^s.fcr)&fcrEnable != 0 || v&(fcrEnable|fcrClearRx) == fcrEnable|fcrClearRx {
			s.rxHead, s.rxLen = 0, 0
		}
		s.fcr = 0
		if v&fcrEnable != 0 {
			s.fcr = v & (fcrEnable | fcrTrigger)
		}
		s.refill()
	case regLCR:
		s.lcr = v
	case regMCR:
		s.mcr = v & (mcrDTR | mcrRTS | mcrOut1 | mcrOut2 | mcrLoop)
		s.refill()
	case regScratch:
		s.scratch = v
	}
}

// transmitted raises the "transmitter empty" cause, or leaves that to drained.
func (s *Serial) transmitted() {
	s.thre = s.out.Room() >= serialFIFO
	s.full = !s.thre
}
