// Package lan makes a network that guests need not configure out of a segment: each
// has an address of its own, and finds the others by name.
//
// A Lan has a station on the segment, which is the TCP/IP of net/user as one for many
// guests: a DHCP server that gives every guest the address that was chosen for it, a
// name server, and, if it is to be the way out, a gateway. Which address a guest has
// depends on the order in which guests come; who leaves and comes back has the same
// one. A guest is known by its name and by its MAC, which the segment's guard keeps
// it from changing, so that no guest can ask in another's place.
//
// A [Cable] joins a segment and something else that takes frames, such as a tap
// interface of the host.
//
// Not done here: IPv6 beyond what guests do among themselves (link-local addresses),
// names for the second and further devices of one guest on one segment, learning
// names from what guests say; who may send from which address (net/segment).
package lan

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"

	"disco/net/segment"
	"disco/net/user"
)

// Domain is where the segments' own domains are: guest b on segment lan0 is b, and
// b.lan0.disco.internal.
const Domain = "disco.internal"

// ErrTaken says that another has the MAC.
var ErrTaken = errors.New("another guest has the same MAC")

// maxKept bounds the addresses that are kept for guests that have gone.
const maxKept = 4096

// Config says what network to make of a segment.
type Config struct {
	Segment *segment.Segment
	Name    string       // of the segment: a part of guests' full names
	Network netip.Prefix // of IPv4, /30 or larger; its first address is the station's
	Router  netip.Addr   // another way out that guests are told of; the zero Addr for none
	Outside bool         // the station is a way out: guests reach what this process can
	Log     *slog.Logger // nil for slog's default
}

// Lan is the station of a segment, and knows who is on it. Its methods may be called
// at any time.
type Lan struct {
	network netip.Prefix
	station netip.Addr
	router  netip.Addr

	net   *user.Net
	cable *Cable

	mu     sync.Mutex
	guests map[[6]byte]*Guest
	names  map[string]*Guest     // in lower case
	used   map[netip.Addr]*Guest // nil for one that is kept
	kept   map[place]netip.Addr
}

// place is what a guest has the same address at again.
type place struct {
	name   string // in lower case
	device int
}

// Guest is one network device of a guest.
type Guest struct {
	Name   string  // of the guest; empty for one that has none
	Device int     // which of the guest's network devices it is, from 0: the first has the name
	MAC    [6]byte // that no other has

	address netip.Addr
}

// New puts a station on a segment. The caller must Close the Lan, and before the
// segment.
func New(c Config) (*Lan, error) {
	l := &Lan{
		network: c.Network.Masked(), station: c.Network.Masked().Addr().Next(), router: c.Router,
		guests: map[[6]byte]*Guest{}, names: map[string]*Guest{}, used: map[netip.Addr]*Guest{}, kept: map[place]netip.Addr{},
	}
	mac := MAC("station", c.Name, c.Network.String())
	var err error
	l.net, err = user.New(user.Config{Log: c.Log, Lan: &user.Lan{
		Network: l.network, Address: l.station, MAC: mac, MTU: c.Segment.MTU(), Router: c.Router,
		Domain: strings.ToLower(c.Name) + "." + Domain, Outside: c.Outside, Guests: guests{l},
	}})
	if err != nil {
		return nil, err
	}
	l.cable, err = Plug(c.Segment, segment.StationConfig{Name: "lan", MAC: mac}, l.net)
	if err != nil {
		return nil, errors.Join(err, l.net.Close())
	}
	l.cable.station.Lease(l.station)
	return l, nil
}

// Close takes the station off the segment.
func (l *Lan) Close() error { return errors.Join(l.cable.Close(), l.net.Close()) }

// Address is the station's.
func (l *Lan) Address() netip.Addr { return l.station }

// Add gives a guest an address, and its name if no other has that. It fails when
// there is no address left, or when another has the MAC.
func (l *Lan) Add(g Guest) (netip.Addr, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.guests[g.MAC] != nil {
		return netip.Addr{}, fmt.Errorf("MAC %s of %s: %w", net.HardwareAddr(g.MAC[:]), l.guests[g.MAC].called(), ErrTaken)
	}
	name := strings.ToLower(g.Name)
	at := place{name, g.Device}
	a, ok := l.kept[at]
	if !ok || l.used[a] != nil {
		if a, ok = l.free(); !ok {
			return netip.Addr{}, fmt.Errorf("the network %s has no address left; give the segment a larger one", l.network)
		}
		// Of two guests of a name the first is who comes back.
		if _, known := l.kept[at]; !known && name != "" && len(l.kept) < maxKept {
			l.kept[at] = a
		}
	}
	g.address = a
	l.guests[g.MAC], l.used[a] = &g, &g
	if g.Device == 0 && name != "" && l.names[name] == nil {
		l.names[name] = &g
	}
	return a, nil
}

// free is the first address that nobody has or is kept for; then the first that is
// kept. l.mu is held.
func (l *Lan) free() (netip.Addr, bool) {
	var kept netip.Addr
	for a := l.station.Next(); l.network.Contains(a.Next()); a = a.Next() { // the last is for broadcasts
		g, known := l.used[a]
		switch {
		case a == l.router || g != nil:
		case !known:
			return a, true
		case !kept.IsValid():
			kept = a
		}
	}
	if !kept.IsValid() {
		return kept, false
	}
	for at, a := range l.kept {
		if a == kept {
			delete(l.kept, at)
		}
	}
	return kept, true
}

// Remove forgets the guest with a MAC. Its address is kept for its return.
func (l *Lan) Remove(mac [6]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.guests[mac]
	if g == nil {
		return
	}
	delete(l.guests, mac)
	if name := strings.ToLower(g.Name); l.names[name] == g {
		delete(l.names, name)
	}
	l.used[g.address] = nil
	if l.kept[place{strings.ToLower(g.Name), g.Device}] != g.address {
		delete(l.used, g.address)
	}
}

func (g *Guest) called() string {
	if g.Name == "" {
		return "a guest without a name"
	}
	return "guest " + g.Name
}

// guests is a Lan as its netstack knows it.
type guests struct{ *Lan }

func (l guests) Lease(mac [6]byte) (user.Lease, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.guests[mac]
	if g == nil {
		return user.Lease{}, false
	}
	return user.Lease{Address: g.address, Name: g.Name}, true
}

func (l guests) Address(name string) (netip.Addr, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if g := l.names[name]; g != nil {
		return g.address, true
	}
	return netip.Addr{}, false
}

func (l guests) Name(a netip.Addr) (string, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if g := l.used[a]; g != nil && g.Name != "" {
		return g.Name, true
	}
	return "", false
}

// MAC is an address for a device, always the same one for the same words: locally
// administered, and of no group.
func MAC(words ...string) [6]byte {
	h := sha256.New()
	for _, w := range words {
		h.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(w))))
		h.Write([]byte(w))
	}
	mac := [6]byte(h.Sum(nil))
	mac[0] = mac[0]&^1 | 2
	return mac
}
