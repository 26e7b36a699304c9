package integration

import (
	"os"
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
	eachFile(t, func(path string, text []byte) {
		for _, m := range named.FindAllSubmatch(text, -1) {
			found++
			// bench-NAME stands for all of them.
			if name := strings.TrimSuffix(string(m[1])+string(m[2]), "-"); !targets[name] && name != "bench" {
				t.Errorf("%s names make %s, which there is not", path, name)
			}
		}
	}, ".go", ".md")
	if found == 0 {
		t.Error("nothing names any")
	}
}
