package sched

import (
	"fmt"
	"html"
	"io"
	"strings"
)

// The chart's measures, in pixels.
const (
	panelWidth, panelHeight = 330, 200
	marginLeft, marginTop   = 46, 30
	marginRight             = 14
	marginBottom            = 40
	titleHeight             = 24
)

// colours are told apart by colour-blind people too (Okabe and Ito).
var colours = []string{"#000000", "#e69f00", "#56b4e9", "#009e73", "#d55e00", "#0072b2", "#cc79a7", "#999999"}

// Chart draws as an SVG the CPU time of each guest over the time, a row for each
// load and a panel for each policy; a dashed line is what was asked.
func (r *Results) Chart(w io.Writer) error {
	var names []string
	at := map[string]int{}
	for _, row := range r.Rows {
		if _, ok := at[row.Load]; !ok && len(row.Samples) > 0 {
			at[row.Load] = len(names)
			names = append(names, row.Load)
		}
	}
	width, height := len(Policies)*panelWidth, titleHeight+len(names)*panelHeight
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n",
		width, height, width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", width, height)
	fmt.Fprintf(&b, `<text x="%d" y="16" font-size="13">CPU time of each guest over the time (dashed: asked)</text>`+"\n", marginLeft)
	for _, row := range r.Rows {
		if len(row.Samples) == 0 {
			continue
		}
		for i, p := range Policies {
			if p == row.Policy {
				fmt.Fprintf(&b, `<g transform="translate(%d,%d)">`+"\n", i*panelWidth, titleHeight+at[row.Load]*panelHeight)
				panel(&b, &row)
				fmt.Fprintln(&b, `</g>`)
			}
		}
	}
	fmt.Fprintln(&b, `</svg>`)
	_, err := io.WriteString(w, b.String())
	return err
}

func panel(b *strings.Builder, row *Row) {
	const plotWidth, plotHeight = panelWidth - marginLeft - marginRight, panelHeight - marginTop - marginBottom
	first, last := row.Samples[0], row.Samples[len(row.Samples)-1]
	most := 1e-9
	for i := range first.Used {
		most = max(most, last.Used[i]-first.Used[i])
	}
	span := last.At - first.At
	x := func(at float64) float64 { return marginLeft + plotWidth*(at-first.At)/span }
	y := func(used float64) float64 { return marginTop + plotHeight*(1-used/most) }
	fmt.Fprintf(b, `<text x="%d" y="%d" font-weight="bold">%s, %s</text>`+"\n", marginLeft, marginTop-8, html.EscapeString(row.Load), row.Policy)
	for i := range 5 {
		part := float64(i) / 4
		fmt.Fprintf(b, `<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#dddddd"/><text x="%d" y="%.1f" text-anchor="end">%.3g s</text>`+"\n",
			marginLeft, y(part*most), panelWidth-marginRight, y(part*most), marginLeft-5, y(part*most)+4, part*most)
		fmt.Fprintf(b, `<text x="%.1f" y="%d" text-anchor="middle">%.3g s</text>`+"\n", x(first.At+part*span), panelHeight-marginBottom+14, part*span)
	}
	for i := range first.Used {
		colour := colours[i%len(colours)]
		var points, asked []string
		want, phase, since := 0.0, 0, first
		for k, s := range row.Samples {
			points = append(points, fmt.Sprintf("%.1f,%.1f", x(s.At), y(s.Used[i]-first.Used[i])))
			_, all := shares(since, s)
			asked = append(asked, fmt.Sprintf("%.1f,%.1f", x(s.At), y(want+row.Phases[phase].Want[i]*all)))
			// A phase begins where the one before ended, with a sample of its own.
			if ended := all >= row.Phases[phase].CPU-1e-6; ended && phase+1 < len(row.Phases) && k+1 < len(row.Samples) {
				want += row.Phases[phase].Want[i] * all
				phase, since = phase+1, row.Samples[k+1]
			}
		}
		fmt.Fprintf(b, `<polyline fill="none" stroke="%s" stroke-width="1" stroke-dasharray="3 3" points="%s"/>`+"\n", colour, strings.Join(asked, " "))
		fmt.Fprintf(b, `<polyline fill="none" stroke="%s" stroke-width="1.5" points="%s"/>`+"\n", colour, strings.Join(points, " "))
		fmt.Fprintf(b, `<text x="%d" y="%d" fill="%s">%s</text>`+"\n", marginLeft+6+i*34, panelHeight-8, colour, html.EscapeString(row.Names[i]))
	}
}
