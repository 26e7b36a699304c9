package compose

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var schema = Schema{
	Top:      map[string]Kind{"cache-size": Text},
	Sections: map[string]map[string]Kind{"segments": {"mtu": Text, "uplink": Text}},
	Guest:    map[string]Kind{"memory": Text, "cpus": Text, "disks": List, "kaslr": Switch, "kernel": Text},
}

func TestParse(t *testing.T) {
	f, problems := Parse("up.yaml", []byte(`# two kinds
cache-size: 1G
segments: {lan0: {mtu: 9000, uplink: user}, lan1: }
guests:
  web:
    memory: 512M
    disks: [a.img, "b.img,ro"]
    replicas: 2
  db: {cpus: 2, kaslr: true, disks: c.img}
  plain:
`), schema)
	if problems != nil {
		t.Fatal(problems)
	}
	want := &File{
		Path: "up.yaml",
		Top:  []Setting{{"cache-size", "1G", Pos{2, 13}}},
		Sections: []Section{
			{"segments", "lan0", Pos{3, 12}, []Setting{{"mtu", "9000", Pos{3, 24}}, {"uplink", "user", Pos{3, 38}}}},
			{"segments", "lan1", Pos{3, 45}, nil},
		},
		Guests: []Guest{
			{"web", Pos{5, 3}, 2, []Setting{{"memory", "512M", Pos{6, 13}}, {"disks", "a.img", Pos{7, 13}}, {"disks", "b.img,ro", Pos{7, 20}}}},
			{"db", Pos{9, 3}, 0, []Setting{{"cpus", "2", Pos{9, 14}}, {"kaslr", "true", Pos{9, 24}}, {"disks", "c.img", Pos{9, 37}}}},
			{"plain", Pos{10, 3}, 0, nil},
		},
	}
	if !reflect.DeepEqual(f, want) {
		t.Errorf("got  %+v\nwant %+v", f, want)
	}
	var names []string
	for _, g := range f.Guests {
		names = append(names, g.Names()...)
	}
	if got := strings.Join(names, " "); got != "web-1 web-2 db plain" {
		t.Errorf("names %s", got)
	}
}

// many are so many names with nothing below.
func many(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "  s%d:\n", i)
	}
	return b.String()
}

// TestProblems has all that is wrong with a file told at once, each with its
// place.
func TestProblems(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"empty", "", "x: it is empty; write guests:, and below it a name for each\n"},
		{"only a comment", "# nothing\n", "x: it is empty; write guests:, and below it a name for each\n"},
		{"a list", "- a\n", "x:1:1: the file is a list; give keys with values, such as memory: 512M\n"},
		{"no guests", "cache-size: 1G\n", "x:1:1: there are no guests; write guests:, and below it a name for each\n"},
		{"sections", "segments:\n  a: x\n  b: {mtu: [1], up: 2}\n  a:\n  ? [c]\n  : d\nguests: {g: }\n", `x:2:6: segments "a" is a text; give keys with values, such as memory: 512M
x:3:12: mtu is a list; give a text
x:3:17: there is no key "up"; known are mtu, uplink
x:4:3: "a" is given twice; first in line 2
x:5:5: a key is a list; give one word
`},
		{"too many sections", "guests: {g: }\nsegments:\n" + many(MaxSections+2), "x:259:3: segments has more than 256 entries\n"},
		{"guests empty", "guests:\n", "x:1:8: guests is empty; give keys with values, such as memory: 512M\n"},
		{"guests {}", "guests: {}\n", "x:1:9: guests is empty; write a name for each below it\n"},
		{"many", `cachesize: 1G
guests:
  web:
    memroy: 5
    memory: [1, 2]
    memory: 6
    cpus:
    kaslr: maybe
    disks: [a, {b: c}]
    replicas: 0
  web: {}
  a b: {}
  zzz: {qqqqqqq: 1}
  all: 5
`, `x:1:1: there is no key "cachesize"; did you mean cache-size?
x:4:5: there is no key "memroy"; did you mean memory?
x:5:13: memory is a list; give a text
x:6:5: "memory" is given twice; first in line 5
x:7:10: cpus is empty; give a text
x:8:12: kaslr is "maybe"; give true or false
x:9:16: an element of disks is keys with values; give a text
x:10:15: replicas "0": give a number from 1 to 256
x:11:3: "web" is given twice; first in line 3
x:12:3: guest "a b": a name is a letter or digit, and letters, digits, '.', '_' and '-', at most 64 with its number
x:13:9: there is no key "qqqqqqq"; known are cpus, disks, kaslr, kernel, memory, replicas
x:14:8: guest "all" is a text; give keys with values, such as memory: 512M
`},
		{"replica's name taken", "guests:\n  web-2: {}\n  web: {replicas: 3}\n", "x:3:3: two guests are named web-2; the other is in line 2\n"},
		{"alias", "guests:\n  a: &a {cpus: 1}\n  b: *a\n", "x:3:6: guest \"b\" is an alias; aliases are not taken: write it out\n"},
		{"merge", "guests:\n  a: {<<: {cpus: 1}}\n", "x:2:7: there is no key \"<<\"; known are cpus, disks, kaslr, kernel, memory, replicas\n"},
		{"two documents", "guests: {a: {}}\n---\nguests: {b: {}}\n", "x:2:1: a second document begins here; a file has one\n"},
		{"too many", "guests:\n  a: {replicas: 200}\n  b: {replicas: 57}\n  c: {}\n", "x:3:3: with guest \"b\" there are 257 guests; a file has at most 256\n"},
		{"long name", "guests: {" + strings.Repeat("a", 63) + ": {replicas: 2}}", "x:1:10: guest \"" + strings.Repeat("a", 40) + "…\": a name is a letter or digit, and letters, digits, '.', '_' and '-', at most 64 with its number\n"},
	} {
		_, problems := Parse("x", []byte(tt.text), schema)
		var got strings.Builder
		for _, p := range problems {
			fmt.Fprintln(&got, p)
		}
		if got.String() != tt.want {
			t.Errorf("%s: got\n%swant\n%s", tt.name, got.String(), tt.want)
		}
	}
}

