package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"disco/control"
	"disco/integration/guest"
	"disco/net/capture"
	"disco/vmm"
)

// TestLabSegment: three stock guests on a segment get the addresses and names that are
// theirs, find each other by name, move some MB that are checked, and reach the host by
// the segment's uplink. Meanwhile what passes is counted and captured.
func TestLabSegment(t *testing.T) {
	const size = 4 << 20
	served, body := page(t, "127.0.0.1:0")
	dir := t.TempDir()
	file, socket, captured := filepath.Join(dir, "up.yaml"), filepath.Join(dir, "control"), filepath.Join(dir, "c.pcapng")
	if err := os.WriteFile(file, fmt.Appendf(nil, `segments:
  lan0: {uplink: user}
guests:
  a: {cpus: 1, memory: 192M, nets: segment=lan0, cmdline: "disco.task=net,http-serve=80"}
  b: {cpus: 2, memory: 192M, nets: segment=lan0, cmdline: "disco.task=net,ping=a,http-pattern=a:80/%[1]d,wait-button"}
  c: {cpus: 1, memory: 192M, nets: "segment=lan0,map=never", cmdline: "disco.task=net,http-get=http://10.64.0.1:%[2]d/,http-pattern=A.lan0.disco.internal:80/%[1]d,wait-button"}
`, size, served), 0o600); err != nil {
		t.Fatal(err)
	}
	l := disco(t, "up", "--host", "here", "--control", socket, file).start()
	for end := time.Now().Add(step); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(socket); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatalf("no control socket: %v, %s", err, l.stood())
		}
	}
	watcher := disco(t, "capture", "--control", socket, "lan0", "-w", captured, "--snap", "200").start()

	l.saysTimes(2, guest.Prefix+"waiting=button")
	stats := disco(t, "stats", "--control", socket, "--json").start()
	stats.ends(0)
	if err := unix.Kill(l.cmd.Process.Pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	l.ends(0)
	if n := strings.Count(l.console.String(), "task=http-pattern result=ok"); n != 2 {
		t.Errorf("%d guests fetched what they should, %s", n, l.stood())
	}
	for i, name := range []string{"a", "b", "c"} {
		if want := fmt.Sprintf("address=10.64.0.%d/16 gateway=10.64.0.1 dns=10.64.0.1", 2+i); !strings.Contains(l.console.String(), name+" | "+guest.Prefix+"net=eth0 ") ||
			!strings.Contains(l.console.String(), want) {
			t.Errorf("%s has no address %s, %s", name, want, l.stood())
		}
	}
	for _, want := range []string{"b | " + guest.Prefix + "ping=PING a (10.64.0.2)", "c | " + guest.Prefix + "http-body=" + strings.SplitN(body, "\n", 2)[0]} {
		if !strings.Contains(l.console.String(), want) {
			t.Errorf("nobody said %q, %s", want, l.stood())
		}
	}
	if n := strings.Count(l.console.String(), fmt.Sprintf("http-pattern=a:80 bytes=%d", size)); n != 1 {
		t.Errorf("b fetched %d patterns, %s", n, l.stood())
	}

	var all []control.Segments
	if err := json.Unmarshal([]byte(stats.console.String()), &all); err != nil || len(all) != 1 || len(all[0].Segments) != 1 {
		t.Fatalf("stats %s, %v", &stats.console, err)
	}
	for _, p := range all[0].Segments[0].Ports {
		var sum uint64
		for _, n := range p.CopiedBy {
			sum += n
		}
		t.Logf("%+v", p)
		if sum != p.Copied || p.Copied+p.Mapped.Bytes < p.Received.Bytes && !p.Station {
			t.Errorf("%s: %d bytes are copied for reasons, %d in all, %d mapped, %d received", p.Name, sum, p.Copied, p.Mapped.Bytes, p.Received.Bytes)
		}
		switch {
		case (p.Name == "b" || p.Name == "c") && p.Received.Bytes < size:
			t.Errorf("%s received %d bytes, and fetched %d", p.Name, p.Received.Bytes, size)
		case p.Name == "c" && p.Mapped.Bytes > 0:
			t.Errorf("%d bytes were mapped into c, which said never", p.Mapped.Bytes)
		}
	}

	watcher.ends(0)
	f, err := os.Open(captured)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	var whole counter
	n, err := capture.Copy(&whole, f)
	if err != nil || int64(whole) != st.Size() || n.Frames < 2*size/(64<<10) {
		t.Errorf("of %d bytes captured %d can be read, with %+v, %v", st.Size(), whole, n, err)
	}
	if _, err := os.Stat(socket); err == nil {
		t.Error("the control socket is left")
	}
	if err := unix.Kill(-l.cmd.Process.Pid, 0); err == nil {
		t.Error("processes are left")
	}
}

// TestKVMSegments: guests come to segments and go, whatever becomes of them, and their
// monitor ends with them; what cannot be is refused before a guest runs.
func TestKVMSegments(t *testing.T) {
	m, err := vmm.NewMonitor(vmm.MonitorConfig{Segments: []vmm.Segment{{Name: "lan0", MTU: 9000, Uplink: vmm.UplinkUser}, {Name: "lan1"}}})
	if err != nil {
		t.Fatal(err)
	}
	on := func(name, kernel string, nets ...vmm.Net) vmm.Config {
		cfg, _ := config(t, kernel, "")
		cfg.Name, cfg.Memory, cfg.Nets = name, 32<<20, nets
		return cfg
	}
	net := func(segment string) vmm.Net { return vmm.Net{Kind: vmm.NetSegment, Segment: segment} }
	ports := func() string {
		var all []string
		for _, s := range m.Segments() {
			for _, p := range s.Stats.Ports {
				all = append(all, s.Name+":"+p.Name)
			}
		}
		return strings.Join(all, " ")
	}
	a := launchIn(t, m, on("a", "halt", net("lan0"), net("lan1"), net("lan0")))
	b := launchIn(t, m, on("b", "halt", net("lan0"), net("made")))
	if got, want := ports(), "lan0:a lan0:a/1 lan0:b lan1:a made:b"; got != want {
		t.Errorf("ports %s, want %s", got, want)
	}
	if o := runsIn(t, m, on("c", "panic", net("lan0"))); o.Kind != vmm.Crashed {
		t.Errorf("c ends with %v", o)
	}
	wide := net("lan0")
	wide.MTU = 1500
	if g, err := m.New(on("d", "halt", wide)); err == nil || !strings.Contains(err.Error(), "its MTU is 9000, and 1500 is asked for") {
		t.Errorf("another MTU: %v", err)
		g.Close()
	}
	for _, g := range []*running{a, b} {
		g.guest.Kill("enough")
		g.wait()
		if err := g.guest.Close(); err != nil {
			t.Error(err)
		}
	}
	if got := ports(); got != "" {
		t.Errorf("ports %s are left", got)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	_, err = vmm.NewMonitor(vmm.MonitorConfig{Segments: []vmm.Segment{{Name: "lan0", Uplink: vmm.UplinkTap, Tap: "lo"}}})
	if _, ok := errors.AsType[*vmm.HostError](err); !ok || !strings.Contains(err.Error(), "segment lan0: tap lo: ") {
		t.Errorf("an uplink that is no tap: %v", err)
	}
}

// counter counts what is written.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}
