// Package control is how other programs of the same user see and steer the guests
// of a running monitor: HTTP and JSON on a UNIX socket.
//
//	GET /v1/monitor                    Monitor
//	GET /v1/guests                     Snapshot: the Monitor, and all its guests
//	GET /v1/guests/{name}              Guest
//	PUT /v1/guests/{name}/tickets      {"tickets": 1 to 1048576}; answers with the Guest
//	GET /v1/segments                   Segments: the Monitor, and all its segments and shared folders
//	GET /v1/segments/{name}/capture    a pcapng file of what passes, with ?snap=N of N bytes of each
//	                                   frame, that ends with the connection or the monitor
//	GET /metrics                       for Prometheus
//
// An answer that is no 200 is {"error": "one line that says what is wrong"}. Counts
// are totals since the guest's last restart: who wants rates asks twice. Fields
// may be added within a version; a change of what there is makes a new one.
//
// A [Handler] answers for a [Source], which is the monitor, at a [Server]. That trusts nobody but
// its own user: the socket has mode 0600 in a folder of mode 0700, and who
// connects is asked for credentials (SO_PEERCRED) besides. Requests are bounded in
// size and time, and connections in number.
//
// Not done here: what the numbers mean and where they come from (package vmm), how
// they are shown (cmd/disco), their names for Prometheus (control/metrics).
package control

import "errors"

// Version is that of the paths and of what they carry.
const Version = 1

// Monitor is a process that runs guests.
type Monitor struct {
	Version int    `json:"version"` // of this interface
	PID     int    `json:"pid"`
	Program string `json:"program"`   // what disco version prints
	Uptime  uint64 `json:"uptime_ns"` // the clock of this answer, which never goes back
	// Scheduler divides the CPUs: stride, lottery, or host, which is the kernel by
	// itself and knows no tickets.
	Scheduler string `json:"scheduler"`
	CPUs      int    `json:"cpus"`       // of the host, on which its guests run
	Quantum   uint64 `json:"quantum_ns"` // 0 with host
}

// The states of a Guest.
const (
	Built      = "built" // and not run yet
	Running    = "running"
	Restarting = "restarting"
	Ended      = "ended"
)

// Guest is one guest of a monitor.
type Guest struct {
	Name     string `json:"name"`
	State    string `json:"state"`
	Memory   uint64 `json:"memory"`   // bytes it was given
	Resident uint64 `json:"resident"` // bytes of its own that exist
	Shared   uint64 `json:"shared"`   // bytes that it has in common with the cache or with other guests
	Nodes    []int  `json:"nodes"`    // where its vCPUs are
	// LocalShare is the part of what the guest uses that is local to its users, 0
	// to 1, by samples; nil where nothing is sampled.
	LocalShare *float64 `json:"local_share,omitempty"`

	Group   string `json:"group,omitempty"`   // whose currency its tickets are in
	Tickets int64  `json:"tickets,omitempty"` // 0 with the scheduler host
	// Asked is how many of the monitor's CPUs its tickets entitle it to while all
	// guests compete: 0.5 is half of one.
	Asked float64 `json:"asked_cpus,omitempty"`
	Limit float64 `json:"limit_cpus,omitempty"` // that it may use at most; 0 is no limit
	// Workers is the CPU time that the monitor's workers have used for it, for its disks
	// and networks, and that it pays for; 0 with the scheduler host.
	Workers uint64 `json:"workers_ns,omitempty"`

	// Parallel[i] is how long exactly i of its vCPUs ran at once; nil where nobody
	// looked.
	Parallel []uint64 `json:"parallel_ns,omitempty"`
	VCPUs    []VCPU   `json:"vcpus"`
}

// The states of a VCPU besides Running.
const (
	Waiting = "waiting" // it wants to run, and another does
	Halted  = "halted"  // by its guest, until an interrupt comes
	Idle    = "idle"    // its guest does not run
)

// VCPU is one CPU of a guest.
type VCPU struct {
	ID      int     `json:"id"`
	Node    int     `json:"node"`
	State   string  `json:"state"`
	Asked   float64 `json:"asked_cpus,omitempty"` // as in Guest
	CPU     uint64  `json:"cpu_ns"`               // that it got
	Waited  uint64  `json:"waiting_ns"`           // that it wanted to run, and did not
	Stolen  uint64  `json:"steal_ns"`             // of that, what the guest sees as steal time
	Relayed uint64  `json:"relayed_ipis"`         // interrupts from vCPUs of other nodes
	// Exits to the monitor by reason.
	Exits map[string]uint64 `json:"exits"`
	// KVM counts exits of the guest by KVM's names for them, those that stay in the
	// kernel too; exits is all of them. It is nil where KVM does not say.
	KVM map[string]uint64 `json:"kvm_exits,omitempty"`
}

// Snapshot is a monitor and its guests, in the order of their making.
type Snapshot struct {
	Monitor Monitor `json:"monitor"`
	Guests  []Guest `json:"guests"`
}

// Source is a monitor, as its Server knows it. Its methods are called from several
// goroutines.
type Source interface {
	Monitor() Monitor
	Guests() []Guest
	// SetTickets has its errors' texts told to the client. ErrNoGuest says that
	// there is none of this name, ErrRefused that the tickets cannot be had.
	SetTickets(name string, n int64) error
	Segments() []Segment
	Folders() []Folder
	// Capture begins to capture a segment, until the Capture's End. ErrNoSegment says
	// that there is none of this name.
	Capture(name string, snap int) (Capture, error)
}

// What a Source may refuse, for errors.Is.
var (
	ErrNoGuest = errors.New("no such guest")
	ErrRefused = errors.New("refused")
)
