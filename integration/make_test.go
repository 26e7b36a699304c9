package integration

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestMakeTargets: every target of make that a document, a comment or a message names
// exists.
func TestMakeTargets(t *testing.T) {
	rules, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	tiny, err := os.ReadFile("tiny/tiny.mk") // which it includes
	if err != nil {
		t.Fatal(err)
	}
	targets := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^([a-z][\w-]*):`).FindAllSubmatch(append(rules, tiny...), -1) {
		targets[string(m[1])] = true
	}
	named := regexp.MustCompile("`make ([a-z][a-z-]*)|: make ([a-z]+-[a-z-]*)")
	found := 0
	err = filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "build"):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, ".md"):
			return nil
		}
		text, err := os.ReadFile(path)
		for _, m := range named.FindAllSubmatch(text, -1) {
			found++
			// bench-NAME stands for all of them.
			if name := strings.TrimSuffix(string(m[1])+string(m[2]), "-"); !targets[name] && name != "bench" {
				t.Errorf("%s names make %s, which there is not", path, name)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if found == 0 {
		t.Error("nothing names any")
	}
}
