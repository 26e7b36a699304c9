package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// maxCaptures bounds how many segments are captured for clients at once; each holds
// one of the connections.
const maxCaptures = 4

// Traffic counts frames and the bytes of them.
type Traffic struct {
	Frames uint64 `json:"frames"`
	Bytes  uint64 `json:"bytes"`
}

// Port is where a guest, or an end inside the monitor, is on a segment. Counts are
// totals since it was made, which a guest's restart does not change.
type Port struct {
	Name    string  `json:"name"`
	Station bool    `json:"station,omitempty"` // an end inside the monitor
	Sent    Traffic `json:"sent"`              // by the guest, and accepted
	// Received is what the guest was given. Of that, Eligible is frames, and bytes in
	// them, that could have been mapped as far as the sender was concerned, and Mapped
	// those that were.
	Received Traffic `json:"received"`
	Eligible Traffic `json:"eligible"`
	Mapped   Traffic `json:"mapped"`
	// Copied is bytes that the monitor copied to the guest, and CopiedBy the same by
	// the reason why.
	Copied   uint64            `json:"copied_bytes"`
	CopiedBy map[string]uint64 `json:"copied_bytes_by"`
	// Dropped is frames from or for the guest that went nowhere, by reason.
	Dropped   map[string]uint64 `json:"dropped_by"`
	Waited    uint64            `json:"waited"`    // frames for the guest that waited for its buffers
	Throttled uint64            `json:"throttled"` // frames of the guest that waited for its rate
	Paused    uint64            `json:"paused"`    // how often mapping was paused, because it did not pay
}

// Segment is a network of the monitor's guests.
type Segment struct {
	Name    string `json:"name"`
	MTU     int    `json:"mtu"`
	Subnet  string `json:"subnet"`
	Address string `json:"address"` // of its DHCP and name server
	Uplink  string `json:"uplink"`  // none, user, or tap=NAME
	Ports   []Port `json:"ports"`   // guests, in the order of their coming, then stations
}

// Segments is a monitor, its segments and what its guests share with it, in the order
// of their making.
type Segments struct {
	Monitor  Monitor   `json:"monitor"`
	Segments []Segment `json:"segments"`
	Folders  []Folder  `json:"folders,omitempty"`
}

// ErrNoSegment is a Source's that there is no segment of this name.
var ErrNoSegment = errors.New("no such segment")

// Capture is what a segment's frames are written from, as a pcapng file. WriteTo
// returns after End.
type Capture interface {
	io.WriterTo
	End()
}

func (h handler) segments(w http.ResponseWriter, _ *http.Request) {
	answer(w, Segments{Monitor: h.Monitor(), Segments: h.Segments(), Folders: h.Folders()})
}

// NoSegment says that no segment is called name, and which there are.
func NoSegment(name string, names []string) string {
	if len(names) == 0 {
		return fmt.Sprintf("no segment is called %q; there are none", name)
	}
	return fmt.Sprintf("no segment is called %q; there are %s", name, strings.Join(names, ", "))
}

// capture streams the frames of a segment until the client goes or the monitor ends.
func (h handler) capture(w http.ResponseWriter, r *http.Request) {
	snap := 0
	if text := r.URL.Query().Get("snap"); text != "" {
		var err error
		if snap, err = strconv.Atoi(text); err != nil || snap < 1 {
			refuse(w, http.StatusBadRequest, "snap=%s: it is a number of bytes, 1 or more", text)
			return
		}
	}
	select {
	case h.captures <- struct{}{}:
		defer func() { <-h.captures }()
	default:
		refuse(w, http.StatusServiceUnavailable, "%d captures are under way, and there can be no more", maxCaptures)
		return
	}
	name := r.PathValue("name")
	c, err := h.Capture(name, snap)
	switch {
	case errors.Is(err, ErrNoSegment):
		var names []string
		for _, s := range h.Segments() {
			names = append(names, s.Name)
		}
		refuse(w, http.StatusNotFound, "%s", NoSegment(name, names))
		return
	case err != nil:
		refuse(w, http.StatusInternalServerError, "%v", err)
		return
	}
	// Also when the client is gone while there is nothing to write.
	defer context.AfterFunc(r.Context(), c.End)()
	defer c.End()
	w.Header().Set("Content-Type", "application/x-pcapng")
	to := &streamer{w: w, deadlines: http.NewResponseController(w)}
	to.begin()
	// That the client is gone is its own affair.
	_, _ = c.WriteTo(to)
}

// streamer is an answer that takes as long as it likes, but no piece of which does.
type streamer struct {
	w         http.ResponseWriter
	deadlines *http.ResponseController
}

func (s *streamer) begin() {
	// Not every ResponseWriter has deadlines; then there are none to lift.
	_ = s.deadlines.SetReadDeadline(time.Time{})
}

func (s *streamer) Write(p []byte) (int, error) {
	_ = s.deadlines.SetWriteDeadline(time.Now().Add(writeTimeout))
	n, err := s.w.Write(p)
	if err == nil {
		err = s.deadlines.Flush()
	}
	return n, err
}

// Segments asks for all segments.
func (c *Client) Segments(ctx context.Context) (*Segments, error) {
	var s Segments
	if err := c.call(ctx, http.MethodGet, "/v1/segments", nil, &s); err != nil {
		return nil, err
	}
	for i := range s.Segments {
		s.Segments[i].clean()
	}
	for i := range s.Folders {
		s.Folders[i].clean()
	}
	return &s, nil
}

func (s *Segment) clean() {
	s.Name, s.Subnet, s.Address, s.Uplink = printable(s.Name), printable(s.Subnet), printable(s.Address), printable(s.Uplink)
	for i := range s.Ports {
		p := &s.Ports[i]
		p.Name = printable(p.Name)
		cleanKeys(p.CopiedBy)
		cleanKeys(p.Dropped)
	}
}

// Capture asks for the frames of a segment, as a pcapng file that ends when ctx does
// or the monitor, of at most snap bytes of each frame, 0 for all. An *Error is the
// monitor's. The caller closes the file.
func (c *Client) Capture(ctx context.Context, segment string, snap int) (io.ReadCloser, error) {
	path := "/v1/segments/" + url.PathEscape(segment) + "/capture"
	if snap > 0 {
		path += "?snap=" + strconv.Itoa(snap)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://disco"+path, nil)
	if err != nil {
		return nil, err
	}
	patient := c.http
	patient.Timeout = 0
	a, err := patient.Do(r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.path, err)
	}
	if a.StatusCode != http.StatusOK {
		defer a.Body.Close()
		return nil, refusal(a)
	}
	return a.Body, nil
}
