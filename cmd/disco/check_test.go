package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"disco/host"
	"disco/vmm"
)

func TestCheck(t *testing.T) {
	cannot := []host.Finding{
		{Name: "KVM", Status: host.OK, Found: "/dev/kvm"},
		{Name: "unmodified kernels", Status: host.Missing, Found: "no", Mend: "another host"},
		{Name: "NUMA", Status: host.Warn, Found: "none", Mend: "one way\nanother way"},
	}
	labGone := []error{errors.New("QEMU is absent"), errors.New("kernel is absent")}
	greets := func(g *fakeGuest) { fmt.Fprint(g.cfg.Stdout, "hello from a tiny guest\n") }
	tests := []struct {
		name     string
		findings []host.Finding
		lab      []error
		during   func(*fakeGuest)
		outcome  vmm.Outcome
		guests   string
		code     int
		lines    []string
	}{
		{"here", runsHere, labGone, greets, vmm.Outcome{}, "here", 0,
			[]string{"ok    KVM         /dev/kvm\n", "ok    tiny guest  booted and powered off in ", "warn  lab         not complete\n",
				"                  → QEMU is absent\n                  → kernel is absent\n", "Guests run here"}},
		{"lab", cannot, nil, greets, vmm.Outcome{}, "lab", 0,
			[]string{"missing  unmodified kernels  no\n                             → another host\n",
				"→ one way\n                             → another way\n", "ok       lab ", "Guests run in the lab"}},
		{"no kvm", noKVM, nil, nil, vmm.Outcome{}, "lab", 0, []string{"missing  KVM  /dev/kvm: no such file or directory\n              → modprobe\n"}},
		{"nowhere", noKVM, labGone, nil, vmm.Outcome{}, "nowhere", 3, []string{"Guests cannot run on this host yet."}},
		{"tiny guest crashes", runsHere, labGone, nil, vmm.Outcome{Kind: vmm.Crashed, Reason: "triple fault"}, "nowhere", 3,
			[]string{"missing  tiny guest  crashed: triple fault\n"}},
		{"tiny guest is silent", runsHere, labGone, nil, vmm.Outcome{}, "nowhere", 3, []string{`missing  tiny guest  powered off after "", which is not its greeting`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, asJSON := range []bool{false, true} {
				w := newWorld(t)
				w.findings = func() []host.Finding { return tt.findings[:len(tt.findings):len(tt.findings)] }
				w.labMissing = func() []error { return tt.lab }
				w.guest.during, w.guest.outcome = tt.during, tt.outcome
				args := []string{"check"}
				if asJSON {
					args = append(args, "--json")
				}
				if code := w.disco(args...); code != tt.code {
					t.Errorf("exit code %d: %s", code, &w.err)
				}
				if asJSON {
					var v verdict
					if err := json.Unmarshal(w.out.Bytes(), &v); err != nil || v.Guests != tt.guests || len(v.Findings) <= len(tt.findings) {
						t.Errorf("got %s, %v", &w.out, err)
					}
					continue
				}
				for _, want := range tt.lines {
					if !strings.Contains(w.out.String(), want) {
						t.Errorf("got\n%swant in it\n%s", &w.out, want)
					}
				}
			}
		})
	}
}
