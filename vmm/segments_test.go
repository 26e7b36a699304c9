package vmm

import (
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"disco/net/segment"
)

func newSegments(t *testing.T, declared ...Segment) *segments {
	t.Helper()
	if err := ValidateSegments(declared); err != nil {
		t.Fatal(err)
	}
	s := &segments{log: slog.New(slog.DiscardHandler)}
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	if err := s.declare(declared); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestSegments: segments are made when they are declared or named; a guest has the
// same MAC and address whenever it comes.
func TestSegments(t *testing.T) {
	s := newSegments(t,
		Segment{Name: "first"},
		Segment{Name: "wide", MTU: 9000, Subnet: netip.MustParsePrefix("10.65.0.0/16"), Router: netip.MustParseAddr("10.65.0.2"), Uplink: UplinkUser},
		Segment{Name: "second"},
	)
	connect := func(n Net, device int, guest string) *port {
		t.Helper()
		n.Kind = NetSegment
		p, err := s.connect(&n, device, &Config{Name: guest, CPUs: 2}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	a, b := connect(Net{Segment: "wide"}, 0, "a"), connect(Net{Segment: "wide", MTU: 9000}, 0, "b")
	again := connect(Net{Segment: "wide"}, 1, "a")
	named := connect(Net{Segment: "named", MTU: 1500}, 0, "a")
	if a.mac == b.mac || a.mac == again.mac || a.mac == named.mac || a.mac[0]&3 != 2 {
		t.Errorf("MACs % x, % x, % x, % x", a.mac, b.mac, again.mac, named.mac)
	}
	// A twin of a guest's has a MAC of its own.
	twin := connect(Net{Segment: "wide"}, 0, "a")
	if twin.mac == a.mac {
		t.Errorf("two guests have % x", a.mac)
	}
	mac := a.mac
	for _, p := range []*port{twin, a} {
		if err := p.close(); err != nil {
			t.Error(err)
		}
	}
	if a = connect(Net{Segment: "wide"}, 0, "A"); a.mac != mac {
		t.Errorf("a comes back with % x, and had % x", a.mac, mac)
	}
	var subnets []string
	for _, n := range s.all {
		subnets = append(subnets, n.Name+" "+n.Subnet.String())
	}
	if got := strings.Join(subnets, ", "); got != "first 10.64.0.0/16, wide 10.65.0.0/16, second 10.66.0.0/16, named 10.67.0.0/16" {
		t.Errorf("the subnets are %s", got)
	}
	if n := s.find("first"); n.MTU != segment.DefaultMTU {
		t.Errorf("MTU %d", n.MTU)
	}
	for _, c := range []struct {
		n    Net
		want string
	}{
		{Net{Segment: "wide", MTU: 1500}, "net segment wide: its MTU is 9000, and 1500 is asked for"},
		{Net{Segment: "wide", MAC: b.mac}, "guest b: another guest has the same MAC"},
	} {
		if _, err := s.connect(&c.n, 0, &Config{Name: "c", CPUs: 1}, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.n, err, c.want)
		} else if _, host := errors.AsType[*HostError](err); host {
			t.Errorf("%v is called the host's", err)
		}
	}
	for _, p := range []*port{a, b, again, named} {
		if err := p.close(); err != nil {
			t.Error(err)
		}
	}
}

// TestNoSubnet: subnets do not overlap, and when there are no more that is said.
func TestNoSubnet(t *testing.T) {
	s := newSegments(t, Segment{Name: "a", Subnet: netip.MustParsePrefix("10.64.0.0/10")}, Segment{Name: "b", Subnet: netip.MustParsePrefix("10.128.0.0/9")})
	_, err := s.connect(&Net{Kind: NetSegment, Segment: "c"}, 0, &Config{Name: "x", CPUs: 1}, nil)
	if _, ok := errors.AsType[*HostError](err); !ok || err.Error() != "net segment c: no subnet is free for it; give it one" {
		t.Errorf("%v", err)
	}
}

// TestManySegments: there is an end to what can be named.
func TestManySegments(t *testing.T) {
	var all []Segment
	for i := range maxSegments {
		all = append(all, Segment{Name: "s" + strings.Repeat("x", i%20) + string(rune('a'+i/20))})
	}
	if err := ValidateSegments(all); err != nil {
		t.Error(err)
	}
	if err := ValidateSegments(append(all, Segment{Name: "more"})); err == nil || !strings.Contains(err.Error(), "65 segments: there can be 64") {
		t.Errorf("%v", err)
	}
}

func TestValidateSegments(t *testing.T) {
	lan := func(change func(s *Segment)) []Segment {
		s := Segment{Name: "lan0", Subnet: netip.MustParsePrefix("10.1.0.0/24")}
		change(&s)
		return []Segment{s}
	}
	for want, all := range map[string][]Segment{
		`segment "": a segment's name`:                          {{}},
		`segment "a_b": a segment's name`:                       {{Name: "a_b"}},
		`segment "-": a segment's name`:                         {{Name: "-"}},
		"segment lan0: MTU 1000: it can be 1280 to 65535":       lan(func(s *Segment) { s.MTU = 1000 }),
		"segment lan0: MTU 70000":                               lan(func(s *Segment) { s.MTU = 70000 }),
		"segment lan0: subnet fd00::/64: it must be of IPv4":    lan(func(s *Segment) { s.Subnet = netip.MustParsePrefix("fd00::/64") }),
		"segment lan0: subnet 10.1.0.0/31: it must be":          lan(func(s *Segment) { s.Subnet = netip.MustParsePrefix("10.1.0.0/31") }),
		"segment lan0: subnet 10.1.0.1/24: it begins at":        lan(func(s *Segment) { s.Subnet = netip.MustParsePrefix("10.1.0.1/24") }),
		"segment lan0: subnet 10.0.0.0/16: user networks have":  lan(func(s *Segment) { s.Subnet = netip.MustParsePrefix("10.0.0.0/16") }),
		"segment lan0: only an uplink by a tap":                 lan(func(s *Segment) { s.Tap = "t0" }),
		"net tap: it has no name":                               lan(func(s *Segment) { s.Uplink = UplinkTap }),
		`net bridge "a b": no interface can have this name`:     lan(func(s *Segment) { s.Uplink, s.Tap, s.Bridge = UplinkTap, "t0", "a b" }),
		"segment lan0: uplink 7: there is no such kind":         lan(func(s *Segment) { s.Uplink = 7 }),
		"segment lan0: router 10.1.0.1: it must be":             lan(func(s *Segment) { s.Router = netip.MustParseAddr("10.1.0.1") }),
		"segment lan0: router 10.2.0.9: it must be":             lan(func(s *Segment) { s.Router = netip.MustParseAddr("10.2.0.9") }),
		"segment lan0: it is declared twice":                    {{Name: "lan0"}, {Name: "lan0"}},
		"segment b: its uplink tap t0 is that of segment a":     {{Name: "a", Uplink: UplinkTap, Tap: "t0"}, {Name: "b", Uplink: UplinkTap, Tap: "t0"}},
		"segment b: its subnet 10.1.0.0/24 overlaps with 10.1.": {{Name: "a", Subnet: netip.MustParsePrefix("10.1.0.0/16")}, {Name: "b", Subnet: netip.MustParsePrefix("10.1.0.0/24")}},
	} {
		err := ValidateSegments(all)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%+v: %v, want %q", all, err, want)
		}
	}
}
