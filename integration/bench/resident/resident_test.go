package resident

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestSizes(t *testing.T) {
	const text = "55d0-7fff ---p 00000000 00:00 0    [rollup]\nRss:     8 kB\nPss:     4 kB\nPss_Anon:    1 kB\nPss_File:    3 kB\n"
	got, err := sizes(text)
	if want := map[string]uint64{"Rss": 8192, "Pss": 4096, "Pss_Anon": 1024, "Pss_File": 3072}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := sizes("Rss: 8 kB\n"); err == nil {
		t.Error("a summary without its parts is taken")
	}
	if own, err := Rollup("self"); err != nil || own["Pss_Anon"] == 0 {
		t.Errorf("this process: %v, %v", own, err)
	}
	if n, err := Mappings(); err != nil || n < 5 {
		t.Errorf("%d mappings, %v", n, err)
	}
}

func TestCached(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if n, err := Cached(path); err == nil {
		t.Errorf("%d bytes of no file", n)
	}
	if err := os.WriteFile(path, make([]byte, 5<<12+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := Cached(path); err != nil || n != 6<<12 {
		t.Errorf("%d bytes of a file just written, %v", n, err)
	}
}
