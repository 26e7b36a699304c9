package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "write the golden files anew")

// fake is a monitor of two guests.
type fake struct {
	mu     sync.Mutex
	guests []Guest
	asked  int
}

func newFake() *fake {
	share := 0.875
	return &fake{guests: []Guest{
		{
			Name: "web", State: Running, Memory: 512 << 20, Resident: 100 << 20, Shared: 12 << 20, Nodes: []int{0, 1}, LocalShare: &share,
			Group: "front", Tickets: 300, Asked: 1.5, Limit: 1.5, Parallel: []uint64{5, 10, 15},
			VCPUs: []VCPU{
				{ID: 0, Node: 0, State: Running, Asked: 0.75, CPU: 7_000_000, Waited: 2_000_000, Stolen: 1_500_000, Exits: map[string]uint64{"io": 12, "mmio": 3}, KVM: map[string]uint64{"exits": 900, "halt_exits": 800}},
				{ID: 1, Node: 1, State: Halted, Asked: 0.75, Relayed: 9, Exits: map[string]uint64{}},
			},
		},
		{Name: "db", State: Built, Memory: 1 << 30, Nodes: []int{0}, VCPUs: []VCPU{}},
	}}
}

func (f *fake) Monitor() Monitor {
	return Monitor{Version: Version, PID: 4711, Program: "disco (devel)", Uptime: 60_000_000_000, Scheduler: "stride", CPUs: 2, Quantum: 10_000_000}
}

func (f *fake) Guests() []Guest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.guests)
}

func (f *fake) Folders() []Folder { return nil }

func (f *fake) Segments() []Segment {
	return []Segment{{
		Name: "lan0", MTU: 4148, Subnet: "10.64.0.0/16", Address: "10.64.0.1", Uplink: "user",
		Ports: []Port{
			{
				Name: "web", Sent: Traffic{3, 300}, Received: Traffic{20, 80000}, Eligible: Traffic{18, 73728}, Mapped: Traffic{17, 69632},
				Copied: 10368, CopiedBy: map[string]uint64{"odd": 6272, "policy": 4096}, Dropped: map[string]uint64{"mac": 2}, Waited: 1, Throttled: 4, Paused: 1,
			},
			{Name: "lan", Station: true, Sent: Traffic{1, 342}},
		},
	}}
}

func (f *fake) Capture(name string, snap int) (Capture, error) {
	if name != "lan0" {
		return nil, ErrNoSegment
	}
	return &fakeCapture{snap: snap, end: make(chan struct{})}, nil
}

// fakeCapture writes one line, and another at its end.
type fakeCapture struct {
	snap int
	once sync.Once
	end  chan struct{}
}

func (c *fakeCapture) WriteTo(w io.Writer) (int64, error) {
	n, err := fmt.Fprintf(w, "snap %d\n", c.snap)
	if err != nil {
		return int64(n), err
	}
	<-c.end
	m, err := io.WriteString(w, "end\n")
	return int64(n + m), err
}

func (c *fakeCapture) End() { c.once.Do(func() { close(c.end) }) }

func (f *fake) SetTickets(name string, n int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	if n < 1 || n > 1<<20 {
		return fmt.Errorf("%d tickets: use 1 to 1048576%.0w", n, ErrRefused)
	}
	for i := range f.guests {
		if f.guests[i].Name == name {
			f.guests[i].Tickets = n
			return nil
		}
	}
	return ErrNoGuest
}

