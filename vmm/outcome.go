package vmm

import "fmt"

// OutcomeKind is how a guest ended.
type OutcomeKind int

const (
	// PoweredOff is a guest that turned its machine off.
	PoweredOff OutcomeKind = iota
	// Crashed is a panic, a triple fault, or KVM giving up.
	Crashed
	// DebugExit is a guest that named its own exit code.
	DebugExit
	// TimedOut is a guest that was still there after Config.Timeout.
	TimedOut
	// Killed is a guest that its owner ended.
	Killed
)

var outcomeNames = [...]string{"powered off", "crashed", "debug exit", "timed out", "killed"}

func (k OutcomeKind) String() string { return outcomeNames[k] }

// MarshalText is String, for reports.
func (k OutcomeKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// Exit codes of a process that runs one guest, besides those of DebugExit.
const (
	ExitPoweredOff = 0
	ExitCrashed    = 1
	ExitUsage      = 2
	ExitHost       = 3
	ExitTimeout    = 124
)

// Outcome is how a guest ended and what a process that ran it returns.
type Outcome struct {
	Kind      OutcomeKind `json:"kind"`
	Code      int         `json:"code"`             // exit code
	Reason    string      `json:"reason,omitempty"` // one line, for people
	LastLines []string    `json:"last_lines,omitempty"`
}

func crashed(format string, args ...any) Outcome {
	return Outcome{Kind: Crashed, Code: ExitCrashed, Reason: fmt.Sprintf(format, args...)}
}
