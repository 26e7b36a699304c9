package integration

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"disco/vmm"
)

// TestKVMHostile lets guests throw garbage at every port, register, structure
// and ring that there is, from two CPUs, at a monitor that has all devices. The
// monitor lives, a neighbour in the same process works on undisturbed, and the
// disk that was given read-only keeps its bytes. How the hostile guest itself
// ends is its own affair.
//
// It takes 10 s; DISCO_HOSTILE is another duration (60s), DISCO_HOSTILE_SEED
// the first seed of a run to repeat.
func TestKVMHostile(t *testing.T) {
	span := 10 * time.Second
	if s := os.Getenv("DISCO_HOSTILE"); s != "" {
		var err error
		if span, err = time.ParseDuration(s); err != nil {
			t.Fatalf("DISCO_HOSTILE: %v", err)
		}
	}
	seed := time.Now().UnixNano() & 0xffffffff
	if s := os.Getenv("DISCO_HOSTILE_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseInt(s, 10, 64); err != nil {
			t.Fatalf("DISCO_HOSTILE_SEED: %v", err)
		}
	}

	deadline := time.Now().Add(span)
	ends := map[string]int{}
	var steps uint64
	for ; time.Now().Before(deadline); seed++ {
		cfg, _ := config(t, "hostile", fmt.Sprintf("seed=%d cpus=2", seed))
		equip(t, &cfg)
		readOnly := cfg.Disks[1].Path
		kept, err := os.ReadFile(readOnly)
		if err != nil {
			t.Fatal(err)
		}
		cfg.CPUs = 2
		cfg.Timeout = min(time.Until(deadline), 5*time.Second)
		t.Logf("seed %d", seed)
		g := launch(t, cfg)
		for over := false; !over; {
			neighbour(t)
			select {
			case <-g.done:
				over = true
			case <-time.After(100 * time.Millisecond):
			}
		}
		o := g.wait()
		ends[o.Kind.String()+": "+o.Reason]++
		steps += g.guest.Report().UserspaceExit
		if now, err := os.ReadFile(readOnly); err != nil || !bytes.Equal(now, kept) {
			t.Errorf("seed %d: the read-only disk was changed (%v)", seed, err)
		}
		if err := g.guest.Close(); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		if t.Failed() {
			break
		}
	}
	neighbour(t)
	t.Logf("%d exits; the guests ended: %v", steps, ends)
}

// neighbour is another guest of the same monitor, which must not notice.
func neighbour(t *testing.T) {
	t.Helper()
	cfg, screen := config(t, "timer", "ticks=5")
	if o, _ := runs(t, cfg); o.Kind != vmm.PoweredOff || screen.String() != "timer: 5 ticks\n" {
		t.Errorf("a neighbour ended with %v (%s), console %q", o.Kind, o.Reason, screen)
	}
}
