package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/docker/go-units"
)

// topRow is a line of the table: a guest, or one of its vCPUs.
type topRow struct {
	m *topMonitor
	g *topGuest
	v *topVCPU // nil for the guest itself
}

func (r *topRow) use() *topUse {
	if r.v != nil {
		return &r.v.topUse
	}
	return &r.g.topUse
}

// topColumn is a column of the table.
type topColumn struct {
	title string
	width int
	drop  int // where the line is too long, the column of the highest goes first
	text  func(*topRow) string
}

// rateColumn is one that has nothing to say at the first look.
func rateColumn(title string, width, drop int, text func(*topRow) string) topColumn {
	return topColumn{title, width, drop, func(r *topRow) string {
		if r.use().fresh {
			return "-"
		}
		return text(r)
	}}
}

// guestColumn is one that vCPUs do not have.
func guestColumn(title string, width, drop int, text func(*topGuest) string) topColumn {
	return topColumn{title, width, drop, func(r *topRow) string {
		if r.v != nil {
			return ""
		}
		return text(r.g)
	}}
}

func percent(share float64) string { return fmt.Sprintf("%.1f %%", 100*share) }

func hundredths(cpus float64) string { return fmt.Sprintf("%.1f", 100*cpus) }

// The first column is the name, which takes what the others leave.
var topColumns = []topColumn{
	{"PID", 7, 9, func(r *topRow) string {
		if r.v != nil {
			return ""
		}
		return strconv.Itoa(r.m.PID)
	}},
	{"STATE", 10, 6, func(r *topRow) string { return r.use().State }},
	guestColumn("TICKETS", 7, 2, func(g *topGuest) string {
		if g.Tickets == 0 {
			return "-"
		}
		return strconv.FormatInt(g.Tickets, 10)
	}),
	{"ASKED%", 6, 1, func(r *topRow) string {
		if r.use().Asked == 0 {
			return "-"
		}
		return hundredths(r.use().Asked)
	}},
	rateColumn("GOT%", 6, 0, func(r *topRow) string { return hundredths(r.use().Got) }),
	rateColumn("WAIT%", 6, 1, func(r *topRow) string { return hundredths(r.use().Waiting) }),
	rateColumn("STEAL%", 6, 5, func(r *topRow) string { return hundredths(r.use().Steal) }),
	rateColumn("EXITS/S", 8, 4, func(r *topRow) string { return fmt.Sprintf("%.0f", r.use().exits()) }),
	guestColumn("TLP", 5, 3, func(g *topGuest) string {
		if len(g.Parallel) == 0 {
			return "-"
		}
		return fmt.Sprintf("%.2f", g.TLP)
	}),
	guestColumn("LOCAL%", 6, 7, func(g *topGuest) string {
		if g.LocalShare == nil {
			return "-"
		}
		return hundredths(*g.LocalShare)
	}),
	guestColumn("SHARED", 8, 8, func(g *topGuest) string { return units.BytesSize(float64(g.Shared)) }),
	{"NODES", 6, 10, func(r *topRow) string {
		if r.v != nil {
			return strconv.Itoa(r.v.Node)
		}
		return joined(r.g.Nodes)
	}},
}

func joined(nodes []int) string {
	var words []string
	for _, n := range nodes {
		words = append(words, strconv.Itoa(n))
	}
	return strings.Join(words, ",")
}

const minName, maxName = 8, 64

// topTable is a header and a line for each row, of at most width characters; 0 is
// no bound.
func topTable(rows []topRow, width int) (header string, lines []string) {
	longest := len("GUEST")
	names := make([]string, len(rows))
	for i := range rows {
		names[i] = rows[i].g.Name
		if v := rows[i].v; v != nil {
			names[i] = fmt.Sprintf("  vCPU %d", v.ID)
		}
		longest = max(longest, utf8.RuneCountInString(names[i]))
	}
	longest = min(longest, maxName)
	columns := slices.Clone(topColumns)
	taken := func() (n int) {
		for _, c := range columns {
			n += 1 + c.width
		}
		return n
	}
	for width > 0 && len(columns) > 0 && min(longest, minName)+taken() > width {
		worst := slices.MaxFunc(columns, func(a, b topColumn) int { return cmp.Compare(a.drop, b.drop) })
		columns = slices.DeleteFunc(columns, func(c topColumn) bool { return c.title == worst.title })
	}
	if width > 0 {
		longest = min(longest, max(0, width-taken()))
	}
	line := func(name string, text func(*topColumn) string) string {
		var b strings.Builder
		b.WriteString(fit(name, longest))
		for i := range columns {
			s := text(&columns[i])
			fmt.Fprintf(&b, " %*s", columns[i].width, fit(s, min(columns[i].width, utf8.RuneCountInString(s))))
		}
		return strings.TrimRight(b.String(), " ")
	}
	header = line("GUEST", func(c *topColumn) string { return c.title })
	for i := range rows {
		lines = append(lines, line(names[i], func(c *topColumn) string { return c.text(&rows[i]) }))
	}
	return header, lines
}

