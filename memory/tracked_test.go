package memory

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"disco/memory/arena"
	"disco/numa"
)

const page = arena.PageSize

// fakeNodes is this machine's first node, split.
func fakeNodes(t testing.TB, n int) (*numa.Topology, []numa.Node) {
	t.Helper()
	real, err := numa.Read(os.DirFS("/"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := real.Fake(n)
	if err != nil {
		t.Fatal(err)
	}
	return f, f.Nodes()
}

// tracked is a Space with Views on n fake nodes. What it took is checked to be
// back when the test ends.
func tracked(t testing.TB, n int, ram ...Range) *Space {
	t.Helper()
	topology, nodes := fakeNodes(t, n)
	return opened(t, Options{Name: "test", RAM: ram, Topology: topology, Nodes: nodes, Tracked: true, Huge: HugeOff})
}

func opened(t testing.TB, o Options) *Space {
	t.Helper()
	vmas := arena.VMAs.Used()
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		closes(t, s)
		if n := arena.VMAs.Used(); n != vmas {
			t.Errorf("%d mappings were taken from the budget and not given back", n-vmas)
		}
	})
	return s
}

// guestLoad reads through a View as a guest does. It is a system call that
// reaches through the page tables of this process: a goroutine that waits in it
// for a fault does not hold up the ones that answer it.
func guestLoad(v *View, p []byte, a GPA) error {
	return guestAccess(unix.SYS_PROCESS_VM_READV, v, p, a)
}

// guestStore writes through a View as a guest does.
func guestStore(v *View, p []byte, a GPA) error {
	return guestAccess(unix.SYS_PROCESS_VM_WRITEV, v, p, a)
}

func guestAccess(call uintptr, v *View, p []byte, a GPA) error {
	local := unix.Iovec{Base: &p[0], Len: uint64(len(p))}
	remote := unix.RemoteIovec{Base: uintptr(unsafe.Pointer(&v.window[0])) + uintptr(a), Len: len(p)}
	n, _, errno := unix.Syscall6(call, uintptr(os.Getpid()), uintptr(unsafe.Pointer(&local)), 1, uintptr(unsafe.Pointer(&remote)), 1, 0)
	if errno != 0 || int(n) != len(p) {
		return fmt.Errorf("guest access at %#x: %d of %d bytes, %v", uint64(a), n, len(p), errno)
	}
	return nil
}

func mustStore(t testing.TB, v *View, a GPA, text string) {
	t.Helper()
	if err := guestStore(v, []byte(text), a); err != nil {
		t.Fatal(err)
	}
}

func mustLoad(t testing.TB, v *View, a GPA, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if err := guestLoad(v, got, a); err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Fatalf("View %d has %q at %#x, want %q", v.index, got, uint64(a), want)
	}
}

func wantState(t testing.TB, s *Space, p PPN, want State) {
	t.Helper()
	var got [1]State
	if err := s.States(got[:], p); err != nil || got[0] != want {
		t.Fatalf("page %#x is %v, want %v (%v)", uint64(p), got[0], want, err)
	}
}

// touches collects what a Space reports.
type touches struct {
	mu   sync.Mutex
	list []Touch
}

func (l *touches) add(t Touch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, t)
}

func (l *touches) take() []Touch {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := l.list
	l.list = nil
	return list
}

