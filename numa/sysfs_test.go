package numa

import (
	"slices"
	"strings"
	"testing"
)

func TestParseList(t *testing.T) {
	good := map[string][]CPU{
		"":          nil,
		"0":         {0},
		"0-0":       {0},
		"0-2,5,7-8": {0, 1, 2, 5, 7, 8},
		"65535":     {65535},
	}
	for s, want := range good {
		if got, err := parseList[CPU](s, maxCPU); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: got %v, %v", s, got, err)
		}
	}
	for _, s := range []string{" ", ",", "0,", ",0", "0-", "-1", "1-0", "0,0", "2,1", "0-2,2", "0--1", "+1", "0x1", "1_0", "0 1",
		"0-3:1/2", "65536", "0-65536", "18446744073709551616", "٣"} {
		if got, err := parseList[CPU](s, maxCPU); err == nil {
			t.Errorf("%q: got %v, want an error", s, got)
		}
	}
}

func FuzzList(f *testing.F) {
	for _, s := range []string{"", "0", "0-3,8", "8-15,24-31", "0-4294967295", "3-1", "0,0", "0-", "1,,2", "65535"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		list, err := parseList[CPU](s, maxCPU)
		if err != nil {
			if list != nil || len(err.Error()) > 300 || strings.Contains(err.Error(), "\n") {
				t.Fatalf("%q: %v, %v", s, list, err)
			}
			return
		}
		if len(list) > maxCPU+1 || !slices.IsSorted(list) || len(slices.Compact(slices.Clone(list))) != len(list) {
			t.Fatalf("%q: not ascending: %v", s, list)
		}
		again, err := parseList[CPU](formatList(list), maxCPU)
		if err != nil || !slices.Equal(again, list) {
			t.Fatalf("%q: %v, printed as %q and read as %v, %v", s, list, formatList(list), again, err)
		}
	})
}

func FuzzDistance(f *testing.F) {
	for _, s := range []string{"", "10", "10 21", "10 255", "10 256", "9 10", "10\t21 ", "10 -21", "ten"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		distances, err := parseDistance(s)
		if err != nil && (distances != nil || len(err.Error()) > 300 || strings.Contains(err.Error(), "\n")) {
			t.Fatalf("%q: %v, %v", s, distances, err)
		}
		if err == nil && len(distances) != len(strings.Fields(s)) {
			t.Fatalf("%q: got %v", s, distances)
		}
		for _, d := range distances {
			if d < Local || d > Unreachable {
				t.Fatalf("%q: got %v", s, distances)
			}
		}
	})
}

func FuzzMeminfo(f *testing.F) {
	for _, s := range []string{"", "MemTotal: 2 kB\nMemFree: 1 kB\n", "\nNode 0 MemTotal: 2 kB\nNode 0 MemFree: 1 kB\n", "Node 0", "MemTotal:",
		"MemTotal: 18014398509481984 kB\n", "MemTotal: 2 kB\nMemTotal: 3 kB\nMemFree: 1 MB",
		"MemTotal: 9 kB\nMemFree: 3 kB\nActive(file): 18014398509481983 kB\nInactive(file): 4 kB\nDirty: 1 kB\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := parseMeminfo(s)
		if err != nil && (m != Memory{} || len(err.Error()) > 300 || strings.Contains(err.Error(), "\n")) {
			t.Fatalf("%q: %+v, %v", s, m, err)
		}
		if m.Total%1024 != 0 || m.Free%1024 != 0 || m.Available > m.Total {
			t.Fatalf("%q: got %+v", s, m)
		}
	})
}
