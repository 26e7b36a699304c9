package main

import (
	"runtime/debug"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func commands(c *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{c}
	for _, sub := range c.Commands() {
		all = append(all, commands(sub)...)
	}
	return all
}

func TestHelp(t *testing.T) {
	w := newWorld(t)
	if code := w.disco("help"); code != 0 {
		t.Fatalf("exit code %d: %s", code, &w.err)
	}
	text := w.out.String()
	at := -1
	for _, want := range []string{
		"disco boots Linux guests on KVM.", "Exit codes:", "124  the guest was still running",
		"Guests:\n  capture ", "  run ", "  up ", "This machine:\n  bench ", "  check ", "  lab ", "This program:\n  completion ", "  version ",
	} {
		i := strings.Index(text, want)
		if i <= at {
			t.Errorf("%q is not there, or not in its place", want)
		}
		at = i
	}
}

func TestHelpIsComplete(t *testing.T) {
	w := newWorld(t)
	for _, c := range commands(newRoot(&w.world)) {
		if c.Hidden || strings.HasPrefix(c.CommandPath(), "disco completion") || c.Name() == "help" {
			continue // cobra's own
		}
		if c.Short == "" || c.Long == "" {
			t.Errorf("%s has no text", c.CommandPath())
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" || strings.HasSuffix(f.Usage, ".") {
				t.Errorf("%s --%s: the text %q is empty or ends in a full stop", c.CommandPath(), f.Name, f.Usage)
			}
		})
		help := c.Long + "\n" + c.UsageString()
		for line := range strings.Lines(help) {
			if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > 88 {
				t.Errorf("%s: a line of %d characters: %s", c.CommandPath(), n, line)
			}
		}
	}
}

func TestCompletion(t *testing.T) {
	for args, want := range map[string][]string{
		"r":              {"run"},
		"run --host ":    {"auto", "here", "lab"},
		"run --console ": {"virtio", "serial"},
		"run --net ":     {"user", "tap=", "none"},
		"run --ker":      {"--kernel"},
		"u":              {"up"},
		"up --host ":     {"auto", "here", "lab"},
		"up --con":       {"--console-dir"},
		"up ":            {"yaml", "yml"},
	} {
		w := newWorld(t)
		if code := w.disco(append([]string{"__complete"}, strings.Split(args, " ")...)...); code != 0 {
			t.Errorf("%q: exit code %d", args, code)
		}
		for _, word := range want {
			if !strings.Contains("\n"+w.out.String(), "\n"+word) {
				t.Errorf("%q: got %q, want %s", args, &w.out, word)
			}
		}
	}
	w := newWorld(t)
	if code := w.disco("completion", "bash"); code != 0 || !strings.Contains(w.out.String(), "__start_disco") {
		t.Errorf("completion bash: exit code %d, %d bytes", code, w.out.Len())
	}
}

func TestVersion(t *testing.T) {
	info := &debug.BuildInfo{Settings: []debug.BuildSetting{
		{Key: "vcs.revision", Value: "0123456789abcdef"}, {Key: "vcs.modified", Value: "true"},
	}}
	info.Main.Version = "v1.2.3"
	if got := version(info); !strings.HasPrefix(got, "disco v1.2.3 commit 0123456789ab (modified) go") || !strings.Contains(got, " linux/") {
		t.Errorf("got %q", got)
	}
	if got := version(nil); !strings.HasPrefix(got, "disco (devel) go") {
		t.Errorf("got %q", got)
	}
}