// TestHostReplicateAndCollapse is a page's way round.
func TestHostReplicateAndCollapse(t *testing.T) {
	s := tracked(t, 3, Range{0, 8 * mib})
	var seen touches
	s.OnTouch(seen.add)
	const p, a = 100, GPA(100 * page)
	if err := s.WriteAt(bytes.Repeat([]byte("disco"), 4*page), a); err != nil {
		t.Fatal(err)
	}
	done, err := s.Replicate(p, 4, 1)
	if err != nil || done != 4 {
		t.Fatalf("%d replicated, %v", done, err)
	}
	wantState(t, s, p, Replicated)
	if m := s.Replicas(p); m != 1<<1 {
		t.Errorf("replicas %b", m)
	}
	if done, err := s.Replicate(p, 4, 1); err != nil || done != 0 {
		t.Errorf("%d replicated again, %v", done, err)
	}
	if done, err := s.Replicate(p, 4, 2); err != nil || done != 4 {
		t.Fatalf("%d replicated on one more node, %v", done, err)
	}
	for i := range 3 {
		mustLoad(t, s.View(i), a, "disco")
	}
	if n := s.Stats(); n.AroundFaults+n.CollapseFaults != 0 || n.Replicas[1] != 4 || n.Replicas[2] != 4 {
		t.Errorf("after reading: %+v", n)
	}
	// They are different pages that say the same.
	copies := at(s.View(1).copies.Bytes(), p, 1)
	copies[0] = 'D'
	mustLoad(t, s.View(1), a, "Disco")
	mustLoad(t, s.View(2), a, "disco")
	copies[0] = 'd'

	mustStore(t, s.View(1), a+page, "KVM")
	wantState(t, s, p, Replicated)
	wantState(t, s, p+1, Private)
	wantState(t, s, p+2, Replicated)
	for i := range 3 {
		mustLoad(t, s.View(i), a+page, "KVM")
	}
	got := make([]byte, 3)
	if err := s.ReadAt(got, a+page); err != nil || string(got) != "KVM" {
		t.Errorf("the canonical copy has %q, %v", got, err)
	}
	if list := seen.take(); len(list) != 1 || list[0] != (Touch{p + 1, 1, false, true, true}) {
		t.Errorf("touches %v", list)
	}
	if err := s.WriteAt([]byte("DMA"), a+2*page); err != nil {
		t.Fatal(err)
	}
	wantState(t, s, p+2, Private)
	for i := range 3 {
		mustLoad(t, s.View(i), a+2*page, "DMA")
	}
	if done, err := s.Collapse(0, 2048); err != nil || done != 2 {
		t.Errorf("%d collapsed, %v", done, err)
	}
	if n := s.Stats(); n.Replicated != 8 || n.Collapsed != 4 || n.CollapseFaults != 1 || n.VMAs != 0 || n.BytesCopied != 8*page {
		t.Errorf("in the end: %+v", n)
	}
	checkInvariants(t, s)
}

func TestHostGuard(t *testing.T) {
	s := tracked(t, 2, Range{0, 4 * mib})
	var seen touches
	s.OnTouch(seen.add)
	if err := s.WriteAt(make([]byte, 4*mib), 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Guard(510, 4); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		mustLoad(t, s.View(i), 511*page, "\x00\x00")
	}
	if list := seen.take(); len(list) != 0 {
		t.Errorf("reads: %v", list)
	}
	mustStore(t, s.View(1), 511*page, "x")
	mustStore(t, s.View(1), 511*page, "y")
	mustStore(t, s.View(0), 511*page, "z")
	if list := seen.take(); len(list) != 1 || list[0] != (Touch{511, 1, false, true, true}) {
		t.Errorf("stores: %v", list)
	}
	wantState(t, s, 510, Guarded)
	wantState(t, s, 511, Private)
	if done, err := s.Replicate(510, 4, 0); err != nil || done != 4 {
		t.Errorf("%d replicated, %v", done, err)
	}
	if _, err := s.Collapse(510, 4); err != nil {
		t.Fatal(err)
	}
	if err := s.Guard(0, 1024); err != nil {
		t.Fatal(err)
	}
	if err := s.Unguard(0, 1024); err != nil {
		t.Fatal(err)
	}
	before := s.Stats()
	mustStore(t, s.View(0), 7*page, "x")
	mustStore(t, s.View(1), 7*page, "x")
	if after := s.Stats(); after.Faults() != before.Faults() || len(seen.take()) != 0 {
		t.Errorf("stores to unguarded pages fault: %+v", after)
	}
	// A device's write counts as no node's.
	if err := s.Guard(20, 1); err != nil {
		t.Fatal(err)
	}
	if err := s.WriteAt([]byte("x"), 20*page); err != nil {
		t.Fatal(err)
	}
	wantState(t, s, 20, Private)
	leftover := s.Stats().LeftoverFaults
	mustStore(t, s.View(0), 20*page, "x")
	if n := s.Stats(); n.LeftoverFaults != leftover+1 || len(seen.take()) != 0 {
		t.Errorf("after a device: %+v", n)
	}
	checkInvariants(t, s)
}

