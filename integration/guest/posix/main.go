// Command posix tries on the folder that it is given what POSIX says of files, by
// go-fuse's tests, some of which come from xfstests. It runs in a guest, on a shared
// folder; the flags of test binaries, such as -test.v, follow the folder.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
)

func main() {
	if len(os.Args) < 2 || strings.HasPrefix(os.Args[1], "-") {
		fmt.Fprintln(os.Stderr, "usage: posix FOLDER [-test.v] [-test.run PATTERN]")
		os.Exit(2)
	}
	at := os.Args[1]
	os.Args = append(os.Args[:1], os.Args[2:]...)
	var tests []testing.InternalTest
	for name, test := range posixtest.All {
		tests = append(tests, testing.InternalTest{Name: name, F: func(t *testing.T) {
			dir, err := os.MkdirTemp(at, name)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := os.RemoveAll(dir); err != nil {
					t.Error(err)
				}
			})
			test(t, filepath.Clean(dir))
		}})
	}
	slices.SortFunc(tests, func(a, b testing.InternalTest) int { return strings.Compare(a.Name, b.Name) })
	testing.Main(regexp.MatchString, tests, nil, nil)
}
