// Package compose reads files that describe several guests, in YAML:
//
//	cache-size: 1G
//	guests:
//	  web:
//	    memory: 512M
//	    replicas: 3
//	  db:
//	    cpus: 2
//	    disks: [db.img]
//
// It knows the shape, and where in the file everything stands, so that whoever
// knows what the values mean can say which line is wrong. Which keys there are is
// the caller's; an unknown one is answered with the nearest known.
//
// Not done here: what a value means, and whether a file is there. Not taken:
// aliases and merge keys, which would let a small file stand for a large one, and
// more than one document.
package compose

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

const (
	// MaxSize is the size of a file, in bytes.
	MaxSize = 1 << 20
	// MaxGuests is the number of guests of a file, each replica counted.
	MaxGuests = 256
	// MaxSections is the number of entries of a section.
	MaxSections = 256
	// maxName is the length of a guest's name, its number included.
	maxName = 64
)

// Kind is the shape of a value.
type Kind int

const (
	// Text is one word, number or line.
	Text Kind = iota
	// List is several texts, or one.
	List
	// Switch is true or false.
	Switch
)

// Schema says which keys there are, besides those that this package knows: guests
// at the top, replicas in a guest.
type Schema struct {
	Top, Guest map[string]Kind
	// Sections are keys at the top whose values are names with keys of their own, as
	// guests is: by the section's key, the keys of each of its entries.
	Sections map[string]map[string]Kind
}

// Pos is a place in the file, both from 1.
type Pos struct{ Line, Column int }

// Setting is one value of a key; a list has as many as it has elements.
type Setting struct {
	Key  string
	Text string
	Pos  Pos // of the value
}

// Guest is one entry of guests, which may stand for several.
type Guest struct {
	Name     string
	Pos      Pos
	Replicas int // 0 if not given: one, whose name has no number
	Settings []Setting
}

// Section is one entry of a section.
type Section struct {
	Key      string // of the section
	Name     string
	Pos      Pos
	Settings []Setting
}

// Count is how many guests the entry stands for.
func (g *Guest) Count() int { return max(1, g.Replicas) }

// Names are those of the guests that the entry stands for: web-1, web-2, …, or
// web alone.
func (g *Guest) Names() []string {
	if g.Replicas == 0 {
		return []string{g.Name}
	}
	names := make([]string, g.Replicas)
	for i := range names {
		names[i] = fmt.Sprintf("%s-%d", g.Name, i+1)
	}
	return names
}

// File is what a file says.
type File struct {
	Path     string
	Top      []Setting
	Sections []Section // in the file's order, as Guests
	Guests   []Guest
}

// Problem is something wrong at a place of a file.
type Problem struct {
	Path string
	Pos  Pos // zero if it is with the whole file
	Err  error
}

// Error is one line: path:line:column: what.
func (p *Problem) Error() string {
	if p.Pos.Line == 0 {
		return fmt.Sprintf("%s: %v", p.Path, p.Err)
	}
	return fmt.Sprintf("%s:%d:%d: %v", p.Path, p.Pos.Line, p.Pos.Column, p.Err)
}

// Unwrap gives the cause.
func (p *Problem) Unwrap() error { return p.Err }

// Read reads the file at path. What it returns is as much as could be understood,
// never nil, with all that is wrong, in the file's order.
func Read(path string, s Schema) (*File, []*Problem) {
	text, err := read(path)
	if err != nil {
		return &File{Path: path}, []*Problem{{Path: path, Err: err}}
	}
	return Parse(path, text, s)
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	return text, nil
}

// Parse is Read of a file's text; path is for messages.
func Parse(path string, text []byte, s Schema) (*File, []*Problem) {
	p := &parser{schema: s, file: &File{Path: path}}
	if len(text) > MaxSize {
		p.add(Pos{}, "it has more than %d bytes", MaxSize)
		return p.file, p.problems
	}
	if root := p.load(text); root != nil {
		p.top(root)
	}
	slices.SortStableFunc(p.problems, func(a, b *Problem) int {
		if a.Pos.Line != b.Pos.Line {
			return a.Pos.Line - b.Pos.Line
		}
		return a.Pos.Column - b.Pos.Column
	})
	return p.file, p.problems
}

type parser struct {
	schema   Schema
	file     *File
	problems []*Problem
}