func TestHostWatch(t *testing.T) {
	s := tracked(t, 2, Range{0, 4 * mib})
	var seen touches
	s.OnTouch(seen.add)
	if err := s.WriteAt(make([]byte, 4*mib), 0); err != nil {
		t.Fatal(err)
	}
	// What another node has not touched yet costs one fault for the rest of a block.
	mustLoad(t, s.View(0), 0, "\x00")
	mustLoad(t, s.View(0), 511*page, "\x00")
	mustLoad(t, s.View(0), 512*page, "\x00")
	first := seen.take()
	if n := s.Stats(); n.AroundFaults != 2 || len(first) != 2 || first[0].Watched || first[0].PPN != 0 || first[1].PPN != 512 {
		t.Errorf("first accesses: %+v, %v", n, first)
	}
	mustLoad(t, s.View(1), 0, "\x00")
	seen.take()
	for _, p := range []PPN{5, 6, 9} {
		if err := s.Watch(p, 1, 0); err != nil {
			t.Fatal(err)
		}
	}
	mustLoad(t, s.View(1), 5*page, "\x00") // nobody watches there
	mustLoad(t, s.View(0), 5*page, "\x00")
	mustLoad(t, s.View(0), 5*page, "\x00")
	mustStore(t, s.View(0), 9*page, "x")
	mustLoad(t, s.View(0), 7*page, "\x00")
	// Around watched pages, too.
	if err := arena.Drop(at(s.View(0).window, 0, 512)); err != nil {
		t.Fatal(err)
	}
	before := s.Stats().AroundFaults
	for _, p := range []GPA{0, 5, 7, 8, 511} {
		mustLoad(t, s.View(0), p*page, "\x00")
	}
	if n := s.Stats().AroundFaults - before; n != 1 {
		t.Errorf("%d faults around watched pages", n)
	}
	list := seen.take()
	if len(list) != 3 || list[2].Watched || list[2].PPN != 0 {
		t.Errorf("touches %v", list)
	}
	if list := list[:2]; len(list) != 2 || list[0].PPN != 5 || list[1].PPN != 9 || !list[0].Watched || list[0].Node != 0 || list[0].Known {
		t.Errorf("touches %v", list)
	}
	if n := s.Stats(); n.SampleFaults != 2 {
		t.Errorf("%+v", n)
	}
	if err := s.Unwatch(0, 512, 0); err != nil {
		t.Fatal(err)
	}
	mustLoad(t, s.View(0), 6*page, "\x00")
	if list := seen.take(); len(list) != 1 || list[0].Watched {
		t.Errorf("an unwatched page: %v", list)
	}
	checkInvariants(t, s)
}

