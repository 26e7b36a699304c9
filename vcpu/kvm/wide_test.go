package kvm

import (
	"strings"
	"testing"
	"testing/fstest"
)

func TestTwoDimensional(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	for _, tt := range []struct {
		name string
		fs   fstest.MapFS
		ok   bool
		why  string
	}{
		{"Intel", fstest.MapFS{"sys/module/kvm_intel/parameters/ept": file("Y\n")}, true, "ept on"},
		{"Intel without", fstest.MapFS{"sys/module/kvm_intel/parameters/ept": file("N\n")}, false, "ept=1"},
		{"AMD", fstest.MapFS{"sys/module/kvm_amd/parameters/npt": file("Y\n")}, true, "npt on"},
		{"AMD, older kernel", fstest.MapFS{"sys/module/kvm_amd/parameters/npt": file("1\n")}, true, "npt on"},
		{"AMD without", fstest.MapFS{"sys/module/kvm_amd/parameters/npt": file("0\n")}, false, "npt=1"},
		{"another KVM", fstest.MapFS{"kvm/parameters/tdp_mmu": file("Y\n")}, false, "neither kvm_intel nor kvm_amd"},
	} {
		ok, why := TwoDimensional(tt.fs)
		if ok != tt.ok || !strings.Contains(why, tt.why) {
			t.Errorf("%s: %v, %q; want %v, %q", tt.name, ok, why, tt.ok, tt.why)
		}
	}
}

func TestWideNamesWhatIsMissing(t *testing.T) {
	all := func(Capability) int { return 3 }
	if err := wide(all); err != nil {
		t.Errorf("with all: %v", err)
	}
	for _, n := range wideNeeds {
		err := wide(func(c Capability) int {
			if c == n.cap {
				return n.least - 1
			}
			return all(c)
		})
		if err == nil || !strings.Contains(err.Error(), n.name) || !strings.Contains(err.Error(), n.since) {
			t.Errorf("without %s: %v", n.name, err)
		}
	}
}

func TestKVMWide(t *testing.T) {
	s, err := Open("/dev/kvm")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Wide(); err != nil {
		t.Error(err)
	}
}