func (p *parser) add(at Pos, format string, args ...any) {
	p.problems = append(p.problems, &Problem{p.file.Path, at, fmt.Errorf(format, args...)})
}

// load finds the root of the only document; nil if there is none to go on with.
func (p *parser) load(text []byte) *yaml.Node {
	const empty = "it is empty; write guests:, and below it a name for each"
	loader, err := yaml.NewLoader(bytes.NewReader(text))
	if err != nil {
		p.add(Pos{}, "%w", err)
		return nil
	}
	var doc, more yaml.Node
	switch err := loader.Load(&doc); {
	case errors.Is(err, io.EOF):
		p.add(Pos{}, empty)
		return nil
	case err != nil:
		p.syntax(err)
		return nil
	}
	switch err := loader.Load(&more); {
	case err == nil:
		p.add(at(&more), "a second document begins here; a file has one")
	case !errors.Is(err, io.EOF):
		p.syntax(err)
	}
	root := &doc
	if root.Kind == yaml.DocumentNode {
		if len(root.Content) != 1 {
			p.add(Pos{}, empty)
			return nil
		}
		root = root.Content[0]
	}
	if null(root) {
		p.add(Pos{}, empty)
		return nil
	}
	return root
}

// syntax is what the YAML library does not take.
func (p *parser) syntax(err error) {
	if e, ok := errors.AsType[*yaml.LoadError](err); ok {
		p.add(Pos{e.Mark.Line, max(1, e.Mark.Column)}, "not YAML: %s", e.Message)
		return
	}
	p.add(Pos{}, "not YAML: %w", err)
}

func at(n *yaml.Node) Pos { return Pos{n.Line, n.Column} }

// null says whether nothing is written.
func null(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

func (p *parser) top(n *yaml.Node) {
	known := append(keys(p.schema.Top), "guests")
	for key := range p.schema.Sections {
		known = append(known, key)
	}
	slices.Sort(known)
	guests := false
	p.mapping(n, "the file", known, func(key, value *yaml.Node) {
		if key.Value == "guests" {
			guests = true
			p.guests(value)
			return
		}
		if entry, ok := p.schema.Sections[key.Value]; ok {
			p.sections(key.Value, value, entry)
			return
		}
		p.file.Top = append(p.file.Top, p.values(key, value, p.schema.Top[key.Value])...)
	})
	if n.Kind == yaml.MappingNode && !guests {
		p.add(at(n), "there are no guests; write guests:, and below it a name for each")
	}
}

func keys(m map[string]Kind) []string {
	names := make([]string, 0, len(m)+1)
	for k := range m {
		names = append(names, k)
	}
	slices.Sort(names)
	return names
}

// mapping calls each for the keys of n that are known and not given before.
func (p *parser) mapping(n *yaml.Node, what string, known []string, each func(key, value *yaml.Node)) {
	if !p.is(n, yaml.MappingNode, what, "keys with values, such as memory: 512M") {
		return
	}
	seen := map[string]Pos{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if !p.is(key, yaml.ScalarNode, "a key", "one word") {
			continue
		}
		if before, ok := seen[key.Value]; ok {
			p.add(at(key), "%s is given twice; first in line %d", short(key.Value), before.Line)
			continue
		}
		seen[key.Value] = at(key)
		if known != nil && !slices.Contains(known, key.Value) {
			p.unknown(key, known)
			continue
		}
		each(key, value)
	}
}

func (p *parser) unknown(key *yaml.Node, known []string) {
	mend := "known are " + strings.Join(known, ", ")
	if k := nearest(key.Value, known); k != "" {
		mend = "did you mean " + k + "?"
	}
	p.add(at(key), "there is no key %s; %s", short(key.Value), mend)
}

// is checks the kind of a node, and says what it should be.
func (p *parser) is(n *yaml.Node, kind yaml.Kind, what, want string) bool {
	switch {
	case n.Kind == kind && !null(n):
		return true
	case n.Kind == yaml.AliasNode:
		p.add(at(n), "%s is an alias; aliases are not taken: write it out", what)
	case null(n):
		p.add(at(n), "%s is empty; give %s", what, want)
	default:
		p.add(at(n), "%s is %s; give %s", what, shape(n), want)
	}
	return false
}

func shape(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "keys with values"
	case yaml.SequenceNode:
		return "a list"
	}
	return "a text"
}