func TestHostTouchOfAKnownThread(t *testing.T) {
	s := tracked(t, 2, Range{0, 2 * mib})
	var seen touches
	s.OnTouch(seen.add)
	if err := s.WriteAt(make([]byte, 2*mib), 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Watch(0, 512, 1); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		s.Threads(0, 1, 2, 3)
		s.Threads(1, unix.Gettid())
		err := guestLoad(s.View(1), make([]byte, 1), 0)
		done <- errors.Join(err, guestStore(s.View(1), make([]byte, 1), page))
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if list := seen.take(); len(list) != 2 || list[0] != (Touch{0, 1, true, false, true}) || list[1] != (Touch{1, 1, true, true, true}) {
		t.Errorf("touches %v", list)
	}
}

func TestHostPinnedPagesAreNotCopied(t *testing.T) {
	s := tracked(t, 2, Range{0, 4 * mib})
	if err := s.WriteAt(make([]byte, 4*mib), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Replicate(0, 16, 1); err != nil {
		t.Fatal(err)
	}
	pinned, err := s.Pin(nil, 4*page-8, 16, Write)
	if err != nil || len(pinned) != 1 {
		t.Fatal(err)
	}
	wantState(t, s, 3, Private)
	wantState(t, s, 4, Private)
	wantState(t, s, 5, Replicated)
	if _, err := s.Replicate(3, 2, 0); !errors.Is(err, ErrPinned) {
		t.Errorf("pinned pages replicated: %v", err)
	}
	if done, err := s.Replicate(0, 16, 0); err != nil || done != 14 {
		t.Errorf("%d of the others replicated, %v", done, err)
	}
	if err := s.Guard(3, 2); err != nil {
		t.Fatal(err)
	}
	wantState(t, s, 3, Private)
	copy(pinned[0], "0123456789abcdef")
	for i := range 2 {
		mustLoad(t, s.View(i), 4*page-8, "0123456789abcdef")
	}
	if done, err := s.Migrate(3, 2, 1); err != nil || done != 2 {
		t.Errorf("%d pinned pages moved, %v", done, err)
	}
	read, err := s.Pin(nil, 6*page, page, Read)
	if err != nil {
		t.Fatal(err)
	}
	wantState(t, s, 6, Replicated)
	mustStore(t, s.View(1), 6*page, "seen")
	if string(read[0][:4]) != "seen" {
		t.Error("a pin for reading shows an old page")
	}
	s.Unpin(6*page, page, Read)
	s.Unpin(4*page-8, 16, Write)
	if done, err := s.Replicate(3, 2, 0); err != nil || done != 2 {
		t.Errorf("%d replicated after Unpin, %v", done, err)
	}
	checkInvariants(t, s)
}

func TestHostMigrateAndLocate(t *testing.T) {
	s := tracked(t, 3, Range{0, 4 * mib})
	mustStore(t, s.View(2), 8*page, "x")
	mustStore(t, s.View(1), 9*page, "x")
	if err := s.WriteAt([]byte("x"), 10*page); err != nil {
		t.Fatal(err)
	}
	on := make([]numa.Node, 4)
	locate := func(want ...numa.Node) {
		t.Helper()
		if err := s.Locate(on, 8); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(on) != fmt.Sprint(want) {
			t.Errorf("located at %v, want %v", on, want)
		}
	}
	locate(2, 1, 0, -1)
	if done, err := s.Migrate(0, 1024, 1); err != nil || done != 2 {
		t.Errorf("%d moved, %v", done, err)
	}
	locate(1, 1, 1, -1)
	mustLoad(t, s.View(0), 8*page, "x")
	pages, err := s.PagesOn()
	if err != nil || fmt.Sprint(pages) != "[0 3 0]" {
		t.Errorf("pages on nodes %v, %v", pages, err)
	}
	if n := s.Stats(); n.Migrated != 2 {
		t.Errorf("%+v", n)
	}
	if _, err := s.Replicate(8, 3, 2); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[PPN][2]uint64{0: {2, 3}, 511: {2, 3}, 512: {0, 0}, 1 << 40: {0, 0}} {
		if moved, copied := s.Handled(p); moved != want[0] || copied != want[1] {
			t.Errorf("page %d: %d moved and %d copied in its block, want %v", p, moved, copied, want)
		}
	}
}

func TestHostPlacement(t *testing.T) {
	topology, nodes := fakeNodes(t, 2)
	for _, tt := range []struct {
		place Placement
		want  string
	}{{FirstTouch, "[0 0 0 0]"}, {Bound, "[0 0 0 0]"}, {Interleaved, "[0 1 0 1]"}} {
		s := opened(t, Options{Name: "test", RAM: []Range{{0, 2 * mib}}, Topology: topology, Nodes: nodes, Place: tt.place, Huge: HugeOff})
		if err := s.WriteAt(make([]byte, 4*page), 0); err != nil {
			t.Fatal(err)
		}
		on := make([]numa.Node, 4)
		if err := s.Locate(on, 0); err != nil || fmt.Sprint(on) != tt.want {
			t.Errorf("placement %d: %v, %v", tt.place, on, err)
		}
		if err := s.SetNode(1); err != nil {
			t.Fatal(err)
		}
		if err := s.WriteAt([]byte("x"), 5*page); err != nil {
			t.Fatal(err)
		}
		if err := s.Locate(on[:1], 5); err != nil || tt.place == Bound && on[0] != 1 {
			t.Errorf("placement %d after SetNode: %v, %v", tt.place, on[0], err)
		}
		if done, err := s.Migrate(0, 512, 1); err != nil || done == 0 {
			t.Errorf("a thin guest's pages: %d moved, %v", done, err)
		}
	}
}

func TestHostBudget(t *testing.T) {
	s := tracked(t, 2, Range{0, 4 * mib})
	if err := s.WriteAt(make([]byte, 4*mib), 0); err != nil {
		t.Fatal(err)
	}
	take := arena.VMAs.Limit() - arena.VMAs.Used() - 5
	arena.VMAs.Add(take)
	defer arena.VMAs.Add(-take)
	for p := range PPN(2) { // two mappings each
		if _, err := s.Replicate(2+p*4, 1, 1); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Replicate(40, 1, 1); !errors.Is(err, ErrBudget) {
		t.Errorf("over the budget: %v", err)
	}
	wantState(t, s, 40, Private)
	if _, err := s.Collapse(2, 1); err != nil {
		t.Fatal(err)
	}
	if done, err := s.Replicate(40, 1, 1); err != nil || done != 1 {
		t.Errorf("after a collapse: %v", err)
	}
	// What is next to another costs nothing, but that is known only afterwards.
	checkInvariants(t, s)
}

// TestHostBrokenUp has a guest break up a large replica while there are too few
// mappings for that.
func TestHostBrokenUp(t *testing.T) {
	s := tracked(t, 2, Range{0, 8 * mib})
	if err := s.WriteAt(make([]byte, 8*mib), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Replicate(0, 2048, 1); err != nil {
		t.Fatal(err)
	}
	mustStore(t, s.View(0), 700*page, "x") // as usual
	wantState(t, s, 701, Replicated)
	take := arena.VMAs.Limit() - arena.VMAs.Used() + 1
	arena.VMAs.Add(take)
	defer func() { arena.VMAs.Add(-take) }()
	mustStore(t, s.View(1), 702*page, "x")
	wantState(t, s, 1023, Private)
	wantState(t, s, 1024, Replicated)
	if err := s.WriteAt([]byte("x"), 1024*page); err != nil {
		t.Fatal(err)
	}
	wantState(t, s, 1030, Private)
	wantState(t, s, 511, Replicated)
	more := arena.VMAs.Limit()/6 + 100
	arena.VMAs.Add(more)
	take += more
	if err := s.WriteAt([]byte("x"), 1536*page); err != nil {
		t.Fatal(err)
	}
	wantState(t, s, 511, Private)
	if n := s.Stats(); n.Replicas[1] != 0 {
		t.Errorf("%+v", n)
	}
	checkInvariants(t, s)
}

// TestHostMappingsComeBack counts the kernel's mappings, not ours.
func TestHostMappingsComeBack(t *testing.T) {
	s := tracked(t, 2, Range{0, 4 * mib})
	if err := s.WriteAt(make([]byte, 4*mib), 0); err != nil {
		t.Fatal(err)
	}
	before := mappings(t)
	for p := PPN(0); p < 1024; p += 2 {
		if _, err := s.Replicate(p, 1, 0); err != nil {
			t.Fatal(err)
		}
	}
	if n := mappings(t) - before; n != 1023 || s.Stats().VMAs != 1023 {
		t.Errorf("512 scattered replicas: %d mappings more, %d in the budget", n, s.Stats().VMAs)
	}
	for p := PPN(1); p < 1024; p += 2 {
		if _, err := s.Replicate(p, 1, 0); err != nil {
			t.Fatal(err)
		}
	}
	if n := mappings(t) - before; n != 0 || s.Stats().VMAs != 0 {
		t.Errorf("all replicated: %d mappings more, %d in the budget", n, s.Stats().VMAs)
	}
	for p := PPN(0); p < 1024; p += 2 {
		mustStore(t, s.View(1), GPA(p)*page, "x")
	}
	if n := s.Reclaim(1 << 30); n != 512 {
		t.Errorf("%d reclaimed", n)
	}
	if n := mappings(t) - before; n != 0 || s.Stats().VMAs != 0 {
		t.Errorf("all collapsed: %d mappings more, %d in the budget", n, s.Stats().VMAs)
	}
	checkInvariants(t, s)
}

// mappings counts those of guest memory.
func mappings(t testing.TB) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), "/memfd:test")
}

func TestHostReclaimTakesTheOldest(t *testing.T) {
	s := tracked(t, 2, Range{0, 8 * mib})
	if err := s.WriteAt(make([]byte, 8*mib), 0); err != nil {
		t.Fatal(err)
	}
	for _, p := range []PPN{1024, 0, 512} {
		if _, err := s.Replicate(p, 10, 1); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.Reclaim(11); n != 20 {
		t.Errorf("%d reclaimed", n)
	}
	wantState(t, s, 1024, Private)
	wantState(t, s, 0, Private)
	wantState(t, s, 512, Replicated)
}

// TestHostHugePages replicates and collapses a few pages of 2 MiB ones.
func TestHostHugePages(t *testing.T) {
	topology, nodes := fakeNodes(t, 2)
	s := opened(t, Options{
		Name: "test", RAM: []Range{{0, 5 * mib}, {8 * mib, 4 * mib}}, Topology: topology, Nodes: nodes, Tracked: true, Huge: Huge2M,
	})
	pages, err := s.PagesOn()
	if err != nil || pages[0]+pages[1] != 9*mib/page {
		t.Errorf("made pages %v, %v", pages, err)
	}
	if n := hugeMapped(t); n < 8*mib {
		t.Errorf("%d bytes are mapped by huge pages", n)
	}
	if err := s.WriteAt([]byte("disco"), 2*mib); err != nil {
		t.Fatal(err)
	}
	for k := range 2 {
		mustLoad(t, s.View(k), 2*mib, "disco")
	}
	if done, err := s.Replicate(510, 5, 1); err != nil || done != 5 {
		t.Fatalf("%d replicated, %v", done, err)
	}
	mustLoad(t, s.View(1), 2*mib, "disco")
	mustStore(t, s.View(1), 2*mib, "D")
	mustLoad(t, s.View(0), 2*mib, "Disco")
	if n := hugeMapped(t); n < 8*mib {
		t.Errorf("after that %d bytes are mapped by huge pages", n)
	}
	checkInvariants(t, s)
}

// hugeMapped is how much of guest memory the monitor maps by huge pages.
func hugeMapped(t testing.TB) (n int) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var kib int
		if _, err := fmt.Sscanf(line, "ShmemPmdMapped: %d kB", &kib); err == nil {
			n += kib << 10
		}
	}
	return n
}

