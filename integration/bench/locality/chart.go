package locality

import (
	"fmt"
	"html"
	"io"
	"strings"
)

// The chart's measures, in pixels.
const (
	panelWidth, panelHeight = 420, 190
	marginLeft, marginTop   = 46, 34
	marginRight             = 14
	marginBottom            = 40
	legendHeight            = 34
	columns                 = 2
)

// colours are one for each of Policies, told apart by colour-blind people too
// (Okabe and Ito).
var colours = map[Policy]string{
	Off: "#000000", Interleave: "#999999", AutoNUMA: "#e69f00", Migrate: "#56b4e9", Replicate: "#009e73", Full: "#d55e00",
}

// Chart draws the share of local accesses over the work done, a panel for each
// workload and a line for each policy, as an SVG. It is written here and not by a
// plotting library, as it is part of the monitor's program, and their fonts would be too.
func (r *Results) Chart(w io.Writer, title string) error {
	names := r.workloads()
	rows := (len(names) + columns - 1) / columns
	width, height := columns*panelWidth, legendHeight+rows*panelHeight
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n",
		width, height, width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", width, height)
	fmt.Fprintf(&b, `<text x="%d" y="13" font-size="13">%s</text>`+"\n", marginLeft, html.EscapeString(title))
	x := marginLeft
	for _, p := range Policies {
		if !r.ran(p) {
			continue
		}
		fmt.Fprintf(&b, `<line x1="%d" y1="25" x2="%d" y2="25" stroke="%s" stroke-width="2"/><text x="%d" y="29">%s</text>`+"\n",
			x, x+18, colours[p], x+23, p)
		x += 100
	}
	for i, name := range names {
		fmt.Fprintf(&b, `<g transform="translate(%d,%d)">`+"\n", i%columns*panelWidth, legendHeight+i/columns*panelHeight)
		r.panel(&b, name)
		fmt.Fprintln(&b, `</g>`)
	}
	fmt.Fprintln(&b, `</svg>`)
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *Results) ran(p Policy) bool {
	for _, run := range r.Runs {
		if run.Policy == p {
			return true
		}
	}
	return false
}

// panel draws one workload.
func (r *Results) panel(b *strings.Builder, name string) {
	const plotWidth, plotHeight = panelWidth - marginLeft - marginRight, panelHeight - marginTop - marginBottom
	most := uint64(1)
	for _, run := range r.Runs {
		if run.Workload == name && len(run.Points) > 0 {
			most = max(most, run.Points[len(run.Points)-1].Accesses)
		}
	}
	y := func(share float64) float64 { return marginTop + plotHeight*(1-share) }
	x := func(accesses uint64) float64 { return marginLeft + plotWidth*float64(accesses)/float64(most) }
	fmt.Fprintf(b, `<text x="%d" y="%d" font-weight="bold">%s</text>`+"\n", marginLeft, marginTop-8, html.EscapeString(name))
	for _, share := range []float64{0, 0.25, 0.5, 0.75, 1} {
		fmt.Fprintf(b, `<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#dddddd"/><text x="%d" y="%.1f" text-anchor="end">%g %%</text>`+"\n",
			marginLeft, y(share), panelWidth-marginRight, y(share), marginLeft-5, y(share)+4, 100*share)
	}
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="middle">millions of accesses (%.3g in all)</text>`+"\n",
		marginLeft+plotWidth/2, panelHeight-marginBottom+28, float64(most)/1e6)
	for i := range 5 {
		at := most / 4 * uint64(i)
		fmt.Fprintf(b, `<text x="%.1f" y="%d" text-anchor="middle">%.3g</text>`+"\n", x(at), panelHeight-marginBottom+14, float64(at)/1e6)
	}
	for _, run := range r.Runs {
		if run.Workload != name || run.Before == nil {
			continue
		}
		fmt.Fprintf(b, `<polyline fill="none" stroke="%s" stroke-width="1.6" points="%.1f,%.1f`, colours[run.Policy], x(0), y(run.Before.Local()))
		for _, p := range run.Points {
			fmt.Fprintf(b, " %.1f,%.1f", x(p.Accesses), y(p.Local))
		}
		fmt.Fprintln(b, `"/>`)
	}
}
