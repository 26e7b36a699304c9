package user

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
)

const (
	dnsPort = 53
	// dnsTimeout is how long one of the host's name servers has to answer: all
	// of them have, before the guest's resolver asks again.
	dnsTimeout = 1500 * time.Millisecond
	// maxServers of /etc/resolv.conf count (resolv.conf(5)).
	maxServers = 3
	// maxQuery is the longest query by datagram, in bytes.
	maxQuery = 4096
	// dnsIdle is how long a TCP connection may lie still.
	dnsIdle = 10 * time.Second
)

// serveDNS answers name queries: those for the host itself and for guests; others,
// where there is a way out, by asking the host's name servers, as they come, so that
// every kind of record passes.
func (n *Net) serveDNS() error {
	at := full(n.lan.names, dnsPort)
	datagrams, err := gonet.DialUDP(n.stack, &at, nil, ipv4.ProtocolNumber)
	if err != nil {
		return err
	}
	if err := n.keep(datagrams); err != nil {
		return err
	}
	listener, err := gonet.ListenTCP(n.stack, at, ipv4.ProtocolNumber)
	if err != nil {
		return err
	}
	if err := n.keep(listener); err != nil {
		return err
	}
	n.spawn(func() {
		var b [maxQuery]byte
		for {
			m, from, err := datagrams.ReadFrom(b[:])
			if err != nil {
				return
			}
			query := bytes.Clone(b[:m])
			n.query(from, func() {
				if a := n.answer(n.ctx, "udp", query); a != nil {
					_, _ = datagrams.WriteTo(a, from)
				}
			})
		}
	})
	n.spawn(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			if !n.query(c.RemoteAddr(), func() { n.converse(c) }) {
				c.Close()
			}
		}
	})
	return nil
}

// query runs f in a goroutine for who asks, if not too many do.
func (n *Net) query(from net.Addr, f func()) bool {
	var who netip.Addr
	if a, err := netip.ParseAddrPort(from.String()); err == nil {
		who = a.Addr().Unmap()
	}
	if !n.queries.take(who) {
		return false
	}
	if n.spawn(func() {
		defer n.queries.give(who)
		f()
	}) {
		return true
	}
	n.queries.give(who)
	return false
}

// converse answers the queries of one TCP connection (RFC 1035 §4.2.2).
func (n *Net) converse(c net.Conn) {
	if n.keep(c) != nil {
		return
	}
	defer n.drop(c)
	for {
		_ = c.SetDeadline(time.Now().Add(dnsIdle))
		q, err := readMessage(c)
		if err != nil {
			return
		}
		a := n.answer(n.ctx, "tcp", q)
		if a == nil || writeMessage(c, a) != nil {
			return
		}
	}
}

// readMessage reads a message after its length.
func readMessage(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	p := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, p)
	return p, err
}

func writeMessage(w io.Writer, p []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(p))), p...))
	return err
}

// answer is the answer to a query, nil if it is none.
func (n *Net) answer(ctx context.Context, network string, query []byte) []byte {
	var p dnsmessage.Parser
	head, err := p.Start(query)
	if err != nil || head.Response {
		return nil
	}
	question, err := p.Question()
	if err != nil {
		return reply(head, nil, dnsmessage.RCodeFormatError, nil)
	}
	if resource, ours := n.lan.resolve(&question); ours {
		if resource == nil && question.Type == dnsmessage.TypePTR {
			return reply(head, &question, dnsmessage.RCodeNameError, nil)
		}
		return reply(head, &question, dnsmessage.RCodeSuccess, resource)
	}
	if !n.lan.Outside {
		// Not "no such name": a guest may have another network, whose server knows.
		return reply(head, &question, dnsmessage.RCodeRefused, nil)
	}
	for _, server := range n.servers() {
		a, err := ask(ctx, network, server, query)
		if err == nil {
			return a
		}
		n.log.Debug("user network: name server", "server", server, "error", err)
	}
	return reply(head, &question, dnsmessage.RCodeServerFailure, nil)
}

// reply makes an answer of our own.
func reply(query dnsmessage.Header, q *dnsmessage.Question, code dnsmessage.RCode, a dnsmessage.ResourceBody) []byte {
	m := dnsmessage.Message{Header: dnsmessage.Header{
		ID: query.ID, Response: true, OpCode: query.OpCode,
		RecursionDesired: query.RecursionDesired, RecursionAvailable: true, RCode: code,
	}}
	if q != nil {
		m.Questions = []dnsmessage.Question{*q}
	}
	if a != nil {
		h := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: dnsmessage.ClassINET, TTL: 60}
		m.Answers = []dnsmessage.Resource{{Header: h, Body: a}}
	}
	p, err := m.Pack()
	if err != nil {
		return nil
	}
	return p
}

// nameServers reads the host's name servers each time anew, as they change when
// a laptop moves. None is no error.
func nameServers(path string) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	var servers []string
	for s := bufio.NewScanner(f); s.Scan() && len(servers) < maxServers; {
		words := strings.Fields(s.Text())
		if len(words) < 2 || words[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(words[1]); err == nil {
			servers = append(servers, netip.AddrPortFrom(a, dnsPort).String())
		}
	}
	return servers
}

// ask asks one name server.
func ask(ctx context.Context, network, server string, query []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, dnsTimeout)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	// The end of the context ends what waits.
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()

	if network == "tcp" {
		if err := writeMessage(c, query); err != nil {
			return nil, err
		}
		a, err := readMessage(c)
		if err == nil && !answers(a, query) {
			err = errors.New("the answer is to another question")
		}
		return a, err
	}
	if _, err := c.Write(query); err != nil {
		return nil, err
	}
	b := chunks.Get().(*[chunkSize]byte)
	defer chunks.Put(b)
	for {
		m, err := c.Read(b[:])
		if err != nil {
			return nil, err
		}
		if answers(b[:m], query) {
			return bytes.Clone(b[:m]), nil
		}
	}
}

// answers says whether a is the answer to a query: the ID is the same.
func answers(a, query []byte) bool {
	return len(a) >= 12 && a[2]&0x80 != 0 && bytes.Equal(a[:2], query[:2])
}