// fit makes s n characters long.
func fit(s string, n int) string {
	switch c := utf8.RuneCountInString(s); {
	case n <= 0:
		return ""
	case c > n:
		return string([]rune(s)[:n-1]) + "…"
	default:
		return s + strings.Repeat(" ", n-c)
	}
}

// cut makes s at most n characters long; 0 is no bound.
func cut(s string, n int) string {
	if n <= 0 || utf8.RuneCountInString(s) <= n {
		return s
	}
	return fit(s, n)
}

// topOrder is what rows can be sorted by.
type topOrder struct {
	name string
	less func(a, b *topRow) int
}

// most puts the largest first.
func most(f func(*topRow) float64) func(a, b *topRow) int {
	return func(a, b *topRow) int { return cmp.Compare(f(b), f(a)) }
}

// The first is what top begins with.
var topOrders = []topOrder{
	{"got", most(func(r *topRow) float64 { return r.g.Got })},
	{"asked", most(func(r *topRow) float64 { return r.g.Asked })},
	{"wait", most(func(r *topRow) float64 { return r.g.Waiting })},
	{"steal", most(func(r *topRow) float64 { return r.g.Steal })},
	{"exits", most(func(r *topRow) float64 { return r.g.exits() })},
	{"tlp", most(func(r *topRow) float64 { return r.g.TLP })},
	{"name", func(a, b *topRow) int { return cmp.Compare(a.g.Name, b.g.Name) }},
}

// rows are all guests in an order, with their vCPUs if these are wanted.
func (l *topLook) rows(by topOrder, vcpus bool) []topRow {
	var guests []topRow
	for i := range l.Monitors {
		m := &l.Monitors[i]
		for j := range m.Guests {
			guests = append(guests, topRow{m: m, g: &m.Guests[j]})
		}
	}
	slices.SortStableFunc(guests, func(a, b topRow) int { return by.less(&a, &b) })
	if !vcpus {
		return guests
	}
	var all []topRow
	for _, r := range guests {
		all = append(all, r)
		for i := range r.g.VCPUs {
			all = append(all, topRow{r.m, r.g, &r.g.VCPUs[i]})
		}
	}
	return all
}

// title says in one line what there is.
func (l *topLook) title() string {
	guests, vcpus := 0, 0
	var how []string
	for i := range l.Monitors {
		m := &l.Monitors[i]
		guests += len(m.Guests)
		for j := range m.Guests {
			vcpus += len(m.Guests[j].VCPUs)
		}
		s := m.Scheduler
		if m.Quantum > 0 {
			s += " " + time.Duration(m.Quantum*1e9).String()
		}
		if s += fmt.Sprintf(" on %s", count(m.CPUs, "CPU")); !slices.Contains(how, s) {
			how = append(how, s)
		}
	}
	s := fmt.Sprintf("%s, %s, %s", count(len(l.Monitors), "monitor"), count(guests, "guest"), count(vcpus, "vCPU"))
	if how != nil {
		s += "; " + strings.Join(how, ", ")
	}
	return s
}

func count(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}

// details are what does not fit into the table: exits by reason, and how many
// vCPUs ran at once.
func (g *topGuest) details() []string {
	at := "nobody has looked yet"
	if len(g.Parallel) > 0 {
		var words []string
		for i, part := range g.Parallel {
			if part > 0 {
				words = append(words, fmt.Sprintf("%d: %s", i, percent(part)))
			}
		}
		at = strings.Join(words, ", ")
	}
	lines := []string{g.Name + " exits to the monitor/s: " + perSecond(g.Exits)}
	if len(g.KVM) > 0 {
		kinds := map[string]float64{}
		for kind, n := range g.KVM {
			if kind != allExits {
				kinds[strings.TrimSuffix(kind, exitsSuffix)] = n
			}
		}
		lines = append(lines, g.Name+" exits of all kinds/s: "+perSecond(kinds))
	}
	return append(lines, g.Name+" vCPUs at once: "+at)
}

// perSecond lists rates, the highest first.
func perSecond(rates map[string]float64) string {
	if len(rates) == 0 {
		return "none"
	}
	keys := slices.Collect(maps.Keys(rates))
	slices.SortFunc(keys, func(a, b string) int {
		return cmp.Or(cmp.Compare(rates[b], rates[a]), cmp.Compare(a, b))
	})
	for i, k := range keys {
		keys[i] = fmt.Sprintf("%s %.0f", k, rates[k])
	}
	return strings.Join(keys, ", ")
}

// text is the look as plain text.
func (l *topLook) text(by topOrder) string {
	var b strings.Builder
	b.WriteString(l.title() + "\n")
	for _, t := range l.Trouble {
		b.WriteString(t + "\n")
	}
	if rows := l.rows(by, true); len(rows) > 0 {
		header, lines := topTable(rows, 0)
		for _, line := range append([]string{header}, lines...) {
			b.WriteString(line + "\n")
		}
	}
	for _, r := range l.rows(by, false) {
		b.WriteString(strings.Join(r.g.details(), "\n") + "\n")
	}
	return b.String()
}
