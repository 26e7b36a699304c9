package vmm

import "strings"

// cmdline is the kernel command line of a Config.
//
// A panic restarts the machine at once and marks it as a warm restart, in the
// word at warmFlag where x86 firmware looks for it, while every other restart
// is cold: so the monitor tells a panic from a reboot with any stock kernel and
// no help from a module. There is one serial port and nothing to probe for. The
// words for the root, if the image has any, come before what the Config adds, and
// so count less. A guest that others' pages are mapped into does not write zeroes to
// them before it uses them again, which would have each copied: what init_on_alloc
// guards against is a guest that reads what it freed itself.
func (c *Config) cmdline(root string) string {
	if c.CmdlineOnly {
		return c.Cmdline
	}
	words := []string{"console=ttyS0"}
	if c.Console == ConsoleVirtio {
		words = append(words, "console=hvc0")
	}
	words = append(words, "8250.nr_uarts=1", "panic=-1", "reboot=panic_warm")
	if maps, _ := c.maps(); maps {
		words = append(words, "init_on_alloc=0")
	}
	for _, w := range []string{root, c.Cmdline} {
		if w != "" {
			words = append(words, w)
		}
	}
	return strings.Join(words, " ")
}

const (
	warmFlag  = 0x472  // GPA of the reset flag of the BIOS data area
	warmReset = 0x1234 // its value for a restart without a memory test
)
