package integration

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"disco/integration/guest"
	"disco/integration/lab"
	"disco/net/segment"
	"disco/vmm"
)

// TestLabNFS: one guest exports a disk by NFS, two mount it over a segment; each
// reads a file of it, writes copies, and reads those of the other, and every byte is
// compared. DISCO_NFS_MIB is how much each copies, 8 MiB if it is not set; the disk
// has room for 512 MiB in all.
func TestLabNFS(t *testing.T) {
	if os.Getenv(lab.InLab) == "" {
		t.Fatal("this test needs the lab: run it by make test-lab")
	}
	const file = 64 // MiB
	mib := 8
	if s := os.Getenv("DISCO_NFS_MIB"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			t.Fatalf("DISCO_NFS_MIB is %q", s)
		}
		mib = n
	}
	copies, bytes := 2, mib<<19
	if mib > 2*file {
		copies, bytes = mib/file, file<<20
	}
	m := newMonitor(t)
	// The segment gives its guests its second address and those that follow.
	start := func(name string, address int, words string, mode segment.Mode, disks ...vmm.Disk) (*running, *screen) {
		s := &screen{}
		return launchIn(t, m, vmm.Config{
			Name: name, Kernel: guestKernel(t), Initrd: inTree(t, "DISCO_PEER", "build/guest/peer.img"),
			Cmdline: fmt.Sprintf("quiet nohz=off sysctl.net.ipv4.tcp_tso_rtt_log=15 disco.address=10.64.0.%d disco.server=10.64.0.2 disco.bytes=%d %s", address, bytes, words),
			Console: vmm.ConsoleSerial, CPUs: 1, Memory: 256 << 20, Disks: disks, Stdout: s,
			Nets: []vmm.Net{{Kind: vmm.NetSegment, Segment: "nfs", Map: mode}},
		}), s
	}
	disk := vmm.Disk{Path: inTree(t, "DISCO_DATA", "build/guest/data.img"), Overlay: vmm.OverlayMemory}
	limit := time.Now().Add(step + time.Duration(mib)*10*time.Second)
	says := func(name string, s *screen, text string) {
		t.Helper()
		for ; !contains(s, guest.Prefix+text); time.Sleep(20 * time.Millisecond) {
			if contains(s, "result=failed") {
				t.Fatalf("%s failed:\n%s", name, tail(s.String(), 30))
			}
			if time.Now().After(limit) {
				t.Fatalf("%s: the guest does not say %q:\n%s", name, text, tail(s.String(), 30))
			}
		}
	}
	server, serverSays := start("server", 2, "disco.task=serve disco.rw=1 disco.clients=2", segment.MapAuto, disk)
	says("server", serverSays, "net=serving")
	b, bSays := start("b", 3, fmt.Sprintf("disco.task=copy disco.name=b disco.others=c disco.copies=%d", copies), segment.MapAuto)
	c, cSays := start("c", 4, fmt.Sprintf("disco.task=copy disco.name=c disco.others=b disco.copies=%d", copies), segment.MapAlways)
	says("b", bSays, "copy=done")
	says("c", cSays, "copy=done")
	says("server", serverSays, "net=left")
	for _, s := range []*screen{bSays, cSays} {
		for _, word := range []string{"copy=made", "copy=checked"} {
			if n := strings.Count(s.String(), word); n != copies {
				t.Errorf("%s %d times, want %d:\n%s", word, n, copies, tail(s.String(), 30))
			}
		}
	}
	for name, g := range map[string]*running{"server": server, "b": b, "c": c} {
		select {
		case <-g.done:
		case <-time.After(step):
			t.Fatalf("%s: the guest still runs", name)
		}
		if o := g.outcome; o.Kind != vmm.PoweredOff {
			t.Errorf("%s: the guest ended with %v %s", name, o.Kind, o.Reason)
		}
	}
	var mapped, copied uint64
	for _, s := range m.Segments() {
		for _, p := range s.Stats.Ports {
			t.Logf("%s: %+v", p.Name, p)
			mapped, copied = mapped+p.Mapped.Bytes, copied+p.Copied
		}
	}
	t.Logf("%d MiB were copied by NFS by each of two guests: %d MiB mapped, %d MiB copied by the monitor", mib, mapped>>20, copied>>20)
}