func TestNotYAML(t *testing.T) {
	for _, text := range []string{"guests:\n  a: [\n", "guests: {a: {}\n", "\tguests:\n", "guests:\n  a: \"\xff\"\n", "a: b: c\n", "guests: *a\n"} {
		_, problems := Parse("x", []byte(text), schema)
		if len(problems) != 1 || !strings.HasPrefix(problems[0].Error(), "x:") || !strings.Contains(problems[0].Error(), "not YAML: ") || strings.Contains(problems[0].Error(), "\n") {
			t.Errorf("%q: %v", text, problems)
		}
	}
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f.yaml")
	for _, tt := range []struct {
		path, text string
		want       string
	}{
		{filepath.Join(dir, "absent"), "", "absent: no such file or directory"},
		{dir, "", ": is a directory"},
		{path, "guests: {a: {}}\n" + strings.Repeat("#", MaxSize), "f.yaml: it has more than 1048576 bytes"},
	} {
		if tt.text != "" {
			if err := os.WriteFile(tt.path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		f, problems := Read(tt.path, schema)
		if f == nil || len(problems) != 1 || !strings.HasSuffix(problems[0].Error(), tt.want) {
			t.Errorf("%s: %v, want %s", tt.path, problems, tt.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"", "guests: {a: {replicas: 3, disks: [b, c]}}", "guests:\n  a:\n    memory: 1\n    memory: 2\n", "&a [*a]", "? {a: b}\n: c\n",
		"guests: !!binary aGk=", "---\n...\n---\n", "%YAML 1.2\n---\nguests: null\n", "guests: {~: {}, 1: {}}",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		file, problems := Parse("x", text, schema)
		total := 0
		seen := map[string]bool{}
		for _, g := range file.Guests {
			for _, n := range g.Names() {
				if seen[n] || len(n) > maxName {
					t.Errorf("name %q twice, or too long", n)
				}
				seen[n] = true
				total++
			}
			for _, s := range g.Settings {
				if _, ok := schema.Guest[s.Key]; !ok {
					t.Errorf("unknown key %q", s.Key)
				}
			}
		}
		if total > MaxGuests {
			t.Errorf("%d guests", total)
		}
		if total == 0 && problems == nil {
			t.Error("no guests, and no problem")
		}
		for _, p := range problems {
			if strings.ContainsAny(p.Error(), "\n\x1b") {
				t.Errorf("%q is more than a line", p)
			}
		}
	})
}
