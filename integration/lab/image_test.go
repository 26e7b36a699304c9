package lab

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// withSegment returns an ELF image with one segment of a type.
func withSegment(segment elf.ProgType) []byte {
	body := []byte("code")
	var b bytes.Buffer
	_ = binary.Write(&b, binary.LittleEndian, elf.Header64{
		Ident:   [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:    uint16(elf.ET_EXEC),
		Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1,
	})
	_ = binary.Write(&b, binary.LittleEndian, elf.Prog64{Type: uint32(segment), Off: 120, Filesz: uint64(len(body)), Memsz: uint64(len(body))})
	b.Write(body)
	return b.Bytes()
}

func TestOpenKernelRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vmlinux")
	for name, c := range map[string]struct {
		image []byte
		want  string
	}{
		"no PVH entry": {withSegment(elf.PT_LOAD), "give its bzImage"},
		"no kernel":    {[]byte("MZ"), "give an x86-64 bzImage or vmlinux"},
	} {
		if err := os.WriteFile(path, c.image, 0o600); err != nil {
			t.Fatal(err)
		}
		if f, err := openKernel(path); f != nil || err == nil || !strings.HasPrefix(err.Error(), "lab: kernel "+path+": ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// program returns an ELF header with one segment of a type.
func program(t *testing.T, machine elf.Machine, segment elf.ProgType) string {
	t.Helper()
	b := withSegment(segment)
	binary.LittleEndian.PutUint16(b[18:], uint16(machine))
	path := filepath.Join(t.TempDir(), "init")
	if err := os.WriteFile(path, b, 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestPrerequisitesNameThemselvesAndTheirMend(t *testing.T) {
	none := t.TempDir()
	t.Setenv("PATH", none)
	t.Setenv("HOME", none)
	t.Setenv("XDG_DATA_HOME", none)
	for _, v := range []string{"DISCO_QEMU", "DISCO_LAB_KERNEL", "DISCO_LAB_MODULES"} {
		t.Setenv(v, "")
	}
	static := program(t, elf.EM_X86_64, elf.PT_LOAD)
	check := func(name string, problems []error, want ...[]string) {
		t.Helper()
		if len(problems) != len(want) {
			t.Errorf("%s: %q, want %d", name, problems, len(want))
			return
		}
		for i, p := range problems {
			for _, w := range append(want[i], "lab: ") {
				if !strings.Contains(p.Error(), w) || strings.Contains(p.Error(), "\n") {
					t.Errorf("%s: %q, want %q in one line", name, p, w)
				}
			}
		}
	}
	_, problems := locate(static)
	check("nothing there", problems,
		[]string{"qemu-system-x86_64", "make lab", "DISCO_QEMU"},
		[]string{"vmlinuz", "make lab", "DISCO_LAB_KERNEL"},
		[]string{"modules", "make lab", "DISCO_LAB_MODULES"})

	for _, v := range []string{"DISCO_QEMU", "DISCO_LAB_KERNEL", "DISCO_LAB_MODULES"} {
		t.Setenv(v, filepath.Join(none, "absent"))
	}
	_, problems = locate(static)
	check("variables that name nothing", problems,
		[]string{"DISCO_QEMU=", "absent"}, []string{"DISCO_LAB_KERNEL=", "absent"}, []string{"DISCO_LAB_MODULES=", "absent"})

	t.Setenv("DISCO_QEMU", static)
	t.Setenv("DISCO_LAB_KERNEL", static)
	t.Setenv("DISCO_LAB_MODULES", none)
	_, problems = locate(program(t, elf.EM_X86_64, elf.PT_INTERP))
	check("a dynamic init", problems, []string{"dynamically", "CGO_ENABLED=0"})
	_, problems = locate(program(t, elf.EM_AARCH64, elf.PT_LOAD))
	check("another machine's init", problems, []string{"AARCH64", "GOARCH=amd64"})
	a, problems := locate(static)
	check("all there", problems)
	if want := (artefacts{static, static, none, static}); a != want {
		t.Errorf("found %+v, want %+v", a, want)
	}
}

func TestUserFolderHasArtefacts(t *testing.T) {
	data := t.TempDir()
	t.Setenv("DISCO_LAB_KERNEL", "")
	t.Setenv("XDG_DATA_HOME", data)
	want := filepath.Join(data, "disco", "lab", "vmlinuz")
	if err := os.MkdirAll(filepath.Dir(want), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(want, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := find("vmlinuz", "DISCO_LAB_KERNEL", "kernel", os.FileMode.IsRegular); err != nil || got != want {
		t.Errorf("%s, %v", got, err)
	}
}
