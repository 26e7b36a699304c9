package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"disco/integration/guest"
)

// TestLabUp boots three Linux guests in one monitor, from a file. One panics; the
// others do what they have to do, and power off.
func TestLabUp(t *testing.T) {
	file, report := filepath.Join(t.TempDir(), "up.yaml"), filepath.Join(t.TempDir(), "report.json")
	if err := os.WriteFile(file, []byte(`guests:
  web:
    replicas: 2
    cpus: 1
    memory: 192M
    cmdline: disco.task=hello,net,memory=20
  bad: {cpus: 1, memory: 192M, nets: none, cmdline: disco.task=panic}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	l := disco(t, "up", "--host", "here", "--report", report, file).start()
	l.ends(1)
	for i := range 2 {
		name := fmt.Sprintf("web-%d", i+1)
		for _, want := range []string{"task=hello result=ok", "task=net result=ok", "task=memory result=ok", "end=poweroff"} {
			if !contains(&l.console, name+" | "+guest.Prefix+want) {
				t.Errorf("%s did not say %q, %s", name, want, l.stood())
			}
		}
	}
	if !contains(&l.console, "bad   | ") {
		t.Errorf("bad says nothing, %s", l.stood())
	}
	said := l.messages.String()
	if strings.Count(said, "  powered off\n") != 2 || strings.Count(said, "crashed: the guest's kernel panicked") != 1 || !strings.Contains(said, "Kernel panic - not syncing") {
		t.Errorf("disco said\n%s", said)
	}
	if b, err := os.ReadFile(report); err != nil || strings.Count(string(b), `"kind": `) != 3 {
		t.Errorf("report %s, %v", b, err)
	}
}
