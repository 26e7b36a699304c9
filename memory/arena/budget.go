package arena

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
)

// Budget keeps a process from using up its memory mappings (VMAs): at the
// kernel's limit the next growth of Go's heap ends the process, and no error
// value tells of it. It counts what is added by pages that are mapped away from
// their place; a quarter of the limit is kept for everybody else.
//
// Its methods may be called from many goroutines and do not allocate.
type Budget struct {
	limit atomic.Int64
	used  atomic.Int64
}

// VMAs is the budget of this process. Limit is 0 until Measure is called.
var VMAs Budget

// MaxMapCount is where the kernel tells its limit of mappings per process.
const MaxMapCount = "/proc/sys/vm/max_map_count"

// Measure reads the kernel's limit and how many mappings there are. If that
// leaves less than want, it tries to raise the limit, and says so in raised.
func (b *Budget) Measure(want int64) (raised bool, err error) {
	limit, err := readLimit()
	if err != nil {
		return false, err
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return false, fmt.Errorf("count mappings: %w", err)
	}
	others := int64(bytes.Count(maps, []byte{'\n'})) - b.used.Load()
	need := (others + b.used.Load() + want) * 4 / 3
	if limit < need {
		// Not being allowed is no error: less is replicated.
		raised = os.WriteFile(MaxMapCount, []byte(strconv.FormatInt(need, 10)), 0) == nil
		if limit, err = readLimit(); err != nil {
			return false, err
		}
	}
	b.limit.Store(max(0, limit-limit/4-others))
	return raised, nil
}

func readLimit() (int64, error) {
	text, err := os.ReadFile(MaxMapCount)
	if err != nil {
		return 0, fmt.Errorf("limit of mappings: %w", err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", MaxMapCount, err)
	}
	return n, nil
}

// Reserve takes n mappings if there are so many.
func (b *Budget) Reserve(n int64) bool {
	if b.used.Add(n) > b.limit.Load() {
		b.used.Add(-n)
		return false
	}
	return true
}

// Add takes n mappings in any case, or gives back if n is negative: for what
// must be done, and for what turned out otherwise than reserved.
func (b *Budget) Add(n int64) { b.used.Add(n) }

// Over says whether more is taken than may be, by Add.
func (b *Budget) Over() bool { return b.used.Load() > b.limit.Load() }

// Crowded says whether half of what is kept for others is taken, too.
func (b *Budget) Crowded() bool { return b.used.Load() > b.limit.Load()*7/6 }

// Used is what is taken now, Limit what may be.
func (b *Budget) Used() int64  { return b.used.Load() }
func (b *Budget) Limit() int64 { return b.limit.Load() }
