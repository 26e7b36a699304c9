package segment

// Traffic counts frames and their bytes, without the headers before them.
type Traffic struct {
	Frames uint64 `json:"frames"`
	Bytes  uint64 `json:"bytes"`
}

// PortStats are counts of a port or station since it was made.
type PortStats struct {
	Name string `json:"name"`
	// Sent is what the guest sent and was accepted; Received is what it was given.
	Sent     Traffic `json:"sent"`
	Received Traffic `json:"received"`

	// Of Received: Eligible is frames with whole pages that could be mapped as far as
	// their sender was concerned, and the bytes in these. Mapped is frames of which
	// some bytes were mapped, and these bytes.
	Eligible Traffic `json:"eligible"`
	Mapped   Traffic `json:"mapped"`
	// Copied is bytes copied by the monitor to the guest, CopiedBy the same by
	// frame.Reason. Pages that were mapped and then copied because the guest wrote to
	// them are in Copied and, as "written", in CopiedBy.
	Copied   uint64            `json:"copied"`
	CopiedBy map[string]uint64 `json:"copiedBy"`

	// Dropped is frames that the guest sent and were not accepted, or that it was to
	// be given and was not, by reason.
	Dropped map[string]uint64 `json:"dropped"`
	// Waited is frames for the guest that waited until it had buffers.
	Waited uint64 `json:"waited"`
	// Throttled is frames of the guest that waited because of its rate.
	Throttled uint64 `json:"throttled"`
	// Paused is how often mapping was paused.
	Paused uint64 `json:"paused"`
}

// Stats are the counts of a segment.
type Stats struct {
	Name     string      `json:"name"`
	MTU      int         `json:"mtu"`
	Ports    []PortStats `json:"ports"`    // guests, in the order of Connect
	Stations []PortStats `json:"stations"` // ends inside the monitor
	Learned  int         `json:"learned"`  // addresses behind trusted ports and stations, now
}

// Stats reads the counters of all that is connected.
func (s *Segment) Stats() Stats { return Stats{} }