func TestHostBadInput(t *testing.T) {
	topology, nodes := fakeNodes(t, 2)
	ram := []Range{{0, 2 * mib}}
	many, lots := fakeNodes(t, MaxViews+1)
	for name, o := range map[string]Options{
		"unknown node":         {RAM: ram, Topology: topology, Nodes: []numa.Node{7}},
		"nodes of nothing":     {RAM: ram, Nodes: nodes},
		"twice":                {RAM: ram, Topology: topology, Nodes: []numa.Node{1, 1}},
		"bound to nothing":     {RAM: ram, Topology: topology, Place: Bound},
		"placement":            {RAM: ram, Topology: topology, Nodes: nodes, Place: 9},
		"tracked on no node":   {RAM: ram, Topology: topology, Tracked: true},
		"tracked and balanced": {RAM: ram, Topology: topology, Nodes: nodes, Tracked: true, HostBalancing: true},
		"balanced on no node":  {RAM: ram, Topology: topology, HostBalancing: true},
		"too many":             {RAM: ram, Topology: many, Nodes: lots, Tracked: true},
		"size of pages":        {RAM: ram, Huge: 9},
		"no RAM":               {Topology: topology, Nodes: nodes, Tracked: true},
	} {
		o.Name = "test"
		if s, err := Open(o); err == nil {
			s.Close()
			t.Errorf("%s: taken", name)
		}
	}

	thin := holed(t)
	if _, err := thin.Replicate(0, 1, 0); !errors.Is(err, ErrNotTracked) {
		t.Errorf("a thin Space replicates: %v", err)
	}
	if _, err := thin.Migrate(0, 1, 0); err == nil {
		t.Error("a Space without topology migrates")
	}
	s := tracked(t, 2, Range{0, mib}, Range{4 * mib, mib})
	for _, c := range []struct {
		p PPN
		n int
	}{{0, 0}, {0, -1}, {0, 257}, {256, 1}, {1000, 2}, {1 << 60, 1}, {1024, 1 << 40}} {
		_, replicate := s.Replicate(c.p, c.n, 0)
		_, migrate := s.Migrate(c.p, c.n, 0)
		_, collapse := s.Collapse(c.p, c.n)
		for name, err := range map[string]error{
			"replicate": replicate, "migrate": migrate, "collapse": collapse,
			"guard": s.Guard(c.p, c.n), "unguard": s.Unguard(c.p, c.n),
			"watch": s.Watch(c.p, c.n, 0), "unwatch": s.Unwatch(c.p, c.n, 0),
		} {
			if !errors.Is(err, ErrNotRAM) {
				t.Errorf("%s %d pages at %d: %v", name, c.n, c.p, err)
			}
		}
	}
	if _, err := s.Replicate(0, 1, 5); err == nil {
		t.Error("replicated on an unknown node")
	}
	if _, err := s.Migrate(0, 1, 5); err == nil {
		t.Error("migrated to an unknown node")
	}
	if s.Replicas(1<<40) != 0 {
		t.Error("replicas of no page")
	}
	if _, err := s.NewView(); err == nil {
		t.Error("a further View of a tracked Space")
	}
	// Pages that are not there are left alone.
	if done, err := s.Replicate(0, 256, 1); err != nil || done != 0 {
		t.Errorf("%d holes replicated, %v", done, err)
	}
	if err := s.Guard(0, 256); err != nil {
		t.Error(err)
	}
	wantState(t, s, 3, Private)
	mustStore(t, s.View(1), 0, "x")
	if n := s.Stats(); n.Faults() != 0 {
		t.Errorf("what the kernel makes first raises faults: %+v", n)
	}
}

