package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"disco/control"
	"disco/vmm"
)

var folders = map[string]vmm.Folder{
	"/srv/data":                   {Path: "/srv/data", Tag: "data", Window: vmm.DefaultWindow},
	"/srv/data/":                  {Path: "/srv/data/", Tag: "data", Window: vmm.DefaultWindow},
	"/srv/data:src":               {Path: "/srv/data", Tag: "src", Window: vmm.DefaultWindow},
	"/srv/data,ro":                {Path: "/srv/data", Tag: "data", ReadOnly: true, Window: vmm.DefaultWindow},
	":0/":                         {Path: ":0/", Tag: "_0", Window: vmm.DefaultWindow},
	"data:x,dax":                  {Path: "data", Tag: "x", Advise: true, Window: vmm.DefaultWindow},
	"data:x,ro,window=1G":         {Path: "data", Tag: "x", ReadOnly: true, Window: 1 << 30},
	"/a:b/c":                      {Path: "/a:b/c", Tag: "c", Window: vmm.DefaultWindow},
	"/a,b/c,d":                    {Path: "/a,b/c,d", Tag: "c_d", Window: vmm.DefaultWindow},
	"/:root,window=off":           {Path: "/", Tag: "root"},
	"/srv/data:a:b,window=2M,ro":  {Path: "/srv/data:a", Tag: "b", ReadOnly: true, Window: 2 << 20},
	"/srv/data,ro,readonly=maybe": {Path: "/srv/data,ro,readonly=maybe", Tag: "data_ro_readonly=maybe", Window: vmm.DefaultWindow},
}

var badFolders = map[string]string{
	"":                  "no folder",
	":tag":              "no folder",
	",ro":               "no folder",
	"/a:":               "no tag",
	"/":                 "write /:TAG",
	"/a,ro,ro":          "ro is given twice",
	"/a,window=lots":    "give a power of two",
	"/a,window=0":       "or off",
	"/a,window=1G,ro,x": "", // a path
}

func TestParseFolder(t *testing.T) {
	for s, want := range folders {
		got, err := parseFolder(s)
		if err != nil || got != want {
			t.Errorf("%q: got %+v, %v, want %+v", s, got, err, want)
		}
		if again, err := parseFolder(formatFolder(got)); err != nil || again != got {
			t.Errorf("%q is written %q, and read as %+v, %v", s, formatFolder(got), again, err)
		}
	}
	for s, want := range badFolders {
		if got, err := parseFolder(s); want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: got %+v, %v, want an error with %q", s, got, err, want)
		}
	}
}

func FuzzParseFolder(f *testing.F) {
	for s := range folders {
		f.Add(s)
	}
	for s := range badFolders {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseFolder(s)
		if err != nil {
			return
		}
		if again, err := parseFolder(formatFolder(got)); err == nil && again.Path != got.Path {
			t.Errorf("%q is %+v, written %q, read again %+v", s, got, formatFolder(got), again)
		}
	})
}

func TestPrintFolders(t *testing.T) {
	var b strings.Builder
	if printFolders(&b, 7, nil) || b.Len() > 0 {
		t.Errorf("of no folders it prints %q", b.String())
	}
	printFolders(&b, 7, []control.Folder{{Guest: "web-1", Tag: "src", Requests: 12, Read: 2048, Written: 1024, Mapped: 6 << 20, Common: 4 << 20, Nodes: 5, Open: 1}})
	want := "shared folders of process 7:\n" +
		"  GUEST  FOLDER  REQUESTS  READ  WRITTEN  IN WINDOW  IN COMMON  FILES  OPEN\n" +
		"  web-1  src     12        2KiB  1KiB     6MiB       4MiB       5      1\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

// TestUpFolders: folders of a file of disco up are relative to where it is.
func TestUpFolders(t *testing.T) {
	w := newFleetWorld(t)
	path := upFile(t, "guests:\n  a:\n    replicas: 2\n    shares: [\"src{n}:x,ro\"]\n")
	for _, name := range []string{"src1", "src2"} {
		if err := os.Mkdir(filepath.Join(filepath.Dir(path), name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if code := w.disco("up", "--host", "here", path); code != 0 || len(w.built) != 2 {
		t.Fatalf("exit code %d, %d guests: %s", code, len(w.built), &w.err)
	}
	want := vmm.Folder{Path: filepath.Join(filepath.Dir(path), "src2"), Tag: "x", ReadOnly: true, Window: vmm.DefaultWindow}
	if got := w.built[1].cfg.Folders; len(got) != 1 || got[0] != want {
		t.Errorf("the second guest has %+v, not %+v", got, want)
	}
	path = upFile(t, "guests:\n  a:\n    shares: [../none, /]\n")
	w = newFleetWorld(t)
	code := w.disco("up", "--host", "here", path)
	for _, want := range []string{":3:23: shares \"/\": the root has no name", ":3:14: share "} {
		if code != 2 || !strings.Contains(w.err.String(), path+want) {
			t.Errorf("exit code %d: %s", code, &w.err)
		}
	}
}
