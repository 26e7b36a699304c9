package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of what a Client takes from its server.
const (
	clientTimeout = 5 * time.Second
	maxAnswer     = 64 << 20 // bytes
)

// Client asks one monitor.
type Client struct {
	path string
	http http.Client
}

// NewClient is a client of the monitor whose socket is at path. It connects when
// it is asked something. The caller must Close it.
func NewClient(path string) *Client {
	var d net.Dialer
	return &Client{path: path, http: http.Client{Timeout: clientTimeout, Transport: &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", path) },
		DisableCompression: true,
		MaxIdleConns:       1,
	}}}
}

// Path is that of the socket.
func (c *Client) Path() string { return c.path }

// Close ends the connection. A Client can be used again after it.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Error is the monitor's refusal.
type Error struct {
	Status int // of HTTP
	Text   string
}

func (e *Error) Error() string { return e.Text }

// Gone says whether err means that no monitor is at the socket any more.
func Gone(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET)
}

// Guests asks for all guests.
func (c *Client) Guests(ctx context.Context) (*Snapshot, error) {
	var s Snapshot
	if err := c.call(ctx, http.MethodGet, "/v1/guests", nil, &s); err != nil {
		return nil, err
	}
	if s.Monitor.Version != Version {
		return nil, fmt.Errorf("%s: its monitor speaks version %d of this interface, and this program %d", c.path, s.Monitor.Version, Version)
	}
	for i := range s.Guests {
		s.Guests[i].clean()
	}
	return &s, nil
}

// SetTickets gives a guest so many tickets. An *Error is the monitor's.
func (c *Client) SetTickets(ctx context.Context, name string, n int64) (*Guest, error) {
	var g Guest
	err := c.call(ctx, http.MethodPut, "/v1/guests/"+url.PathEscape(name)+"/tickets", map[string]int64{"tickets": n}, &g)
	if err != nil {
		return nil, err
	}
	g.clean()
	return &g, nil
}

func (c *Client) call(ctx context.Context, method, path string, body, into any) error {
	var b bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&b).Encode(body); err != nil {
			return err
		}
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://disco"+path, &b)
	if err != nil {
		return err
	}
	a, err := c.http.Do(r)
	if err != nil {
		return fmt.Errorf("%s: %w", c.path, err)
	}
	defer a.Body.Close()
	if a.StatusCode != http.StatusOK {
		return refusal(a)
	}
	if err := json.NewDecoder(io.LimitReader(a.Body, maxAnswer)).Decode(into); err != nil {
		return fmt.Errorf("%s: %w", c.path, err)
	}
	return nil
}

// refusal is what an answer that is no 200 says.
func refusal(a *http.Response) error {
	f := failure{a.Status}
	_ = json.NewDecoder(io.LimitReader(a.Body, maxAnswer)).Decode(&f) // the status will do
	return &Error{a.StatusCode, printable(f.Error)}
}

// unprintable is what must not come to a terminal from another process.
var unprintable = regexp.MustCompile(`[^\x20-\x7e]`)

func printable(s string) string { return unprintable.ReplaceAllString(s, "?") }

// clean makes all texts fit to be shown.
func (g *Guest) clean() {
	g.Name, g.State, g.Group = printable(g.Name), printable(g.State), printable(g.Group)
	for i := range g.VCPUs {
		v := &g.VCPUs[i]
		v.State = printable(v.State)
		cleanKeys(v.Exits)
		cleanKeys(v.KVM)
	}
}

func cleanKeys(counts map[string]uint64) {
	for name, n := range counts {
		if clean := printable(name); clean != name {
			delete(counts, name)
			counts[clean] += n
		}
	}
}

func sorted(pids []int, by map[int]string) []string {
	slices.Sort(pids)
	paths := make([]string, len(pids))
	for i, pid := range pids {
		paths[i] = by[pid]
	}
	return paths
}
