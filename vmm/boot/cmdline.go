package boot

import (
	"fmt"
	"strings"
)

// cmdlineELF is how long a command line an x86 Linux takes: COMMAND_LINE_SIZE
// less the NUL. An ELF does not say; a bzImage does.
const cmdlineELF = 2047

// putCmdline writes the command line and its NUL. limit is in bytes without it.
func putCmdline(g *guest, s string, limit int) error {
	if len(s) > limit {
		return fmt.Errorf("the kernel command line has %d bytes and this kernel takes %d: shorten --cmdline", len(s), limit)
	}
	if strings.ContainsRune(s, 0) {
		return fmt.Errorf("the kernel command line has a NUL byte: take it out of --cmdline")
	}
	return g.put("the command line", cmdlineAt, append([]byte(s), 0))
}
