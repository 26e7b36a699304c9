package segment

import "disco/net/frame"

// Traffic counts frames and their bytes, without the headers before them.
type Traffic struct {
	Frames uint64 `json:"frames"`
	Bytes  uint64 `json:"bytes"`
}

// PortStats are counts of a port or station since it was made.
type PortStats struct {
	Name string `json:"name"`
	// Sent is what was taken from the guest; Received is what it was given.
	Sent     Traffic `json:"sent"`
	Received Traffic `json:"received"`

	// Of Received: Eligible is frames with whole pages that could be mapped as far as
	// their sender is concerned, and the bytes in these. Mapped is frames of which
	// some bytes were mapped, and these bytes.
	Eligible Traffic `json:"eligible"`
	Mapped   Traffic `json:"mapped"`
	// Copied is bytes copied by the monitor for what was received, and CopiedBy the
	// same by frame.Reason. Those that are "written" were mapped at first, so Mapped
	// and Copied together are by so much more than Received.
	Copied   uint64            `json:"copied"`
	CopiedBy map[string]uint64 `json:"copiedBy"`

	// Dropped is frames from the guest that were not accepted, or for it that it
	// could not be given, by Drop.
	Dropped map[string]uint64 `json:"dropped"`
	// Waited is frames for the guest that had to wait for buffers, Throttled those
	// from it that had to wait because of its rate.
	Waited    uint64 `json:"waited"`
	Throttled uint64 `json:"throttled"`
	// Paused is how often mapping was paused, because the guest wrote to what it was
	// given.
	Paused uint64 `json:"paused"`
}

// Stats are the counts of a segment.
type Stats struct {
	Name     string      `json:"name"`
	MTU      int         `json:"mtu"`
	Ports    []PortStats `json:"ports"`    // in the order of Connect
	Stations []PortStats `json:"stations"` // ends inside the monitor
	Learned  int         `json:"learned"`  // addresses behind trusted ends, now
}

// Stats reads the counters of all that is connected.
func (s *Segment) Stats() Stats {
	t := Stats{Name: s.name, MTU: s.mtu}
	s.mu.RLock()
	t.Learned = s.table.learned
	s.mu.RUnlock()
	for _, e := range *s.ends.Load() {
		switch o := e.outlet.(type) {
		case *Port:
			t.Ports = append(t.Ports, o.Stats())
		case *Station:
			t.Stations = append(t.Stations, o.Stats())
		}
	}
	return t
}

// stats reads the counters; written is bytes.
func (e *end) stats(written uint64) PortStats {
	t := PortStats{
		Name: e.name, Sent: e.sent.read(), Received: e.received.read(), Eligible: e.eligible.read(), Mapped: e.mapped.read(),
		CopiedBy: make(map[string]uint64), Dropped: make(map[string]uint64),
		Waited: e.waited.Load(), Throttled: e.throttled.Load(),
	}
	for i := range e.copied {
		n := e.copied[i].Load()
		if frame.Reason(i) == frame.Written {
			n = written
		}
		if n > 0 {
			t.CopiedBy[frame.Reason(i).String()] = n
			t.Copied += n
		}
	}
	for i := range e.dropped {
		if n := e.dropped[i].Load(); n > 0 {
			t.Dropped[Drop(i).String()] = n
		}
	}
	return t
}