// short quotes a text of the file for a message.
func short(s string) string {
	const most = 40
	if r := []rune(s); len(r) > most {
		s = string(r[:most]) + "…"
	}
	return fmt.Sprintf("%q", s)
}

// values are the settings that a value makes.
func (p *parser) values(key, value *yaml.Node, kind Kind) []Setting {
	what := key.Value
	if kind == List && value.Kind == yaml.SequenceNode {
		var all []Setting
		for _, n := range value.Content {
			if p.is(n, yaml.ScalarNode, "an element of "+what, "a text") {
				all = append(all, Setting{key.Value, n.Value, at(n)})
			}
		}
		return all
	}
	want := map[Kind]string{Text: "a text", List: "a text, or a list of them", Switch: "true or false"}[kind]
	if !p.is(value, yaml.ScalarNode, what, want) {
		return nil
	}
	if kind == Switch && value.Value != "true" && value.Value != "false" {
		p.add(at(value), "%s is %s; give %s", what, short(value.Value), want)
		return nil
	}
	return []Setting{{key.Value, value.Value, at(value)}}
}

func (p *parser) guests(n *yaml.Node) {
	known := append(keys(p.schema.Guest), "replicas")
	taken := map[string]Pos{}
	total := 0
	p.mapping(n, "guests", nil, func(key, value *yaml.Node) {
		g := Guest{Name: key.Value, Pos: at(key)}
		if !null(value) { // a guest of defaults
			p.mapping(value, "guest "+short(g.Name), known, func(k, v *yaml.Node) {
				if k.Value == "replicas" {
					g.Replicas = p.replicas(v)
					return
				}
				g.Settings = append(g.Settings, p.values(k, v, p.schema.Guest[k.Value])...)
			})
		}
		if before := total; before <= MaxGuests {
			if total += g.Count(); total > MaxGuests {
				p.add(g.Pos, "with guest %s there are %d guests; a file has at most %d", short(g.Name), total, MaxGuests)
			}
		}
		if total > MaxGuests || !p.named(&g, taken) {
			return
		}
		p.file.Guests = append(p.file.Guests, g)
	})
	if n.Kind == yaml.MappingNode && len(n.Content) == 0 {
		p.add(at(n), "guests is empty; write a name for each below it")
	}
}

// sections reads the entries of a section.
func (p *parser) sections(key string, n *yaml.Node, entry map[string]Kind) {
	total := 0
	p.mapping(n, key, nil, func(name, value *yaml.Node) {
		if total++; total > MaxSections {
			if total == MaxSections+1 {
				p.add(at(name), "%s has more than %d entries", key, MaxSections)
			}
			return
		}
		s := Section{Key: key, Name: name.Value, Pos: at(name)}
		if !null(value) { // one of defaults
			p.mapping(value, key+" "+short(s.Name), keys(entry), func(k, v *yaml.Node) {
				s.Settings = append(s.Settings, p.values(k, v, entry[k.Value])...)
			})
		}
		p.file.Sections = append(p.file.Sections, s)
	})
}

func (p *parser) replicas(n *yaml.Node) int {
	var count int
	if !p.is(n, yaml.ScalarNode, "replicas", "a number") {
		return 0
	}
	if n.ShortTag() != "!!int" || n.Decode(&count) != nil || count < 1 || count > MaxGuests {
		p.add(at(n), "replicas %s: give a number from 1 to %d", short(n.Value), MaxGuests)
		return 0
	}
	return count
}

var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// named checks the names that g makes, and takes them.
func (p *parser) named(g *Guest, taken map[string]Pos) bool {
	names := g.Names()
	longest := names[len(names)-1]
	if !nameForm.MatchString(g.Name) || len(longest) > maxName {
		p.add(g.Pos, "guest %s: a name is a letter or digit, and letters, digits, '.', '_' and '-', at most %d with its number",
			short(g.Name), maxName)
		return false
	}
	for _, name := range names {
		if before, ok := taken[name]; ok {
			p.add(g.Pos, "two guests are named %s; the other is in line %d", name, before.Line)
			return false
		}
	}
	for _, name := range names {
		taken[name] = g.Pos
	}
	return true
}