// TestHostNoNUMA: a kernel without NUMA places nothing and migrates in the books.
func TestHostNoNUMA(t *testing.T) {
	topology, err := numa.Read(fstest.MapFS{
		"sys/devices/system/cpu/online": {Data: []byte("0-1\n")},
		"proc/meminfo":                  {Data: []byte("MemTotal: 1024 kB\nMemFree: 512 kB\n")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if topology, err = topology.Fake(2); err != nil {
		t.Fatal(err)
	}
	s := opened(t, Options{Name: "test", RAM: []Range{{0, mib}}, Topology: topology, Nodes: topology.Nodes(), Tracked: true, Place: Interleaved, Huge: HugeOff})
	if err := s.WriteAt([]byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	if done, err := s.Migrate(0, 4, 1); err != nil || done != 1 {
		t.Errorf("%d moved, %v", done, err)
	}
	if done, err := s.Replicate(0, 4, 1); err != nil || done != 1 {
		t.Errorf("%d replicated, %v", done, err)
	}
}

func TestHostProbe(t *testing.T) {
	if err := Probe(); err != nil {
		t.Error(err)
	}
}

// checkInvariants looks at everything that must agree. Nothing else runs.
func checkInvariants(t testing.TB, s *Space) {
	t.Helper()
	counted := make([]int32, len(s.blocks))
	for i := range s.blocks {
		s.blocks[i].mu.Lock() // a fault's goroutine wakes the thread before it unlocks
		counted[i] = s.blocks[i].copies.Load()
		s.blocks[i].mu.Unlock()
	}
	s.edges.Lock()
	defer s.edges.Unlock()
	copies := make([]int64, len(s.view))
	for i := range s.blocks {
		var n int32
		for p := PPN(i * blockPages); p < PPN(min((i+1)*blockPages, len(s.words))); p++ {
			w := s.word(p)
			if w&busy != 0 {
				t.Fatalf("page %#x is busy", uint64(p))
			}
			if (w.copies() != 0) != (w.state() == Replicated) || w.pins() != 0 && w.state() != Private {
				t.Fatalf("page %#x is %v with copies %b and %d pins", uint64(p), w.state(), w.copies(), w.pins())
			}
			if ok := s.frame(p) != 0; ok != (w.state() == Shared) {
				t.Fatalf("page %#x is %v and has a frame: %v", uint64(p), w.state(), ok)
			}
			for k, v := range s.view {
				if v.isAway(p) != w.has(v) {
					t.Fatalf("page %#x: View %d has it away: %v, its word %#x", uint64(p), k, v.isAway(p), uint64(w))
				}
				if w.has(v) {
					n++
					copies[k]++
					if !bytes.Equal(at(v.copies.Bytes(), p, 1), at(s.home.Bytes(), p, 1)) {
						t.Fatalf("page %#x: the copy of View %d is not equal", uint64(p), k)
					}
				}
			}
		}
		if n != counted[i] {
			t.Fatalf("block %d has %d replicas and counts %d", i, n, counted[i])
		}
	}
	for k, v := range s.view {
		if v.copied.Load() != copies[k] {
			t.Fatalf("View %d has %d replicas and counts %d", k, copies[k], v.copied.Load())
		}
		if v.copies == nil {
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstat(v.copies.FD(), &st); err != nil || st.Blocks*512 != copies[k]*page {
			t.Fatalf("the copies of View %d take %d bytes, %d pages are there (%v)", k, st.Blocks*512, copies[k], err)
		}
	}
	if n := s.seams(0, len(s.words)); n != s.vmas {
		t.Fatalf("%d seams, counted %d", n, s.vmas)
	}
}

func le(n uint64) []byte { return binary.LittleEndian.AppendUint64(nil, n) }

// TestHostStoresAreNotLost has guests on every node count, each in words of its
// own of the same pages, and devices write, while the pages are guarded, copied,
// moved and watched. Nobody must ever read less than was there before.
func TestHostStoresAreNotLost(t *testing.T) {
	const views, npages, first = 3, 24, 500 // over the edge of a block
	s := tracked(t, views, Range{0, 4 * mib})
	if err := s.WriteAt(make([]byte, npages*page), first*page); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	run := func(f func(rnd *rng) error) {
		wg.Add(1)
		seed := uint64(time.Now().UnixNano())
		go func() {
			defer wg.Done()
			rnd := &rng{seed}
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := f(rnd); err != nil {
					t.Errorf("seed %d: %v", seed, err)
					return
				}
			}
		}()
	}
	// The last column is a device's.
	count := make([][views + 1]uint64, npages)
	for k := range views {
		seen := make([][views + 1]uint64, npages)
		run(func(rnd *rng) error {
			i, who := rnd.below(npages), rnd.below(views+1)
			a := GPA(first+i) * page
			b := make([]byte, 8)
			if rnd.below(2) == 0 {
				if err := guestLoad(s.View(k), b, a+GPA(who)*8); err != nil {
					return err
				}
				n := binary.LittleEndian.Uint64(b)
				if n < seen[i][who] || who == k && n != count[i][k] {
					return fmt.Errorf("View %d read %d of counter %d of page %d after %d", k, n, who, i, max(seen[i][who], count[i][k]))
				}
				seen[i][who] = n
				return nil
			}
			count[i][k]++
			return guestStore(s.View(k), le(count[i][k]), a+GPA(k)*8)
		})
	}
	run(func(rnd *rng) error {
		i := rnd.below(npages)
		a := GPA(first+i)*page + views*8
		got, err := s.Pin(nil, a, 8, Write)
		if err != nil {
			return err
		}
		count[i][views]++
		copy(got[0], le(count[i][views]))
		s.Unpin(a, 8, Write)
		time.Sleep(50 * time.Microsecond)
		return nil
	})
	for range 2 {
		run(func(rnd *rng) error {
			p := PPN(first + rnd.below(npages))
			n := 1 + rnd.below(int(first+npages-p))
			on := numa.Node(rnd.below(views))
			var err error
			switch rnd.below(8) {
			case 0:
				err = s.Guard(p, n)
			case 1:
				_, err = s.Migrate(p, n, on)
			case 2:
				err = s.Watch(p, n, on)
			case 3:
				_, err = s.Collapse(p, n)
			case 4:
				s.Reclaim(n)
			case 5:
				err = s.Unguard(p, n)
			default:
				if _, err = s.Replicate(p, n, on); errors.Is(err, ErrPinned) {
					err = nil
				}
			}
			return err
		})
	}
	time.Sleep(3 * time.Second)
	close(stop)
	wg.Wait()
	checkInvariants(t, s)
	for i := range count {
		for who, want := range count[i] {
			for k := range views {
				mustLoad(t, s.View(k), GPA(first+i)*page+GPA(who)*8, string(le(want)))
			}
		}
	}
	t.Logf("%+v", s.Stats())
}

// rng is a small generator, so that a run can be had again by its seed.
type rng struct{ n uint64 }

func (r *rng) below(n int) int {
	r.n += 0x9e3779b97f4a7c15
	x := r.n
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return int((x ^ x>>31) % uint64(n))
}
