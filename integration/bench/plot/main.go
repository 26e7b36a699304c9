// Command plot draws the results of benchmarks: RESULT.json becomes RESULT.svg,
// a row of bars for each quantity, with the least and greatest value.
package main

import (
	"fmt"
	"image/color"
	"os"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	"disco/integration/bench"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: plot RESULT.json...")
		os.Exit(2)
	}
	for _, path := range os.Args[1:] {
		if err := drawFile(path); err != nil {
			fmt.Fprintln(os.Stderr, "plot:", err)
			os.Exit(1)
		}
	}
}

const (
	width     = 24 * vg.Centimeter
	rowHeight = 0.9 * vg.Centimeter
	padding   = 2.2 * vg.Centimeter
	barWidth  = 0.5 * vg.Centimeter
)

var barColor = color.RGBA{R: 0x4c, G: 0x78, B: 0xa8, A: 0xff}

func drawFile(path string) error {
	r, err := bench.Read(path)
	if err != nil {
		return err
	}
	var plots []*plot.Plot
	var heights []vg.Length
	total := vg.Length(0)
	for _, s := range r.Series {
		if len(s.Bars) == 0 {
			continue
		}
		p, err := draft(s)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", path, s.Name, err)
		}
		h := padding + rowHeight*vg.Length(len(s.Bars))
		plots, heights, total = append(plots, p), append(heights, h), total+h
	}
	if len(plots) == 0 {
		return fmt.Errorf("%s: nothing to draw", path)
	}
	canvas := vgsvg.New(width, total)
	top := total
	for i, p := range plots {
		p.Draw(draw.Crop(draw.New(canvas), 0, -0.5*vg.Centimeter, top-heights[i], top-total))
		top -= heights[i]
	}
	out := strings.TrimSuffix(path, ".json") + ".svg"
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	_, err = canvas.WriteTo(f)
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		fmt.Println("drawn:", out)
	}
	return err
}

// draft is the plot of one quantity, its first bar at the top.
func draft(s bench.Series) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text = s.Name
	p.X.Label.Text = s.Unit
	p.X.Min = 0
	n := len(s.Bars)
	names := make([]string, n)
	values := make(plotter.Values, n)
	var spread struct {
		plotter.XYs
		plotter.XErrors
	}
	for i, b := range s.Bars {
		at := n - 1 - i
		names[at] = b.Program
		values[at] = b.Median
		spread.XYs = append(spread.XYs, plotter.XY{X: b.Median, Y: float64(at)})
		spread.XErrors = append(spread.XErrors, struct{ Low, High float64 }{b.Median - b.Min, b.Max - b.Median})
	}
	bars, err := plotter.NewBarChart(values, barWidth)
	if err != nil {
		return nil, err
	}
	bars.Horizontal = true
	bars.Color = barColor
	bars.LineStyle.Width = 0
	ranges, err := plotter.NewXErrorBars(spread)
	if err != nil {
		return nil, err
	}
	p.Add(bars, ranges)
	p.NominalY(names...)
	return p, nil
}
