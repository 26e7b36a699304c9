package guest

import (
	"bytes"
	"encoding/binary"
	"testing"
)

func TestPatternTellsSectorsApart(t *testing.T) {
	disk := make([]byte, 64*SectorSize)
	Pattern(disk, PatternHost, 0)
	seen := make(map[string]int)
	for n := 0; n < 64; n++ {
		sector := disk[n*SectorSize : (n+1)*SectorSize]
		if before, ok := seen[string(sector)]; ok {
			t.Errorf("sectors %d and %d are alike", before, n)
		}
		seen[string(sector)] = n
	}
	part := make([]byte, 2*SectorSize)
	Pattern(part, PatternHost, 5)
	if !bytes.Equal(part, disk[5*SectorSize:7*SectorSize]) {
		t.Error("a part of the pattern differs from the same part of the whole")
	}
	Pattern(part, PatternGuest, 5)
	if bytes.Equal(part, disk[5*SectorSize:7*SectorSize]) {
		t.Error("two seeds give one pattern")
	}
	for sector := range uint64(64) {
		if got, want := Word(PatternHost, sector), binary.LittleEndian.Uint64(disk[sector*SectorSize:]); got != want {
			t.Errorf("sector %d begins with %#x, not %#x", sector, want, got)
		}
	}
}
