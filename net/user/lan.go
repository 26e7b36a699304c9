package user

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// Lan is a network of several guests, of which a Net is one station.
type Lan struct {
	Network netip.Prefix // of IPv4, at most /30
	Address netip.Addr   // the station's, in it: guests' DHCP and name server, and their gateway with Outside
	MAC     [6]byte      // the station's
	MTU     int          // that guests are told, of 576 bytes or more
	Router  netip.Addr   // that guests are told in place of Address; the zero Addr for none
	Domain  string       // in which the guests' names are, such as lan.example; may be empty
	Outside bool         // guests reach what this process can, as from a network of one guest
	Guests  Guests

	names   netip.Addr // the name server, if it is not Address
	several bool       // it has guests that are told apart
}

// Guests knows who is on a Lan. Its methods are called from several goroutines.
type Guests interface {
	// Lease is the guest with a MAC; ok is false if that has no address here.
	Lease(mac [6]byte) (l Lease, ok bool)
	// Address is that of the guest of a name, in lower case and without the Lan's
	// domain.
	Address(name string) (a netip.Addr, ok bool)
	// Name is that of the guest with an address.
	Name(a netip.Addr) (name string, ok bool)
}

// Lease is what a guest is told that it is.
type Lease struct {
	Address netip.Addr
	Name    string // its host name; empty for none
}

// one is the network of one guest.
var one = Lan{
	Network: Network, Address: Gateway, names: DNS, MTU: MTU, Outside: true, Guests: single{},
	MAC: [6]byte{0x52, 0x55, 10, 0, 2, 2},
}

// single has the one guest, whatever its MAC is.
type single struct{}

func (single) Lease([6]byte) (Lease, bool)       { return Lease{Address: Guest}, true }
func (single) Address(string) (netip.Addr, bool) { return netip.Addr{}, false }
func (single) Name(netip.Addr) (string, bool)    { return "", false }

// check finds what is wrong with l, and fills in the rest.
func (l *Lan) check() error {
	switch {
	case !l.Network.IsValid() || !l.Network.Addr().Is4() || l.Network.Bits() > 30:
		return fmt.Errorf("%s is no IPv4 network with room for guests", l.Network)
	case !l.Network.Contains(l.Address):
		return fmt.Errorf("address %s is not in the network %s", l.Address, l.Network)
	case l.Router.IsValid() && !l.Network.Contains(l.Router):
		return fmt.Errorf("router %s is not in the network %s", l.Router, l.Network)
	case l.MTU < 576 || l.MTU > 65535:
		return fmt.Errorf("MTU %d: it is 576 to 65535", l.MTU)
	case l.MAC[0]&1 != 0 || l.MAC == [6]byte{}:
		return fmt.Errorf("%x is no station's MAC", l.MAC)
	case l.Guests == nil:
		return errors.New("nobody knows its guests")
	}
	l.names, l.several = l.Address, true
	return nil
}

// own are the addresses of the station.
func (l *Lan) own() []netip.Addr {
	if l.names == l.Address {
		return []netip.Addr{l.Address}
	}
	return []netip.Addr{l.Address, l.names}
}

// is says whether four bytes are an address of the station.
func (l *Lan) is(b []byte) bool {
	a := netip.AddrFrom4([4]byte(b))
	return a == l.Address || a == l.names
}

// speaksAs says whether who has a MAC may send from four bytes' address: a guest only
// from its own, and who is no guest of the Lan, such as one behind an uplink, from any.
func (l *Lan) speaksAs(mac [6]byte, from []byte) bool {
	if !l.several {
		return true
	}
	lease, ok := l.Guests.Lease(mac)
	return !ok || lease.Address.As4() == [4]byte(from)
}

// router is the gateway that guests are told of, the zero Addr for none.
func (l *Lan) router() netip.Addr {
	if !l.Router.IsValid() && l.Outside {
		return l.Address
	}
	return l.Router
}

// resolve answers a question about what is on the Lan; ours is false if it is about
// something else. A name that has no such record has none.
func (l *Lan) resolve(q *dnsmessage.Question) (r dnsmessage.ResourceBody, ours bool) {
	name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	if reverse, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		a, ok := forwards(reverse)
		if !ok || !l.Network.Contains(a) {
			return nil, false
		}
		return l.pointer(q, a), true
	}
	a, ok := l.find(name)
	if !ok {
		return nil, false
	}
	if q.Type != dnsmessage.TypeA || q.Class != dnsmessage.ClassINET {
		return nil, true
	}
	return &dnsmessage.AResource{A: a.As4()}, true
}

// find is the address of a name, in lower case.
func (l *Lan) find(name string) (netip.Addr, bool) {
	if l.Outside && name == HostName {
		return l.Address, true
	}
	if a, ok := l.Guests.Address(name); ok {
		return a, true
	}
	if short, ok := strings.CutSuffix(name, "."+strings.ToLower(l.Domain)); ok && l.Domain != "" {
		return l.Guests.Address(short)
	}
	return netip.Addr{}, false
}

// pointer is the name of an address, nil if it has none.
func (l *Lan) pointer(q *dnsmessage.Question, a netip.Addr) dnsmessage.ResourceBody {
	name, ok := l.Guests.Name(a)
	if !ok || q.Type != dnsmessage.TypePTR {
		return nil
	}
	if l.Domain != "" {
		name += "." + l.Domain
	}
	full, err := dnsmessage.NewName(name + ".")
	if err != nil {
		return nil
	}
	return &dnsmessage.PTRResource{PTR: full}
}

// forwards is the address that is written backwards in a name of in-addr.arpa
// (RFC 1035 §3.5).
func forwards(s string) (netip.Addr, bool) {
	p := strings.Split(s, ".")
	if len(p) != 4 {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(p[3] + "." + p[2] + "." + p[1] + "." + p[0])
	return a, err == nil
}
