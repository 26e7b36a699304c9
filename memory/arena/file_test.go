package arena

import (
	"bytes"
	"testing"
)

func opened(t *testing.T, pages uint64) *Arena {
	t.Helper()
	a, err := New("test", pages*PageSize, HugeOff)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

func TestHostPresentAndPunch(t *testing.T) {
	a := opened(t, 8)
	a.Bytes()[2*PageSize] = 1
	a.Bytes()[3*PageSize] = 1
	present := func(want ...bool) {
		t.Helper()
		got := make([]bool, len(want))
		if err := a.Present(got, 1); err != nil {
			t.Fatal(err)
		}
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("present %v, want %v", got, want)
			}
		}
	}
	present(false, true, true, false)
	if err := a.Punch(2, 1); err != nil {
		t.Fatal(err)
	}
	present(false, false, true, false)
}

func TestHostLocateAndMove(t *testing.T) {
	a := opened(t, 2*Batch)
	b, err := a.Map()
	if err != nil {
		t.Fatal(err)
	}
	defer Unmap(b)
	b[0], b[(2*Batch-1)*PageSize] = 1, 1 // not by the arena's own mapping
	on := make([]int, 2*Batch)
	if err := a.Locate(on, 0); err != nil {
		t.Fatal(err)
	}
	if on[0] < 0 || on[1] != -1 || on[2*Batch-1] < 0 {
		t.Errorf("located at %d, %d, %d", on[0], on[1], on[2*Batch-1])
	}
	status := make([]int, Batch)
	if moved, err := a.Move(status, 0, on[0]); err != nil || moved != 0 || status[0] != on[0] || status[1] != -1 {
		t.Errorf("%d moved to where they are, %v; %v", moved, err, status[:2])
	}
	if _, err := a.Move(status, 0, 999); err == nil {
		t.Error("moved to no node")
	}
	if err := a.Place(Preferred, on[0]); err != nil {
		t.Error(err)
	}
	for _, n := range []int{-1, maxNodes, 999} {
		if a.Place(Interleave, n) == nil {
			t.Errorf("placed on node %d", n)
		}
	}
}

func TestHostGraft(t *testing.T) {
	a, other := opened(t, 8), opened(t, 8)
	copy(a.Bytes()[3*PageSize:], "own")
	copy(other.Bytes()[5*PageSize:], "other's")
	if err := a.Graft(3, other, 5, 1); err != nil {
		t.Fatal(err)
	}
	if got := a.Bytes()[3*PageSize:][:7]; string(got) != "other's" {
		t.Errorf("grafted: %q", got)
	}
	if err := a.Fill(3, bytes.Repeat([]byte{7}, PageSize)); err != nil {
		t.Fatal(err)
	}
	if err := a.Prune(3, 1); err != nil {
		t.Fatal(err)
	}
	if a.Bytes()[3*PageSize] != 7 || other.Bytes()[5*PageSize] != 'o' {
		t.Error("what was written did not go to the file")
	}
}

func TestHostUsers(t *testing.T) {
	a := opened(t, 8)
	a.Hold(2, 3)
	a.Hold(3, 1)
	a.Release(2, 1)
	for page, want := range []int{0, 0, 0, 2, 1, 0} {
		if n := a.Users(uint64(page)); n != want {
			t.Errorf("page %d has %d users, want %d", page, n, want)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("Release without Hold is taken")
		}
	}()
	a.Release(2, 1)
}

func TestBudget(t *testing.T) {
	var b Budget
	if b.Reserve(1) {
		t.Error("something of nothing")
	}
	b.limit.Store(10)
	if !b.Reserve(8) || b.Reserve(3) || !b.Reserve(2) || b.Used() != 10 {
		t.Errorf("%d of 10 used", b.Used())
	}
	b.Add(5) // what must be
	b.Add(-15)
	if b.Used() != 0 {
		t.Errorf("%d used in the end", b.Used())
	}
}

func TestHostMeasure(t *testing.T) {
	var b Budget
	raised, err := b.Measure(10)
	if err != nil || raised || b.Limit() < 10 {
		t.Errorf("limit %d, raised %v, %v", b.Limit(), raised, err)
	}
}
