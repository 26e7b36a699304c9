package bench

import (
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestNewBar(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   Bar
	}{
		{[]float64{7}, Bar{"x", 7, 7, 7, 1}},
		{[]float64{9, 1, 4}, Bar{"x", 4, 1, 9, 3}},
		{[]float64{9, 1, 4, 5}, Bar{"x", 4.5, 1, 9, 4}},
	} {
		if got := NewBar("x", tt.values); got != tt.want {
			t.Errorf("%v: %+v, want %+v", tt.values, got, tt.want)
		}
	}
}

func TestResult(t *testing.T) {
	r := &Result{
		Name: "boot", Setting: "on a desk",
		Series:   []Series{{Name: "Time", Unit: "s", Bars: []Bar{NewBar("disco", []float64{1, 2})}}},
		Promises: []Promise{AtMost("ratio", 0.65, 0.65), AtMost("exits", 5000, 5001)},
	}
	path := filepath.Join(t.TempDir(), "new", "boot.json")
	if err := r.Write(path); err != nil {
		t.Fatal(err)
	}
	got, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, r) {
		t.Errorf("read %+v, written %+v", got, r)
	}
	var b strings.Builder
	if err := r.Print(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"on a desk", "1.50", "≤ 0.65  got 0.65  kept", "≤ 5000  got 5001  MISSED"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in:\n%s", want, &b)
		}
	}
}

func TestShuffled(t *testing.T) {
	all := []string{"a", "b", "c", "d", "e"}
	first, again, second := Shuffled(all, 0), Shuffled(all, 0), Shuffled(all, 1)
	if !slices.Equal(first, again) {
		t.Error("a round's order changes")
	}
	if slices.Equal(first, second) {
		t.Error("two rounds have the same order")
	}
	slices.Sort(first)
	slices.Sort(second)
	if !slices.Equal(first, all) || !slices.Equal(second, all) {
		t.Errorf("rounds have %v and %v", first, second)
	}
}