func TestAnswers(t *testing.T) {
	h := Handler(newFake(), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "up 1\n") }))
	for path, golden := range map[string]string{"/v1/monitor": "monitor", "/v1/guests": "guests", "/v1/guests/web": "guest", "/v1/segments": "segments"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "application/json" {
			t.Errorf("%s: %d, %v", path, w.Code, w.Header())
		}
		var got bytes.Buffer
		if err := json.Indent(&got, w.Body.Bytes(), "", "  "); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join("testdata", golden+".json")
		if *update {
			if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%s: got\n%s\nwant\n%s", path, &got, want)
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK || w.Body.String() != "up 1\n" {
		t.Errorf("/metrics: %d, %q", w.Code, w.Body)
	}
}

func TestRefusals(t *testing.T) {
	for _, tt := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"GET", "/", "", 404, "nothing is at /; this is version 1"},
		{"GET", "/v2/guests", "", 404, "nothing is at"},
		{"GET", "/metrics", "", 404, "nothing is at"},
		{"GET", "/v1/guests/nobody", "", 404, `no guest is called "nobody"; there are web, db`},
		{"GET", "/v1/guests/%1b%5b2J%00", "", 404, `no guest is called "\x1b[2J\x00"`},
		{"GET", "/v1/guests/..%2f..%2fetc", "", 404, `no guest is called`},
		{"POST", "/v1/guests", "", 405, "does not take POST, but GET"},
		{"DELETE", "/v1/guests/web", "", 405, "but GET"},
		{"GET", "/v1/guests/web/tickets", "", 405, "but PUT"},
		{"POST", "/v1/segments", "", 405, "but GET"},
		{"GET", "/v1/segments/lan0", "", 404, "nothing is at"},
		{"GET", "/v1/segments/lan1/capture", "", 404, `no segment is called "lan1"; there are lan0`},
		{"GET", "/v1/segments/lan0/capture?snap=-1", "", 400, "snap=-1: it is a number of bytes"},
		{"GET", "/v1/segments/lan0/capture?snap=x", "", 400, "snap=x"},
		{"BREW", "/v1/monitor", "", 405, "does not take BREW"},
		{"PUT", "/v1/guests/web/tickets", "", 400, `the body is not {"tickets": N}`},
		{"PUT", "/v1/guests/web/tickets", "{}", 400, `the body is not {"tickets": N}`},
		{"PUT", "/v1/guests/web/tickets", "null", 400, `the body is not {"tickets": N}`},
		{"PUT", "/v1/guests/web/tickets", "5", 400, `the body is not {"tickets": N}`},
		{"PUT", "/v1/guests/web/tickets", `{"tickets": 1.5}`, 400, "the body is not"},
		{"PUT", "/v1/guests/web/tickets", `{"tickets": "5"}`, 400, "the body is not"},
		{"PUT", "/v1/guests/web/tickets", `{"tickets": 99999999999999999999}`, 400, "the body is not"},
		{"PUT", "/v1/guests/web/tickets", `{"tickets": 5, "limit": 3}`, 400, "limit"},
		{"PUT", "/v1/guests/web/tickets", `{"tickets": 5} {"tickets": 6}`, 400, "more after the object"},
		{"PUT", "/v1/guests/web/tickets", `{"tickets": 5}` + strings.Repeat(" ", 1<<20), 413, "a body of more than 4096 bytes"},
		{"PUT", "/v1/guests/web/tickets", `{"tickets": ` + strings.Repeat("5", 1<<20), 413, "a body of more than 4096 bytes"},
		{"PUT", "/v1/guests/web/tickets", strings.Repeat("[", 4000), 400, "the body is not"},
		{"PUT", "/v1/guests/web/tickets", `{"tickets": 0}`, 422, "0 tickets: use 1 to 1048576"},
		{"PUT", "/v1/guests/web/tickets", `{"tickets": -1}`, 422, "-1 tickets"},
		{"PUT", "/v1/guests/nobody/tickets", `{"tickets": 5}`, 404, "there are web, db"},
	} {
		f := newFake()
		w := httptest.NewRecorder()
		Handler(f, nil).ServeHTTP(w, httptest.NewRequest(tt.method, tt.path, strings.NewReader(tt.body)))
		var got failure
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
			t.Errorf("%s %s: answer %q: %v", tt.method, tt.path, w.Body, err)
		}
		if w.Code != tt.status || !strings.Contains(got.Error, tt.says) || strings.Contains(got.Error, "\n") {
			t.Errorf("%s %s %.30s: %d %q, want %d %q", tt.method, tt.path, tt.body, w.Code, got.Error, tt.status, tt.says)
		}
		if f.guests[0].Tickets != 300 {
			t.Errorf("%s %s %.30s: changed the tickets", tt.method, tt.path, tt.body)
		}
	}
}

// serve has f answer at a socket in a folder of the test.
func serve(t *testing.T, f Source) (dir string, s *Server) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "run")
	log := slog.New(slog.DiscardHandler)
	l, err := ListenIn(dir, log)
	if err != nil {
		t.Fatal(err)
	}
	s = Serve(l, Handler(f, nil), log)
	t.Cleanup(func() { s.Close() })
	return dir, s
}

