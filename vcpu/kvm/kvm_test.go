package kvm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOpenSaysWhatToMend(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "file")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "none"): "load kvm_intel or kvm_amd",
		plain:                      "is no KVM",
		dir:                        "is a directory",
	} {
		s, err := Open(path)
		if err == nil {
			s.Close()
			t.Errorf("%s was opened", path)
			continue
		}
		if !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %q and the path", path, err, want)
		}
	}
}

func TestExitNames(t *testing.T) {
	for e, want := range map[Exit]string{ExitIO: "io", ExitInternalError: "internal-error", 63: "exit-63"} {
		if e.String() != want {
			t.Errorf("exit %d is %q, want %q", uint32(e), e, want)
		}
	}
}

func openVM(t *testing.T) *VM {
	t.Helper()
	s, err := Open("/dev/kvm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	m, err := s.CreateVM()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	if err := m.SplitIRQChip(); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestKVMRoutes(t *testing.T) {
	m := openVM(t)
	for _, n := range []int{0, 1, 100, maxRoutes - IOAPICPins, 0} {
		routes := make([]MSIRoute, n)
		for i := range routes {
			routes[i] = MSIRoute{GSI: uint32(IOAPICPins + i), Address: 0xfee00000, Data: uint32(32 + i%200)}
		}
		if err := m.SetRoutes(routes); err != nil {
			t.Errorf("%d routes: %v", n, err)
		}
	}
	if m.SetRoutes(make([]MSIRoute, maxRoutes+1)) == nil {
		t.Error("too many routes were taken")
	}
}

func TestKVMStats(t *testing.T) {
	c, err := openVM(t).CreateVCPU(0)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := c.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if n, ok := s["exits"]; !ok || n != 0 {
		t.Errorf("a vCPU that never ran has statistics %v", s)
	}
}

func TestKVMRefusalsNameTheRegister(t *testing.T) {
	c, err := openVM(t).CreateVCPU(0)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	err = c.SetMSRs([]MSR{{Index: 0x1a0, Data: 1}, {Index: 0xdeadbeef}})
	if err == nil || !strings.Contains(err.Error(), "0xdeadbeef") {
		t.Errorf("error %v does not name the MSR", err)
	}
}
