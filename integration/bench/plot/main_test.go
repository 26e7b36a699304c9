package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"disco/integration/bench"
)

func TestDrawFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.json")
	r := &bench.Result{Series: []bench.Series{
		{Name: "Time", Unit: "s", Bars: []bench.Bar{bench.NewBar("disco", []float64{2, 3}), bench.NewBar("another", []float64{9})}},
		{Name: "Nothing"},
	}}
	if err := r.Write(path); err != nil {
		t.Fatal(err)
	}
	if err := drawFile(path); err != nil {
		t.Fatal(err)
	}
	svg, err := os.ReadFile(strings.TrimSuffix(path, "json") + "svg")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"<svg", "Time", "disco", "another"} {
		if !strings.Contains(string(svg), want) {
			t.Errorf("no %q in the picture", want)
		}
	}
	if err := (&bench.Result{}).Write(path); err != nil {
		t.Fatal(err)
	}
	if err := drawFile(path); err == nil {
		t.Error("a picture of nothing was drawn")
	}
}