func TestClient(t *testing.T) {
	f := newFake()
	dir, s := serve(t, f)
	for path, want := range map[string]os.FileMode{dir: 0o700, s.Path(): 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want mode %v", path, st.Mode(), err, want)
		}
	}
	paths, err := Sockets(dir)
	if err != nil || !slices.Equal(paths, []string{s.Path()}) {
		t.Fatalf("sockets %v, %v; want %s", paths, err, s.Path())
	}
	c := NewClient(paths[0])
	defer c.Close()
	for range 3 {
		got, err := c.Guests(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := Snapshot{f.Monitor(), f.Guests()}
		if a, b := fmt.Sprintf("%+v", asJSON(t, got)), fmt.Sprintf("%+v", asJSON(t, want)); a != b {
			t.Errorf("got %s, want %s", a, b)
		}
	}
	g, err := c.SetTickets(t.Context(), "web", 77)
	if err != nil || g.Tickets != 77 || f.guests[0].Tickets != 77 {
		t.Errorf("got %+v, %v", g, err)
	}
	for name, want := range map[string]int{"nobody": 404, "web/tickets": 404, "../../monitor": 404} {
		_, err := c.SetTickets(t.Context(), name, 5)
		var e *Error
		if !errors.As(err, &e) || e.Status != want {
			t.Errorf("tickets of %q: %v, want status %d", name, err, want)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(s.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
	if _, err := c.Guests(t.Context()); !Gone(err) {
		t.Errorf("after the monitor: %v", err)
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestClientDoubts: what a server says reaches nobody's terminal as it is.
func TestClientDoubts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var body string
	var status int
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		io.WriteString(w, body)
	}))
	c := NewClient(path)
	defer c.Close()
	for _, tt := range []struct {
		status     int
		body, says string
	}{
		{500, `{"error": "\u001b[2Jboo"}`, "?[2Jboo"},
		{500, "<html>", "500 Internal Server Error"},
		{200, "<html>", "invalid character"},
		{200, `{"monitor": {"version": 2}}`, "speaks version 2"},
		{200, ``, "EOF"},
	} {
		status, body = tt.status, tt.body
		if _, err := c.Guests(context.Background()); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%q: got %v, want %q", tt.body, err, tt.says)
		}
	}
	status, body = 200, `{"monitor": {"version": 1}, "guests": [{"name": "\u001b[2J", "state": "\u0007", "vcpus": [{"exits": {"\u001bio": 3}}]}]}`
	s, err := c.Guests(context.Background())
	if err != nil || s.Guests[0].Name != "?[2J" || s.Guests[0].State != "?" || s.Guests[0].VCPUs[0].Exits["?io"] != 3 {
		t.Errorf("got %+v, %v", s, err)
	}
}

// TestSlowClients: those who say nothing keep nobody else from being served.
func TestSlowClients(t *testing.T) {
	_, s := serve(t, newFake())
	var slow []net.Conn
	for range maxConnections - 1 {
		c, err := net.Dial("unix", s.Path())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "PUT /v1/guests/web/tickets HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\n{")
		slow = append(slow, c)
	}
	c := NewClient(s.Path())
	defer c.Close()
	if _, err := c.Guests(t.Context()); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	for _, c := range slow {
		if b, err := io.ReadAll(c); err == nil && bytes.Contains(b, []byte("200 OK")) {
			t.Errorf("half a request was answered: %s", b)
		}
	}
}

