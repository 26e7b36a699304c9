package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"disco/control"
	"disco/control/metrics"
	"disco/vcpu/kvm"
	"disco/vmm"
)

// outside is how the guests of a process are seen and steered from outside.
type outside struct {
	control string // the socket's path, controlOff, or empty for one in the usual folder
	metrics string // an address, or empty
}

const controlOff = "off"

func (o *outside) flags(f *pflag.FlagSet, problems *[]error) {
	f.StringVar(&o.control, "control", "", "make the socket by which disco top and disco tickets reach this process at `PATH` (default one in "+
		"$XDG_RUNTIME_DIR/disco, or for root in /run/disco); off makes none")
	f.Var(parsed("metrics", "ADDRESS", "", &o.metrics, parseMetrics, problems), "metrics",
		"answer Prometheus at http://ADDRESS/metrics: a port, which is of 127.0.0.1, or ADDRESS:PORT, where everybody who reaches it can read (default not)")
}

// parseMetrics makes an address to listen at.
func parseMetrics(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = "", s
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", errors.New("not a port, 0 to 65535, or an address and a port, such as 127.0.0.1:9100")
	}
	host = cmp.Or(host, "127.0.0.1")
	if _, err := netip.ParseAddr(host); err != nil && host != "localhost" {
		return "", fmt.Errorf("%q is not an address", host)
	}
	return net.JoinHostPort(host, port), nil
}

// args are the flags that say the same.
func (o *outside) args() []string {
	var a []string
	if o.control != "" {
		a = append(a, "--control", o.control)
	}
	if o.metrics != "" {
		a = append(a, "--metrics", o.metrics)
	}
	return a
}

// beyondLab finds what could not be reached in the lab.
func (o *outside) beyondLab() []error {
	var problems []error
	if o.control != "" && o.control != controlOff {
		problems = append(problems, fmt.Errorf(
			"control %s: a socket made in the lab cannot be reached from here; start disco in the lab (disco lab -- …), and what uses the socket too", o.control))
	}
	if o.metrics != "" {
		problems = append(problems, fmt.Errorf(
			"metrics %s: this port of the lab cannot be reached from here; start disco by disco lab --forward, with --metrics 0.0.0.0:PORT", o.metrics))
	}
	return problems
}

// open makes what the flags ask for, until close. That the usual socket cannot be
// made is only a warning.
func (o *outside) open(w *world, m monitor, log *slog.Logger) (close func(), err error) {
	s := &source{monitor: m, start: time.Now()}
	scrape := metrics.Handler(s)
	var servers []*control.Server
	close = func() {
		for _, v := range servers {
			if err := v.Close(); err != nil {
				log.Warn("control", "error", err)
			}
		}
	}
	if o.metrics != "" {
		l, err := net.Listen("tcp", o.metrics)
		if err != nil {
			return nil, &vmm.HostError{Err: fmt.Errorf("metrics %s: %w", o.metrics, err)}
		}
		fmt.Fprintf(w.stderr, "disco: metrics at http://%s/metrics\n", l.Addr())
		mux := http.NewServeMux()
		mux.Handle("GET /metrics", scrape)
		servers = append(servers, control.Serve(l, mux, log))
	}
	l, err := o.listen(w, log)
	if err != nil {
		close()
		return nil, err
	}
	if l != nil {
		servers = append(servers, control.Serve(l, control.Handler(s, scrape), log))
	}
	return close, nil
}

func (o *outside) listen(w *world, log *slog.Logger) (net.Listener, error) {
	switch o.control {
	case controlOff:
		return nil, nil
	case "":
		dir, err := w.controlDir()
		if err != nil {
			log.Info("no control socket", "reason", err)
			return nil, nil
		}
		l, err := control.ListenIn(dir, log)
		if err != nil {
			log.Warn("no control socket, so disco top does not see this process", "error", err)
			return nil, nil
		}
		return l, nil
	}
	l, err := control.Listen(o.control, log)
	if err != nil {
		return nil, &vmm.HostError{Err: fmt.Errorf("control %s: %w", o.control, err)}
	}
	return l, nil
}

// controlDir is where the control sockets of this user are.
func controlDir() (string, error) { return control.Dir(os.Geteuid(), os.Getenv) }

// source is a monitor as its control.Handler knows it.
type source struct {
	monitor
	start time.Time
}

func (s *source) Monitor() control.Monitor {
	info, _ := debug.ReadBuildInfo()
	how := s.Scheduling()
	return control.Monitor{
		Version: control.Version, PID: os.Getpid(), Program: version(info), Uptime: uint64(time.Since(s.start)),
		Scheduler: schedulers[how.Kind], CPUs: how.CPUs, Quantum: uint64(how.Quantum),
	}
}

func (s *source) Guests() []control.Guest {
	all := []control.Guest{}
	for _, l := range s.Live() {
		all = append(all, guestOf(&l))
	}
	return all
}

func (s *source) SetTickets(name string, n int64) error {
	for _, l := range s.Live() {
		if nameOf(&l) != name {
			continue
		}
		found, err := s.monitor.SetTickets(l.Name, n)
		switch {
		case !found: // it has just gone
		case err != nil:
			return fmt.Errorf("%w%.0w", err, control.ErrRefused)
		default:
			return nil
		}
	}
	return control.ErrNoGuest
}

// nameOf is what a guest is called, also one that was given no name.
func nameOf(l *vmm.Live) string { return cmp.Or(l.Name, "guest") }

