package vmm

import (
	"slices"
	"testing"
	"time"
)

func TestParallel(t *testing.T) {
	const ms = time.Millisecond
	type look struct{ after, used time.Duration } // since the last
	for _, tt := range []struct {
		name  string
		cpus  int
		looks []look
		want  []time.Duration
	}{
		{"one look is none", 2, nil, nil},
		{"idle", 2, []look{{5 * ms, 0}}, []time.Duration{5 * ms, 0, 0}},
		{"one runs", 2, []look{{5 * ms, 5 * ms}}, []time.Duration{0, 5 * ms, 0}},
		{"all run", 2, []look{{5 * ms, 10 * ms}}, []time.Duration{0, 0, 5 * ms}},
		{"in between", 2, []look{{5 * ms, 7 * ms}}, []time.Duration{0, 3 * ms, 2 * ms}},
		{"a moment", 1, []look{{5 * ms, 1}}, []time.Duration{5*ms - 1, 1}},
		{"clocks ahead of each other", 2, []look{{5 * ms, 11 * ms}}, []time.Duration{0, 0, 5 * ms}},
		{"nobody looked for long", 1, []look{{time.Hour, time.Hour}, {5 * ms, 0}}, []time.Duration{5 * ms, 0}},
		{"another machine's clocks", 1, []look{{5 * ms, -ms}, {5 * ms, 5 * ms}}, []time.Duration{0, 5 * ms}},
		{"no time", 1, []look{{0, ms}, {ms, ms}}, []time.Duration{0, ms}},
		{"sums", 2, []look{{5 * ms, 10 * ms}, {20 * ms, 0}, {5 * ms, 2 * ms}}, []time.Duration{23 * ms, 2 * ms, 5 * ms}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var p parallel
			now, used := time.Now(), 3*time.Hour
			p.add(now, used, tt.cpus)
			for _, l := range tt.looks {
				now, used = now.Add(l.after), used+l.used
				p.add(now, used, tt.cpus)
			}
			if got := p.read(); !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}