// TestGarbage: no request, or half of one, or too large a header.
func TestGarbage(t *testing.T) {
	_, s := serve(t, newFake())
	for _, text := range []string{
		"\x00\xff\x16\x03\x01", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n",
		"GET /v1/guests HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n",
		"PUT /v1/guests/web/tickets HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
	} {
		c, err := net.Dial("unix", s.Path())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, text) // it may not want all of it
		c.(*net.UnixConn).CloseWrite()
		if b, _ := io.ReadAll(c); bytes.Contains(b, []byte("200 OK")) {
			t.Errorf("%.20q: answer %s", text, b)
		}
		c.Close()
	}
	c := NewClient(s.Path())
	defer c.Close()
	if _, err := c.Guests(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestListenIn(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	log := slog.New(slog.DiscardHandler)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	// What a killed monitor leaves, one that runs, and what is none of ours.
	leave := func(name string) string {
		path := filepath.Join(dir, name)
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		l.Close()
		return path
	}
	stale, other := leave("1.sock"), leave("other.sock")
	living, err := net.Listen("unix", filepath.Join(dir, "2.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer living.Close()
	file := filepath.Join(dir, "3.sock")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := ListenIn(dir, log)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := os.Lstat(stale); err == nil {
		t.Error("what a killed monitor left is there")
	}
	for _, path := range []string{other, living.Addr().String(), file, l.Addr().String()} {
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	}
	if _, err := ListenIn(dir, log); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a second socket of one process: %v", err)
	}
	got, err := Sockets(dir)
	if want := []string{living.Addr().String(), l.Addr().String()}; err != nil || !slices.Equal(got, want) {
		t.Errorf("sockets %v, %v; want %v", got, err, want)
	}
	if got, err := Sockets(filepath.Join(dir, "absent")); err != nil || len(got) != 0 {
		t.Errorf("no folder: %v, %v", got, err)
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	path := filepath.Join(dir, "s")
	for range 2 { // the second finds what the first left
		l, err := Listen(path, log)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(path, log); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("a socket that is listened at was taken: %v", err)
		}
		l.(*listener).SetUnlinkOnClose(false)
		l.Close()
	}
	os.Remove(path)
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path, log); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a file was taken for a socket: %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("the file holds %q, %v", b, err)
	}
	if _, err := Listen(filepath.Join(dir, "absent", "s"), log); err == nil {
		t.Error("a socket in a folder that is not there")
	}
}

func TestFolders(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	open := filepath.Join(t.TempDir(), "open")
	if err := errors.Join(os.Mkdir(open, 0o700), os.Chmod(open, 0o750)); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenIn(open, log); err == nil || !strings.Contains(err.Error(), "chmod 700") {
		t.Errorf("a folder for others: %v", err)
	}
	private := t.TempDir()
	if err := os.Chmod(private, 0o700); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(private, link); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenIn(link, log); err == nil {
		t.Error("a link was followed")
	}
	if _, err := ListenIn(filepath.Join(private, "absent", "disco"), log); err == nil {
		t.Error("a folder was made in one that is not there")
	}
	env := func(v string) func(string) string { return func(string) string { return v } }
	for _, tt := range []struct {
		uid       int
		env, want string
	}{{0, "/run/user/7", "/run/disco"}, {7, "/run/user/7", "/run/user/7/disco"}, {7, "", ""}, {7, "relative", ""}} {
		got, err := Dir(tt.uid, env(tt.env))
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("user %d, %q: %q, %v; want %q", tt.uid, tt.env, got, err, tt.want)
		}
	}
}

// TestStranger: a connection of another user is refused.
func TestStranger(t *testing.T) {
	dir, s := serve(t, newFake())
	s.Close()
	l, err := ListenIn(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	l.(*listener).uid++ // so that we are the stranger
	s = Serve(l, Handler(newFake(), nil), slog.New(slog.DiscardHandler))
	defer s.Close()
	c := NewClient(s.Path())
	defer c.Close()
	if s, err := c.Guests(t.Context()); err == nil {
		t.Errorf("got %+v", s)
	}
}

// FuzzTickets: no body changes tickets but the right one.
func FuzzTickets(f *testing.F) {
	for _, s := range []string{`{"tickets": 5}`, `{}`, ``, `{"tickets": null}`, `{"tickets": 5, "tickets": 0}`, `[`, `{"tickets": 1e3}`, "\xff", `{"Tickets":7}`} {
		f.Add("web", s)
	}
	f.Fuzz(func(t *testing.T, name, body string) {
		fake := newFake()
		r := httptest.NewRequest(http.MethodPut, "/v1/guests/x/tickets", strings.NewReader(body))
		r.SetPathValue("name", name)
		w := httptest.NewRecorder()
		handler{fake, nil}.tickets(w, r)
		if !json.Valid(w.Body.Bytes()) {
			t.Errorf("answer %q", w.Body)
		}
		if n := fake.guests[0].Tickets; (w.Code == http.StatusOK) != (fake.asked == 1 && n >= 1) && n != 300 || n < 1 {
			t.Errorf("status %d, %d tickets", w.Code, n)
		}
	})
}
