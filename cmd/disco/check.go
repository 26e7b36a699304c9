package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"disco/host"
	"disco/integration/tiny"
	"disco/vmm"
)

const checkLong = `check tries what guests need of this host, one line each, and says below a line
how to mend what is not right:

  ok       it is there
  warn     guests run without it, slower or with less
  missing  guests do not run on this host's KVM without it

It boots a guest of a kilobyte on this host's KVM and says how long that took.
Nothing is changed.

Exit codes:
  0  guests can run, here or in the lab
  3  they can run nowhere`

// verdict is what a check comes to.
type verdict struct {
	Guests   string         `json:"guests"` // here, lab or nowhere
	Findings []host.Finding `json:"findings"`
}

func checkCommand(w *world) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "check",
		Short:   "Say what this host can do, and how to mend what it cannot",
		Long:    checkLong,
		Example: "  disco check\n  disco check --json | jq -r .guests",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			v := w.check(c.Context())
			print := printVerdict
			if asJSON {
				print = printJSON
			}
			if err := print(w.stdout, v); err != nil {
				return err
			}
			if v.Guests == "nowhere" {
				return &exitError{vmm.ExitHost, nil}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, `print one JSON object: "guests" is here, lab or nowhere, and "findings" an array of name, status, found and mend`)
	return c
}

func (w *world) check(ctx context.Context) verdict {
	v := verdict{Guests: "nowhere", Findings: w.findings()}
	if v.Findings[0].Status != host.Missing { // without KVM itself, nothing boots
		v.Findings = append(v.Findings, w.tinyBoot(ctx))
	}
	here := host.FirstMissing(v.Findings) == nil
	l := labFinding(w.labMissing())
	v.Findings = append(v.Findings, l)
	switch {
	case here:
		v.Guests = "here"
	case l.Status == host.OK:
		v.Guests = "lab"
	}
	return v
}

func labFinding(problems []error) host.Finding {
	f := host.Finding{Name: "lab", Status: host.OK, Found: "QEMU, a kernel and its modules"}
	if problems == nil {
		return f
	}
	// Each problem says how to mend it.
	f.Status, f.Found = host.Warn, "not complete"
	f.Mend = errors.Join(problems...).Error()
	return f
}

// tinyBoot boots the smallest of the test guests.
func (w *world) tinyBoot(ctx context.Context) host.Finding {
	f := host.Finding{Name: "tiny guest"}
	took, err := w.bootHello(ctx)
	if err != nil {
		f.Status, f.Found = host.Missing, err.Error()
		f.Mend = "see the lines above; if they are all right, report this"
		return f
	}
	f.Status, f.Found = host.OK, fmt.Sprintf("booted and powered off in %.1f ms", float64(took)/float64(time.Millisecond))
	return f
}

func (w *world) bootHello(ctx context.Context) (time.Duration, error) {
	image, err := tiny.Image("hello")
	if err != nil {
		return 0, err
	}
	fd, err := unix.MemfdCreate("hello", unix.MFD_CLOEXEC)
	if err != nil {
		return 0, fmt.Errorf("memfd: %w", err)
	}
	defer unix.Close(fd)
	if n, err := unix.Write(fd, image); err != nil || n < len(image) {
		return 0, errors.Join(errors.New("memfd: short write"), err)
	}
	var console bytes.Buffer
	start := time.Now()
	m, err := w.newMonitor(vmm.MonitorConfig{})
	if err != nil {
		return 0, err
	}
	defer m.Close()
	g, err := m.New(vmm.Config{
		Kernel: fmt.Sprintf("/proc/self/fd/%d", fd),
		CPUs:   1, Memory: vmm.MinMemory, Console: vmm.ConsoleSerial,
		Timeout: 10 * time.Second, Stdout: &console,
	})
	if err != nil {
		return 0, err
	}
	o, err := g.Run(ctx)
	took := time.Since(start)
	switch err := errors.Join(err, g.Close()); {
	case err != nil:
		return 0, err
	case o.Kind != vmm.PoweredOff:
		return 0, fmt.Errorf("%v: %s", o.Kind, o.Reason)
	case !strings.Contains(console.String(), "hello"):
		return 0, fmt.Errorf("powered off after %q, which is not its greeting", console.String())
	}
	return took, nil
}

func printVerdict(w io.Writer, v verdict) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range v.Findings {
		fmt.Fprintf(t, "%s\t%s\t%s\n", f.Status, f.Name, oneLine(f.Found))
		if f.Mend != "" {
			for line := range strings.SplitSeq(f.Mend, "\n") {
				fmt.Fprintf(t, "\t\t→ %s\n", line)
			}
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w, map[string]string{
		"here":    "Guests run here, on this host's KVM.",
		"lab":     "Guests run in the lab, emulated.",
		"nowhere": "Guests cannot run on this host yet.",
	}[v.Guests])
	return err
}

// oneLine keeps an error of several lines in its row.
func oneLine(s string) string { return strings.ReplaceAll(s, "\n", "; ") }

func printJSON(w io.Writer, v verdict) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
