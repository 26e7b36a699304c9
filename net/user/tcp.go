package user

import (
	"context"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// maxDials bounds the connections that the host is asked for at once.
	maxDials    = 64
	dialTimeout = 20 * time.Second
)

// connect carries a connection that the guest asks for. It runs in a goroutine
// of its own.
func (n *Net) connect(r *tcp.ForwarderRequest) {
	if !n.enter() {
		r.Complete(true)
		return
	}
	defer n.work.Done()
	id := r.ID()
	to, ok := n.lan.target(netip.AddrFrom4(id.LocalAddress.As4()))
	who := netip.AddrFrom4(id.RemoteAddress.As4())
	if !ok || !n.conns.take(who) {
		r.Complete(true)
		return
	}
	defer n.conns.give(who)

	d := net.Dialer{Timeout: dialTimeout}
	host, err := d.DialContext(n.ctx, "tcp", netip.AddrPortFrom(to, id.LocalPort).String())
	if err != nil {
		n.log.Debug("user network: connection refused to the guest", "error", err)
		r.Complete(true)
		return
	}
	var queue waiter.Queue
	end, e := r.CreateEndpoint(&queue)
	r.Complete(e != nil)
	if e != nil {
		host.Close()
		return
	}
	// A guest that is gone without a word is noticed so.
	end.SocketOptions().SetKeepAlive(true)
	n.pipe(gonet.NewTCPConn(&queue, end), host.(*net.TCPConn))
}

// listenTCP carries connections to a port of the host into the guest.
func (n *Net) listenTCP(f Forward) error {
	l, err := net.Listen("tcp", f.hostAddr())
	if err != nil {
		return err
	}
	if err := n.keep(l); err != nil {
		return err
	}
	n.spawn(func() {
		for {
			host, err := l.Accept()
			if err != nil {
				if n.ctx.Err() != nil {
					return
				}
				// Out of files, most likely; it passes.
				n.log.Debug("user network: accept", "forward", f.String(), "error", err)
				select {
				case <-time.After(100 * time.Millisecond):
				case <-n.ctx.Done():
					return
				}
				continue
			}
			n.accepted(host.(*net.TCPConn), f.GuestPort)
		}
	})
	return nil
}

func (n *Net) accepted(host *net.TCPConn, port uint16) {
	refuse := func() {
		_ = host.SetLinger(0) // a reset says more than an end
		host.Close()
	}
	if !n.conns.take(Guest) {
		refuse()
		return
	}
	started := n.spawn(func() {
		defer n.conns.give(Guest)
		ctx, cancel := context.WithTimeout(n.ctx, dialTimeout)
		guest, err := gonet.DialContextTCP(ctx, n.stack, full(Guest, port), ipv4.ProtocolNumber)
		cancel()
		if err != nil {
			n.log.Debug("user network: the guest takes no connection", "port", strconv.Itoa(int(port)), "error", err)
			refuse()
			return
		}
		n.pipe(guest, host)
	})
	if !started {
		n.conns.give(Guest)
		refuse()
	}
}

// pipe carries bytes between two connections until both have ended or one has
// failed, and closes both.
func (n *Net) pipe(guest *gonet.TCPConn, host *net.TCPConn) {
	defer guest.Close()
	defer host.Close()
	if n.keep(guest) != nil {
		return
	}
	defer n.drop(guest)
	if n.keep(host) != nil {
		return
	}
	defer n.drop(host)

	done := make(chan struct{})
	go func() {
		defer close(done)
		carry(host, guest)
	}()
	carry(guest, host)
	<-done
}

// end is one side of a pipe.
type end interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// carry copies from one end to the other, and passes the end of the stream on.
// A failure closes both, so that the other direction ends too.
func carry(to, from end) {
	b := chunks.Get().(*[chunkSize]byte)
	defer chunks.Put(b)
	for {
		m, err := from.Read(b[:])
		if m > 0 {
			if _, e := to.Write(b[:m]); e != nil {
				break
			}
		}
		if err == io.EOF {
			if to.CloseWrite() == nil {
				return
			}
			break
		}
		if err != nil {
			break
		}
	}
	to.Close()
	from.Close()
}

// chunkSize is the longest datagram, and nearly the longest segment.
const chunkSize = 64 << 10

var chunks = sync.Pool{New: func() any { return new([chunkSize]byte) }}
