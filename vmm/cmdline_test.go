package vmm

import (
	"strings"
	"testing"

	"disco/net/segment"
)

func TestCmdline(t *testing.T) {
	const own = "console=ttyS0 console=hvc0 8250.nr_uarts=1 panic=-1 reboot=panic_warm"
	for _, c := range []struct {
		name string
		cfg  Config
		root string
		want string
	}{
		{"our own", Config{}, "", own},
		{"added to", Config{Cmdline: "quiet a=b"}, "", own + " quiet a=b"},
		{"a root", Config{Cmdline: "root=/dev/vdb"}, "root=/dev/vda1 ro", own + " root=/dev/vda1 ro root=/dev/vdb"},
		{"replaced", Config{Cmdline: "quiet", CmdlineOnly: true}, "root=/dev/vda1 ro", "quiet"},
		{"replaced by nothing", Config{CmdlineOnly: true}, "", ""},
		{"on a segment", Config{Nets: []Net{{Kind: NetSegment, Segment: "lan0"}}, Cmdline: "quiet"}, "", own + " init_on_alloc=0 quiet"},
		{"on a segment that copies", Config{Nets: []Net{{Kind: NetSegment, Segment: "lan0", Map: segment.MapNever}}}, "", own},
		{"serial", Config{Console: ConsoleSerial}, "", strings.Replace(own, " console=hvc0", "", 1)},
	} {
		if got := c.cfg.cmdline(c.root); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
