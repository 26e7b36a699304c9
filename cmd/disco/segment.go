package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"disco/compose"
	"disco/net/segment"
	"disco/vmm"
)

// segmentForm is what parseSegment reads, for the help text.
const segmentForm = "NAME[,OPTION…]"

const segmentHelp = "a network of the guests of this process, for --net segment=NAME; one that is only named by --net has the defaults. Options: mtu=N, " +
	"the largest IP packet; subnet=ADDRESS/BITS, whose first address is the segment's DHCP and name server (default 10.64.0.0/16 for the first segment, " +
	"10.65.0.0/16 for the next); uplink=user, guests reach what this process can; uplink=tap=NAME, with bridge=BRIDGE, a tap interface of this host is on it " +
	"(needs CAP_NET_ADMIN); rate=SIZE, what its guests may send together in a second, divided by their tickets; router=ADDRESS, guests' way out. Again for the next segment"

// segmentsKey is the key of a file of disco up for segments, and segmentKeys are
// those of each: the options of --segment.
const segmentsKey = "segments"

var segmentKeys = map[string]compose.Kind{
	"mtu": compose.Text, "subnet": compose.Text, "uplink": compose.Text, "bridge": compose.Text, "rate": compose.Text, "router": compose.Text,
}

// segmentOption reads an option of a segment into s.
func segmentOption(s *vmm.Segment, key, value string) (err error) {
	switch key {
	case "mtu":
		s.MTU, err = parseMTU(value)
	case "subnet":
		if s.Subnet, err = netip.ParsePrefix(value); err != nil {
			err = errors.New("not a subnet; write one like 10.64.0.0/16")
		}
	case "uplink":
		kind, name, named := strings.Cut(value, "=")
		switch {
		case value == "user":
			s.Uplink = vmm.UplinkUser
		case kind == "tap" && named:
			s.Uplink, s.Tap = vmm.UplinkTap, name
		case value == "none":
			s.Uplink = vmm.UplinkNone
		default:
			err = errors.New("there are user, tap=NAME and none")
		}
	case "bridge":
		s.Bridge = value
	case "rate":
		s.Rate, err = parseRate(value)
	case "router":
		if s.Router, err = netip.ParseAddr(value); err != nil {
			err = errors.New("not an IP address")
		}
	default:
		err = errors.New("a segment has no such option; there are mtu, subnet, uplink, bridge, rate and router")
	}
	return err
}

func parseRate(s string) (uint64, error) {
	n, err := parseSize(s)
	if err != nil || n == 0 {
		return 0, errors.New("it is a size of 1 byte a second or more, such as 20M; leave it out for no limit")
	}
	return n, nil
}

func parseMTU(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < segment.MinMTU || n > segment.MaxMTU {
		return 0, fmt.Errorf("an MTU is %d to %d", segment.MinMTU, segment.MaxMTU)
	}
	return n, nil
}

// parseSegment reads NAME[,mtu=N][,subnet=PREFIX][,uplink=U][,bridge=B][,rate=SIZE][,router=A].
func parseSegment(text string) (vmm.Segment, error) {
	name, options, more := strings.Cut(text, ",")
	s := vmm.Segment{Name: name}
	if !more {
		return s, nil
	}
	given := map[string]bool{}
	for option := range strings.SplitSeq(options, ",") {
		key, value, _ := strings.Cut(option, "=")
		if given[key] {
			return s, fmt.Errorf("%s is given twice", key)
		}
		given[key] = true
		if err := segmentOption(&s, key, value); err != nil {
			return s, fmt.Errorf("%s: %w", option, err)
		}
	}
	return s, nil
}

// formatSegment is what parseSegment reads.
func formatSegment(s *vmm.Segment) string {
	text := s.Name
	add := func(given bool, words ...string) {
		if given {
			text += "," + strings.Join(words, "")
		}
	}
	add(s.MTU != 0, "mtu=", strconv.Itoa(s.MTU))
	add(s.Subnet.IsValid(), "subnet=", s.Subnet.String())
	add(s.Uplink == vmm.UplinkUser, "uplink=user")
	add(s.Uplink == vmm.UplinkTap, "uplink=tap=", s.Tap)
	add(s.Bridge != "", "bridge=", s.Bridge)
	add(s.Rate != 0, "rate=", strconv.FormatUint(s.Rate, 10))
	add(s.Router.IsValid(), "router=", s.Router.String())
	return text
}

func (r *run) addSegment(text string) error {
	s, err := parseSegment(text)
	if err == nil {
		r.monitor.Segments = append(r.monitor.Segments, s)
	}
	return err
}

