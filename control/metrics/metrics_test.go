package metrics

import (
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"disco/control"
)

var update = flag.Bool("update", false, "write the golden file anew")

type source []control.Guest

func (s source) Monitor() control.Monitor {
	return control.Monitor{Program: "disco (devel)", Scheduler: "stride", CPUs: 2}
}
func (s source) Guests() []control.Guest        { return s }
func (s source) SetTickets(string, int64) error { return control.ErrNoGuest }

func (s source) Folders() []control.Folder { return nil }

func (s source) Segments() []control.Segment {
	ports := []control.Port{
		{
			Name: "web", Sent: control.Traffic{Frames: 3, Bytes: 300}, Received: control.Traffic{Frames: 20, Bytes: 80000},
			Eligible: control.Traffic{Frames: 18, Bytes: 73728}, Mapped: control.Traffic{Frames: 17, Bytes: 69632},
			Copied: 10368, CopiedBy: map[string]uint64{"odd": 6272, "policy": 4096}, Dropped: map[string]uint64{"mac": 2},
		},
		{Name: "lan", Station: true, Sent: control.Traffic{Frames: 1, Bytes: 342}},
	}
	return []control.Segment{{Name: "lan0", Ports: append(ports, ports[0])}}
}

func (s source) Capture(string, int) (control.Capture, error) { return nil, control.ErrNoSegment }

var share = 0.875

var guests = source{
	{
		Name: "web", State: control.Running, Memory: 512 << 20, Resident: 100 << 20, Shared: 12 << 20, LocalShare: &share,
		Group: "front", Tickets: 300, Asked: 1.5, Limit: 1.5, Parallel: []uint64{5e8, 1e9, 2e9},
		VCPUs: []control.VCPU{
			{ID: 0, CPU: 7e9, Waited: 2e9, Stolen: 1e9, Relayed: 2, Exits: map[string]uint64{"io": 12, "mmio": 3}, KVM: map[string]uint64{"exits": 900, "halt_exits": 800}},
			{ID: 1, Node: 1, Relayed: 9, Exits: map[string]uint64{"io": 4}},
		},
	},
	{Name: "db", State: control.Built, Memory: 1 << 30},
}

func TestCollect(t *testing.T) {
	const file = "testdata/metrics.txt"
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(collector{guests})
	w := httptest.NewRecorder()
	promhttp.HandlerFor(r, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	got := w.Body.Bytes()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	problems, err := testutil.CollectAndLint(collector{guests})
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
}

// TestScrape: a scrape is answered, whatever the guests' names.
func TestScrape(t *testing.T) {
	bad := append(slices.Clone(guests), guests[0], control.Guest{Name: "\xff"})
	for _, s := range []source{guests, bad[:3], nil} {
		w := httptest.NewRecorder()
		Handler(s).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `disco_monitor_info{program="disco (devel)",scheduler="stride"} 1`) ||
			!strings.Contains(w.Body.String(), "process_resident_memory_bytes") {
			t.Errorf("%d guests: status %d, body\n%s", len(s), w.Code, w.Body)
		}
	}
	w := httptest.NewRecorder()
	if Handler(bad).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil)); w.Code != http.StatusInternalServerError {
		t.Errorf("a name that is no text: status %d", w.Code)
	}
}
