package integration

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestSpecification: every test that SPECIFICATION.md names exists.
func TestSpecification(t *testing.T) {
	defined := map[string]bool{}
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)`)
	eachFile(t, func(path string, text []byte) {
		for _, m := range function.FindAllSubmatch(text, -1) {
			defined[string(m[1])] = true
		}
	}, "_test.go")
	text, err := os.ReadFile("../SPECIFICATION.md")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile("`((?:Test|Fuzz|Benchmark)\\w+)`").FindAllSubmatch(text, -1)
	if len(names) == 0 {
		t.Fatal("it names no tests")
	}
	for _, m := range names {
		if name := string(m[1]); !defined[name] {
			t.Errorf("%s: there is no such test", name)
		}
	}
}

// eachFile reads every file of the tree whose name ends in one of these ways.
func eachFile(t *testing.T, use func(path string, text []byte), ends ...string) {
	t.Helper()
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "build"):
			return fs.SkipDir
		case d.IsDir() || !slices.ContainsFunc(ends, func(end string) bool { return strings.HasSuffix(path, end) }):
			return nil
		}
		text, err := os.ReadFile(path)
		if err == nil {
			use(path, text)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