var liveStates = map[vmm.LiveState]string{
	vmm.LiveBuilt: control.Built, vmm.LiveRunning: control.Running, vmm.LiveRestarting: control.Restarting, vmm.LiveEnded: control.Ended,
}

func guestOf(l *vmm.Live) control.Guest {
	const page = 4096
	g := control.Guest{
		Name: nameOf(l), State: liveStates[l.State], Memory: l.Memory, Resident: l.Resident, Shared: l.Shared * page,
		Nodes: []int{}, VCPUs: []control.VCPU{},
	}
	for _, n := range l.Nodes {
		g.Nodes = append(g.Nodes, int(n))
	}
	g.Tickets, g.Group, g.Asked, g.Limit, g.Workers = l.Tickets, l.Group, l.Asked, l.Limit, uint64(l.Workers)
	if l.Sampled {
		g.LocalShare = &l.LocalShare
	}
	for _, t := range l.Parallel {
		g.Parallel = append(g.Parallel, uint64(t))
	}
	for id := range l.VCPUs {
		g.VCPUs = append(g.VCPUs, vcpuOf(id, l.State, &l.VCPUs[id]))
	}
	return g
}

// KVM's names of its counts of exits (Linux arch/x86/kvm/x86.c).
const (
	allExits    = "exits"
	exitsSuffix = "_exits"
)

func vcpuOf(id int, state vmm.LiveState, l *vmm.LiveVCPU) control.VCPU {
	v := control.VCPU{
		ID: id, Node: int(l.Node), State: control.Running, CPU: uint64(l.Used), Waited: uint64(l.Delayed + l.Held), Stolen: uint64(l.Delayed + l.Held),
		Asked: l.Asked, Relayed: l.Relayed, Exits: map[string]uint64{},
	}
	switch {
	case state != vmm.LiveRunning:
		v.State = control.Idle
	case l.Waiting:
		v.State = control.Waiting
	case l.Asleep:
		v.State = control.Halted
	}
	for name, n := range l.KVM {
		if name == allExits || strings.HasSuffix(name, exitsSuffix) {
			if v.KVM == nil {
				v.KVM = map[string]uint64{}
			}
			v.KVM[name] = n
		}
	}
	for e, n := range l.Exits {
		if n > 0 {
			v.Exits[kvm.Exit(e).String()] = n
		}
	}
	return v
}

// matches says whether a guest is meant by NAME, or by PID/NAME.
func matches(s *control.Snapshot, g *control.Guest, name string) bool {
	return name == g.Name || name == fullName(s, g)
}

func fullName(s *control.Snapshot, g *control.Guest) string {
	return strconv.Itoa(s.Monitor.PID) + "/" + g.Name
}

// sockets are those of the monitors to ask: the one at path, or all of this user.
func (w *world) sockets(path string) ([]string, error) {
	if path != "" {
		return []string{path}, nil
	}
	dir, err := w.controlDir()
	if err != nil {
		return nil, &vmm.HostError{Err: fmt.Errorf("control sockets: %w", err)}
	}
	paths, err := control.Sockets(dir)
	if err != nil {
		return nil, &vmm.HostError{Err: fmt.Errorf("control sockets: %w", err)}
	}
	return paths, nil
}

// names are those of guests, with process ids where several are called the same.
func names(all []*seen) []string {
	count := map[string]int{}
	for _, s := range all {
		for i := range s.Guests {
			count[s.Guests[i].Name]++
		}
	}
	var list []string
	for _, s := range all {
		for i := range s.Guests {
			name := s.Guests[i].Name
			if count[name] > 1 {
				name = fullName(s.Snapshot, &s.Guests[i])
			}
			list = append(list, name)
		}
	}
	return list
}

// seen is what a monitor answered.
type seen struct {
	*control.Snapshot
	path string // of its socket
}

// lookout asks monitors again and again.
type lookout struct {
	*world
	path    string // of one's socket, or empty for all of this user
	clients map[string]*control.Client
}

func (w *world) lookout(path string) *lookout {
	return &lookout{w, path, map[string]*control.Client{}}
}

// ask asks all monitors that there are. One that does not answer as it should is in
// trouble, and the others are asked; err is that nobody could be.
func (l *lookout) ask(ctx context.Context) (all []*seen, trouble []error, err error) {
	paths, err := l.sockets(l.path)
	if err != nil {
		return nil, nil, err
	}
	for path, c := range l.clients {
		if !slices.Contains(paths, path) {
			c.Close()
			delete(l.clients, path)
		}
	}
	for _, path := range paths {
		c := l.clients[path]
		if c == nil {
			c = control.NewClient(path)
			l.clients[path] = c
		}
		s, err := c.Guests(ctx)
		switch {
		case err == nil:
			all = append(all, &seen{s, path})
		case l.path != "":
			return nil, nil, &vmm.HostError{Err: err}
		case !control.Gone(err):
			trouble = append(trouble, err)
		}
	}
	return all, trouble, nil
}

func (l *lookout) close() {
	for _, c := range l.clients {
		c.Close()
	}
}

// snapshots asks once. What is wrong with one monitor is told.
func (w *world) snapshots(ctx context.Context, path string) ([]*seen, error) {
	l := w.lookout(path)
	defer l.close()
	all, trouble, err := l.ask(ctx)
	for _, t := range trouble {
		explain(w.stderr, t)
	}
	return all, err
}
