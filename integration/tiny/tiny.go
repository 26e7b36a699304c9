// Package tiny holds the hand-made test guests: ELF64 files of about a
// kilobyte, entered like a Linux vmlinux by the 64-bit boot protocol, built from
// src/*.S by `make tiny` and embedded here.
//
// They take their parameters from the kernel command line, talk through the
// 8250 at port 0x3f8, and end through the ACPI sleep register, the reset
// register or the debug-exit port; the head of each source says what it does.
// They keep to instructions that a KVM without VT-x or AMD-V can emulate, so
// they run in milliseconds on any /dev/kvm.
//
// Not done here: running them. Package tiny imports nothing of the monitor, so
// every package's tests may import it.
package tiny

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// The folder holds only elf/README.md until `make tiny` has run.
//
//go:embed elf
var elves embed.FS

// Names lists the guests that were built, sorted. It is empty before `make tiny`.
func Names() []string {
	entries, err := elves.ReadDir("elf")
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".elf"); ok {
			names = append(names, name)
		}
	}
	return names
}

// Image is the ELF file of the guest that src/name.S makes. The caller owns the
// slice. The error says to run `make tiny` if the guest was not built.
func Image(name string) ([]byte, error) {
	b, err := elves.ReadFile("elf/" + name + ".elf")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("tiny guest %q is not built into this program: run `make tiny`, then build again", name)
	}
	return b, err
}
