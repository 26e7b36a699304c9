package vmm

import (
	"errors"
	"strings"
	"testing"
)

func TestValidateFolders(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	for _, c := range []struct {
		folders []Folder
		want    []string // a piece of each problem, in order
	}{
		{folders: []Folder{{Path: dir, Tag: "a"}, {Path: other, Tag: "b", ReadOnly: true, Window: 1 << 30}, {Path: dir, Tag: "c", Window: 2 << 20}}},
		{folders: []Folder{{Path: dir + "/none", Tag: "a"}}, want: []string{"there is no such folder"}},
		{folders: []Folder{{Path: file(t, "f", 1), Tag: "a"}}, want: []string{"it is not a folder"}},
		{folders: []Folder{{Path: dir, Tag: ""}, {Path: dir, Tag: "a b"}, {Path: dir, Tag: strings.Repeat("x", 37)}, {Path: dir, Tag: "a\n"}},
			want: []string{`tag ""`, `tag "a b"`, `tag "xxx`, `tag "a\n"`}},
		{folders: []Folder{{Path: dir, Tag: "a"}, {Path: other, Tag: "a"}}, want: []string{`another folder has the tag "a"`}},
		{folders: []Folder{{Path: dir, Tag: "a", Window: 3 << 20}, {Path: dir, Tag: "b", Window: 1 << 20}}, want: []string{"a window of 3M", "a window of 1M"}},
		{folders: []Folder{{Path: dir, Tag: "a", Advise: true}}, want: []string{"without a window"}},
		{folders: []Folder{{Path: dir, Tag: "a", Window: 8 << 30}, {Path: dir, Tag: "b", Window: 1 << 30}}, want: []string{"more than 8G"}},
	} {
		cfg := good(t)
		cfg.Folders = c.folders
		err := cfg.Validate()
		var problems []error
		if ce, ok := errors.AsType[*ConfigError](err); ok {
			problems = ce.Problems
		}
		if len(problems) != len(c.want) {
			t.Errorf("%+v: %v, want %d problems", c.folders, err, len(c.want))
			continue
		}
		for i, want := range c.want {
			if got := problems[i].Error(); !strings.Contains(got, want) || !strings.HasPrefix(got, "share /") {
				t.Errorf("problem %q, want one with %q", got, want)
			}
		}
	}
}

func TestFolderBounds(t *testing.T) {
	for _, memory := range []uint64{16 << 20, 512 << 20, 1 << 40} {
		nodes, files, cached := folderBounds(memory)
		if nodes < 1<<14 || nodes > 1<<20 || files < 64 || files > 1<<14 || cached < 64 || cached > 1<<12 {
			t.Errorf("%d bytes: %d nodes, %d files, %d descriptors", memory, nodes, files, cached)
		}
	}
}
