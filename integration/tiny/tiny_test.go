package tiny

import (
	"bytes"
	"debug/elf"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestImages holds what the boot loader and the guests agree on: every source
// has its ELF, loaded and entered at 1 MiB, and small.
func TestImages(t *testing.T) {
	sources, err := filepath.Glob("src/*.S")
	if err != nil || len(sources) == 0 {
		t.Fatalf("no sources in src: %v", err)
	}
	if len(Names()) != len(sources) {
		t.Errorf("%d guests are built in, of %d sources; run `make tiny`", len(Names()), len(sources))
	}
	for _, src := range sources {
		name := strings.TrimSuffix(filepath.Base(src), ".S")
		t.Run(name, func(t *testing.T) {
			b, err := Image(name)
			if err != nil {
				t.Fatal(err)
			}
			f, err := elf.NewFile(bytes.NewReader(b))
			if err != nil {
				t.Fatal(err)
			}
			entry := uint64(1 << 20)
			switch name {
			case "pvh":
				entry = 0 // its note has it
			case "constants":
				entry += 4096 // after its headers, which are loaded
			}
			if f.Type != elf.ET_EXEC || f.Machine != elf.EM_X86_64 || f.Entry != entry {
				t.Errorf("type %v, machine %v, entry %#x", f.Type, f.Machine, f.Entry)
			}
			for _, p := range f.Progs {
				if p.Type == elf.PT_LOAD && (p.Paddr < 1<<20 || p.Paddr+p.Memsz > 2<<20) {
					t.Errorf("segment %#x+%#x leaves the second MiB", p.Paddr, p.Memsz)
				}
			}
		})
	}
}

func TestImageAbsent(t *testing.T) {
	_, err := Image("no-such-guest")
	if err == nil || !strings.Contains(err.Error(), "make tiny") {
		t.Errorf("got %v, want an error that says what to run", err)
	}
	if _, err := os.Stat("elf/README.md"); err != nil {
		t.Errorf("the embedded folder needs a committed file: %v", err)
	}
}
