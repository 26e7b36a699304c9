package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// value is a flag that never stops the parser: what is wrong with its text is
// kept in problems, to be told together with all else that is wrong.
type value struct {
	name     string
	kind     string // of its argument, for the help text
	text     string // what it is now, for the help text
	set      func(string) error
	again    bool // it may be given again, and adds then
	problems *[]error
}

func (v *value) String() string { return v.text }
func (v *value) Type() string   { return v.kind }

func (v *value) Set(s string) error {
	if err := v.set(s); err != nil {
		*v.problems = append(*v.problems, fmt.Errorf("--%s %s: %w", v.name, s, err))
		return nil
	}
	v.text = s
	return nil
}

// parsed is a flag whose text goes through parse into p.
func parsed[T any](name, kind, text string, p *T, parse func(string) (T, error), problems *[]error) *value {
	return &value{name: name, kind: kind, text: text, problems: problems, set: func(s string) error {
		x, err := parse(s)
		if err == nil {
			*p = x
		}
		return err
	}}
}

var _ pflag.Value = (*value)(nil)

// adder returns what gives c flags that keep their problems and name no files. A flag
// is set by set, and its text is what it is by default.
func adder(c *cobra.Command, problems *[]error) func(name, kind, text string, set func(string) error, usage string) {
	return func(name, kind, text string, set func(string) error, usage string) {
		c.Flags().Var(&value{name: name, kind: kind, text: text, set: set, problems: problems}, name, usage)
		noFile(c, name)
	}
}

// noFile keeps a shell from completing the flag's text with files.
func noFile(c *cobra.Command, name string) {
	// It fails only for a flag that does not exist.
	if err := c.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions); err != nil {
		panic(err)
	}
}
