package user

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// flowIdle is how long a flow lasts without a datagram: what RFC 4787 §4.3 asks
// at the least.
const flowIdle = 2 * time.Minute

// flow carries datagrams between one port of the guest and one far away.
//
// The netstack calls as datagrams of the guest come, so only those of the host
// need a goroutine; and it borrows a buffer only when there is one to read.
type flow struct {
	queue waiter.Queue
	entry waiter.Entry
	guest tcpip.Endpoint
	last  atomic.Int64 // UNIX time of the last datagram, in nanoseconds
}

func (f *flow) touch() { f.last.Store(time.Now().UnixNano()) }

// left says how long the flow has yet to live.
func (f *flow) left() time.Duration {
	return flowIdle - time.Duration(time.Now().UnixNano()-f.last.Load())
}

// pass has send called for each datagram of the guest, those that wait first.
func (f *flow) pass(send func(p []byte)) {
	drain := func(waiter.EventMask) {
		b := chunks.Get().(*[chunkSize]byte)
		defer chunks.Put(b)
		for {
			w := tcpip.SliceWriter(b[:])
			r, err := f.guest.Read(&w, tcpip.ReadOptions{})
			if err != nil {
				return
			}
			f.touch()
			send(b[:r.Count])
		}
	}
	f.touch()
	f.entry = waiter.NewFunctionEntry(waiter.ReadableEvents, drain)
	f.queue.EventRegister(&f.entry)
	drain(waiter.ReadableEvents)
}

func (f *flow) close() {
	f.queue.EventUnregister(&f.entry)
	f.guest.Close()
}

// give sends a datagram to the guest. It may be lost, as datagrams are.
func (f *flow) give(p []byte) {
	f.touch()
	r := payload{p}
	_, _ = f.guest.Write(&r, tcpip.WriteOptions{})
}

// payload is a tcpip.Payloader for one datagram.
type payload struct{ p []byte }

func (p *payload) Len() int { return len(p.p) }

func (p *payload) Read(b []byte) (int, error) {
	n := copy(b, p.p)
	p.p = p.p[n:]
	return n, nil
}

// flow begins a flow that the guest asks for, and says whether it could.
func (n *Net) flow(r *udp.ForwarderRequest) bool {
	id := r.ID()
	to, ok := n.lan.target(netip.AddrFrom4(id.LocalAddress.As4()))
	who := netip.AddrFrom4(id.RemoteAddress.As4())
	if !ok || !n.flows.take(who) {
		return ok
	}
	started := false
	defer func() {
		if !started {
			n.flows.give(who)
		}
	}()
	host, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, id.LocalPort)))
	if err != nil {
		n.log.Debug("user network: datagram", "error", err)
		return false
	}
	f := &flow{}
	var e tcpip.Error
	if f.guest, e = r.CreateEndpoint(&f.queue); e != nil {
		host.Close()
		return false
	}
	if n.keep(host) != nil {
		f.guest.Close()
		return false
	}
	f.pass(func(p []byte) { _, _ = host.Write(p) })
	started = n.spawn(func() {
		defer n.flows.give(who)
		defer f.close()
		defer n.drop(host)
		for {
			_ = host.SetReadDeadline(time.Now().Add(f.left()))
			if err := receive(host, f.give); err == nil {
				continue
			} else if !errors.Is(err, os.ErrDeadlineExceeded) || f.left() <= 0 {
				return
			}
		}
	})
	if !started {
		f.close()
		n.drop(host)
	}
	return true
}

// receive waits for a datagram on a connected socket and passes it on.
func receive(c *net.UDPConn, pass func(p []byte)) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var fault error
	err = raw.Read(func(fd uintptr) bool {
		b := chunks.Get().(*[chunkSize]byte)
		defer chunks.Put(b)
		m, e := unix.Read(int(fd), b[:])
		switch {
		case e == nil:
			pass(b[:m])
		case errors.Is(e, unix.EAGAIN):
			return false
		case !errors.Is(e, unix.EINTR):
			fault = e
		}
		return true
	})
	if err != nil {
		return err
	}
	return fault
}

// listenUDP carries datagrams to a port of the host into the guest.
func (n *Net) listenUDP(f Forward) error {
	at, err := netip.ParseAddrPort(f.hostAddr())
	if err != nil {
		return err
	}
	host, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return err
	}
	if err := n.keep(host); err != nil {
		return err
	}
	n.spawn(func() {
		flows := map[netip.AddrPort]*flow{}
		defer func() {
			for _, f := range flows {
				n.endClient(f)
			}
		}()
		var b [chunkSize]byte
		for {
			_ = host.SetReadDeadline(time.Now().Add(flowIdle / 4))
			m, from, err := host.ReadFromUDPAddrPort(b[:])
			switch {
			case err == nil:
				c := flows[from]
				if c == nil {
					if c = n.client(host, from, f.GuestPort); c == nil {
						continue
					}
					flows[from] = c
				}
				c.give(b[:m])
			case n.ctx.Err() != nil || errors.Is(err, net.ErrClosed):
				return
			}
			for from, c := range flows {
				if c.left() <= 0 {
					delete(flows, from)
					n.endClient(c)
				}
			}
		}
	})
	return nil
}

// client begins a flow into the guest, nil if it cannot.
func (n *Net) client(host *net.UDPConn, from netip.AddrPort, port uint16) *flow {
	if !n.flows.take(Guest) {
		return nil
	}
	f := &flow{}
	var e tcpip.Error
	if f.guest, e = n.stack.NewEndpoint(udp.ProtocolNumber, ipv4.ProtocolNumber, &f.queue); e != nil {
		n.flows.give(Guest)
		return nil
	}
	if e := f.guest.Connect(full(Guest, port)); e != nil {
		f.guest.Close()
		n.flows.give(Guest)
		return nil
	}
	f.pass(func(p []byte) { _, _ = host.WriteToUDPAddrPort(p, from) })
	return f
}

func (n *Net) endClient(f *flow) {
	f.close()
	n.flows.give(Guest)
}