// addSegments takes the segments of the file, and says what is wrong with them.
func (u *up) addSegments(sections []compose.Section) []error {
	var problems []error
	add := func(at compose.Pos, err error) {
		problems = append(problems, &compose.Problem{Path: u.file, Pos: at, Err: err})
	}
	for _, section := range sections {
		s := vmm.Segment{Name: section.Name}
		for _, o := range section.Settings {
			if err := segmentOption(&s, o.Key, o.Text); err != nil {
				add(o.Pos, fmt.Errorf("%s %q: %w", o.Key, o.Text, err))
			}
		}
		wrong := wrongSegments(append(u.monitor.Segments, s))
		for _, p := range wrong {
			add(placeIn(&section, p.Error()), p)
		}
		if wrong == nil {
			u.monitor.Segments = append(u.monitor.Segments, s)
		}
	}
	return problems
}

func wrongSegments(all []vmm.Segment) []error {
	if ce, ok := errors.AsType[*vmm.ConfigError](vmm.ValidateSegments(all)); ok {
		return ce.Problems
	}
	return nil
}

// placeIn is where a section says what a problem is about: the setting whose key is
// the first of the problem's words that is one.
func placeIn(s *compose.Section, problem string) compose.Pos {
	for word := range strings.FieldsSeq(problem) {
		word = strings.TrimSuffix(strings.ToLower(word), ":")
		if word == "tap" {
			word = "uplink"
		}
		for _, o := range s.Settings {
			if o.Key == word {
				return o.Pos
			}
		}
	}
	return s.Pos
}

// netOptions are the options of a network of kind segment.
const netOptions = "mac, mtu, map, rate and guard"

// segmentNetOption reads an option of a guest's network on a segment.
func segmentNetOption(n *vmm.Net, option string) (err error) {
	key, value, _ := strings.Cut(option, "=")
	switch key {
	case "mac":
		mac, e := net.ParseMAC(value)
		if e != nil || len(mac) != len(n.MAC) || [6]byte(mac) == [6]byte{} {
			return fmt.Errorf("%s: not a MAC; write one like 02:00:00:00:00:01", option)
		}
		n.MAC = [6]byte(mac)
	case "mtu":
		n.MTU, err = parseMTU(value)
	case "map":
		n.Map, err = parseMap(value)
	case "rate":
		n.Rate, err = parseRate(value)
	case "guard":
		switch value {
		case "on":
			n.Unguarded = false
		case "off":
			n.Unguarded = true
		default:
			err = errors.New("there are on and off")
		}
	default:
		return fmt.Errorf("a segment does not take %q; there are %s", option, netOptions)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", option, err)
	}
	return nil
}

func parseMap(s string) (segment.Mode, error) {
	for _, m := range []segment.Mode{segment.MapAuto, segment.MapAlways, segment.MapNever} {
		if s == m.String() {
			return m, nil
		}
	}
	return 0, errors.New("there are auto, always and never")
}

// formatSegmentNet is what parseNet reads.
func formatSegmentNet(n *vmm.Net) string {
	s := "segment=" + n.Segment
	if n.MAC != [6]byte{} {
		s += ",mac=" + net.HardwareAddr(n.MAC[:]).String()
	}
	if n.MTU != 0 {
		s += ",mtu=" + strconv.Itoa(n.MTU)
	}
	if n.Map != segment.MapAuto {
		s += ",map=" + n.Map.String()
	}
	if n.Rate != 0 {
		s += ",rate=" + formatSize(n.Rate)
	}
	if n.Unguarded {
		s += ",guard=off"
	}
	return s
}

// mtuConflicts are guests that do not agree about the MTU of a segment, or not with
// its declaration.
func (f *fleet) mtuConflicts() []error {
	type said struct {
		mtu int
		by  string
	}
	known := map[string]said{}
	for _, s := range f.monitor.Segments {
		if s.MTU != 0 {
			known[s.Name] = said{s.MTU, "the segment's declaration"}
		}
	}
	var problems []error
	told := map[string]bool{}
	for _, m := range f.members {
		for _, n := range m.run.cfg.Nets {
			if n.Kind != vmm.NetSegment || n.MTU == 0 {
				continue
			}
			before, ok := known[n.Segment]
			if !ok {
				known[n.Segment] = said{n.MTU, "guest " + m.name()}
			}
			if !ok || before.mtu == n.MTU || told[n.Segment] {
				continue
			}
			told[n.Segment] = true
			err := fmt.Errorf("net segment %s: its MTU cannot be both %d, as %s has it, and %d", n.Segment, before.mtu, before.by, n.MTU)
			at := compose.Pos{}
			if m.entry != nil {
				at = m.find(err.Error())
			}
			problems = append(problems, m.problem(at, err))
		}
	}
	return problems
}
