package traffic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"

	"disco/integration/bench/resident"
	"disco/net/segment"
	"disco/vmm"
)

// discoHost is a monitor in this process.
type discoHost struct {
	o       *Options
	program Program
	monitor *vmm.Monitor
	bridge  *bridge // for the program Tap
	guests  []*vmm.Guest
	running sync.WaitGroup
	inputs  []io.Closer
}

func newDiscoHost(o *Options, p Program) (*discoHost, error) {
	h := &discoHost{o: o, program: p}
	if p == Tap {
		b, err := newBridge(p)
		if err != nil {
			return nil, err
		}
		h.bridge = b
	}
	m, err := vmm.NewMonitor(vmm.MonitorConfig{
		Segments: []vmm.Segment{{Name: segmentName, Subnet: subnet}},
		// As QEMU's are. In the lab a quantum is as short as 0.2 ms elsewhere.
		Scheduler: vmm.SchedulerConfig{Kind: vmm.SchedulerHost},
	})
	if err != nil {
		return nil, errors.Join(err, h.close())
	}
	h.monitor = m
	return h, nil
}

func (h *discoHost) start(name, words string, server bool) (*running, error) {
	c := vmm.Config{Nets: []vmm.Net{h.net()}}
	if server {
		c.Disks = []vmm.Disk{{Path: h.o.Disk, Overlay: vmm.OverlayMemory}}
	}
	return h.boot(name, words, c)
}

// modes are the programs on a segment.
var modes = map[Program]segment.Mode{Auto: segment.MapAuto, Always: segment.MapAlways, Never: segment.MapNever}

// segmentName is that of the guests' one.
const segmentName = "bench"

// net is the network device of the next guest.
func (h *discoHost) net() vmm.Net {
	if mode, ok := modes[h.program]; ok {
		return vmm.Net{Kind: vmm.NetSegment, Segment: segmentName, Map: mode}
	}
	return vmm.Net{Kind: vmm.NetTap, Tap: h.bridge.next(), Bridge: h.bridge.name()}
}

// withFolder starts a guest that has no network but a shared folder.
func (h *discoHost) withFolder(name, words, dir string, how Reading) (*running, error) {
	f := vmm.Folder{Path: dir, Tag: folderTag, ReadOnly: true}
	if how == ByDAX {
		f.Window = vmm.DefaultWindow
	}
	return h.boot(name, words, vmm.Config{Folders: []vmm.Folder{f}})
}

// boot starts a guest with these devices.
func (h *discoHost) boot(name, words string, c vmm.Config) (*running, error) {
	r, w := io.Pipe()
	h.inputs = append(h.inputs, r, w)
	g := &running{name: name, console: newConsole(), ended: make(chan error, 1)}
	// A guest that is gone reads no more, and its host is closed after it.
	g.input = func(line string) { go func() { _, _ = io.WriteString(w, line) }() }
	c.Name, c.Kernel, c.Initrd, c.Cmdline = name, h.o.Kernel, h.o.Initrd, words
	c.Console, c.CPUs, c.Memory, c.Stdin, c.Stdout = vmm.ConsoleSerial, 1, h.o.Memory, r, g.console
	made, err := h.monitor.New(c)
	if err != nil {
		return nil, err
	}
	h.guests = append(h.guests, made)
	h.running.Go(func() {
		outcome, err := made.Run(context.Background())
		if err == nil && outcome.Kind != vmm.PoweredOff {
			err = fmt.Errorf("the guest is gone (%v %s)", outcome.Kind, outcome.Reason)
		}
		g.ended <- err
	})
	return g, nil
}

func (h *discoHost) carried() (carried, error) {
	if h.bridge != nil {
		return h.bridge.carried(1)
	}
	var c carried
	for _, s := range h.monitor.Segments() {
		for _, p := range s.Stats.Ports {
			c.Delivered += p.Received.Bytes
			c.Copied += p.Copied
			c.Mapped += p.Mapped.Bytes
			for why, n := range p.CopiedBy {
				c.by(why, n)
			}
		}
	}
	return c, nil
}

// lent takes the server's Shared pages for those of its page cache: it has no other,
// but for some that its client has sent.
func (h *discoHost) lent() (lent, held uint64) {
	if s := h.guests[0].Space(); s != nil {
		lent = s.Stats().SharedPages * pageSize
	}
	return lent, h.monitor.CacheStats().Pages * pageSize
}

// memory is what this process has of the machine's.
func (h *discoHost) memory() (uint64, error) {
	debug.FreeOSMemory() // what this program has used to get here is not the monitor's
	files, err := resident.Memfds()
	if err != nil {
		return 0, err
	}
	own, err := resident.Rollup("self")
	return files + own["Pss_Anon"], err
}

func (h *discoHost) close() error {
	for _, g := range h.guests {
		g.Kill("the benchmark is over")
	}
	for _, c := range h.inputs {
		_ = c.Close() // pipes have no errors
	}
	h.running.Wait()
	var err error
	for _, g := range h.guests {
		err = errors.Join(err, g.Close())
	}
	if h.monitor != nil {
		err = errors.Join(err, h.monitor.Close())
	}
	if h.bridge != nil {
		err = errors.Join(err, h.bridge.close())
	}
	return err
}
