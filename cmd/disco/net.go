package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"disco/vmm"
)

// parseNet reads user[,forward=F]…, tap=NAME[,bridge=BR], segment=NAME[,OPTION]… or
// none. For none, n is nil.
func parseNet(s string) (n *vmm.Net, err error) {
	kind, options, more := strings.Cut(s, ",")
	name, value, _ := strings.Cut(kind, "=")
	switch {
	case kind == "none":
		if more {
			return nil, fmt.Errorf("none takes no options, and %q is given", options)
		}
		return nil, nil
	case kind == "user":
		n = &vmm.Net{Kind: vmm.NetUser}
	case name == "tap" && value != "":
		n = &vmm.Net{Kind: vmm.NetTap, Tap: value}
	case name == "segment" && value != "":
		n = &vmm.Net{Kind: vmm.NetSegment, Segment: value}
	default:
		return nil, errors.New("not a network; write user, user,forward=tcp:8080:80, tap=NAME, tap=NAME,bridge=BRIDGE, segment=NAME or none")
	}
	if !more {
		return n, nil
	}
	given := map[string]bool{}
	for option := range strings.SplitSeq(options, ",") {
		name, value, _ := strings.Cut(option, "=")
		switch {
		case n.Kind == vmm.NetUser && name == "forward":
			f, err := parseForward(value)
			if err != nil {
				return nil, err
			}
			n.Forwards = append(n.Forwards, f)
		case n.Kind == vmm.NetTap && name == "bridge" && value != "" && n.Bridge == "":
			n.Bridge = value
		case n.Kind == vmm.NetSegment:
			if given[name] {
				return nil, fmt.Errorf("%s is given twice", name)
			}
			given[name] = true
			if err := segmentNetOption(n, option); err != nil {
				return nil, err
			}
		default:
			return nil, fmt.Errorf("%s does not take %q", kind, option)
		}
	}
	return n, nil
}

// parseForward reads tcp:[ADDRESS:]HOSTPORT:GUESTPORT, or the same with udp. An
// IPv6 address stands in brackets.
func parseForward(s string) (vmm.Forward, error) {
	bad := func(format string, args ...any) (vmm.Forward, error) {
		return vmm.Forward{}, fmt.Errorf("forward %q: %s; write tcp:8080:80, or tcp:0.0.0.0:8080:80", s, fmt.Sprintf(format, args...))
	}
	proto, rest, _ := strings.Cut(s, ":")
	if proto != "tcp" && proto != "udp" {
		return bad("it begins with neither tcp: nor udp:")
	}
	i := strings.LastIndexByte(rest, ':')
	if i < 0 {
		return bad("it has one port, not two")
	}
	host, guest := rest[:i], rest[i+1:]
	f := vmm.Forward{Proto: proto}
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		text := host[:i]
		if inner, ok := strings.CutPrefix(text, "["); ok {
			text, _ = strings.CutSuffix(inner, "]")
		}
		addr, err := netip.ParseAddr(text)
		if err != nil || addr.Zone() != "" {
			return bad("%q is not an IP address", host[:i])
		}
		f.HostAddr, host = addr.String(), host[i+1:]
	}
	for _, p := range []struct {
		text string
		port *uint16
	}{{host, &f.HostPort}, {guest, &f.GuestPort}} {
		n, err := strconv.ParseUint(p.text, 10, 16)
		if err != nil || n == 0 {
			return bad("%q is not a port from 1 to 65535", p.text)
		}
		*p.port = uint16(n)
	}
	return f, nil
}

// formatNet is what parseNet reads.
func formatNet(n vmm.Net) string {
	switch n.Kind {
	case vmm.NetTap:
		s := "tap=" + n.Tap
		if n.Bridge != "" {
			s += ",bridge=" + n.Bridge
		}
		return s
	case vmm.NetSegment:
		return formatSegmentNet(&n)
	}
	s := "user"
	for _, f := range n.Forwards {
		s += ",forward=" + f.String()
	}
	return s
}
