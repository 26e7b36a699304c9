package frame

import (
	"errors"
	"testing"
)

func TestHeaderRoundTrip(t *testing.T) {
	h := Header{Flags: 1, GSOType: 4, HdrLen: 0x102, GSOSize: 0x304, CsumStart: 0x506, CsumOffset: 0x708, NumBuffers: 0x90a}
	var p [HeaderLen]byte
	h.Put(p[:])
	if want := [HeaderLen]byte{1, 4, 2, 1, 4, 3, 6, 5, 8, 7, 0xa, 9}; p != want {
		t.Errorf("Put wrote % x, want % x", p, want)
	}
	if got := Parse(p[:]); got != h {
		t.Errorf("Parse: %+v, want %+v", got, h)
	}
}

func TestHeaderCheck(t *testing.T) {
	const all = Checksum | TSO4 | TSO6 | ECN
	sum := Header{Flags: NeedsChecksum, CsumStart: 34, CsumOffset: 16}
	tso := func(kind uint8, size uint16) Header {
		h := sum
		h.GSOType, h.GSOSize = kind, size
		return h
	}
	for _, c := range []struct {
		name    string
		h       Header
		n       int
		allowed Offloads
		want    error
	}{
		{"plain", Header{}, 60, 0, nil},
		{"plain, hints set", Header{HdrLen: 54, NumBuffers: 7}, 60, 0, nil},
		{"shortest", Header{}, MinLen, 0, nil},
		{"too short", Header{}, MinLen - 1, 0, ErrLength},
		{"longest", Header{}, MaxLen, 0, nil},
		{"too long", Header{}, MaxLen + 1, 0, ErrLength},
		{"checksum", sum, 52, Checksum, nil},
		{"checksum not agreed", sum, 60, 0, ErrFlags},
		{"checksum past the end", sum, 51, Checksum, ErrChecksum},
		{"checksum in the Ethernet header", Header{Flags: NeedsChecksum, CsumStart: 13}, 60, Checksum, ErrChecksum},
		{"checksum far away", Header{Flags: NeedsChecksum, CsumStart: 0xffff, CsumOffset: 0xffff}, 60, Checksum, ErrChecksum},
		{"a receiver's flag", Header{Flags: DataValid}, 60, all, ErrFlags},
		{"unknown flag", Header{Flags: 0x40}, 60, all, ErrFlags},
		{"TSO4", tso(GSOTCP4, 1448), 60000, all, nil},
		{"TSO6 with a mark", tso(GSOTCP6|GSOECN, 1428), 60000, all, nil},
		{"TSO4 not agreed", tso(GSOTCP4, 1448), 60000, Checksum | TSO6, ErrSegments},
		{"mark not agreed", tso(GSOTCP4|GSOECN, 1448), 60000, Checksum | TSO4, ErrSegments},
		{"a mark without segments", Header{GSOType: GSOECN}, 60, all, ErrSegments},
		{"segments of no size", tso(GSOTCP4, 0), 60000, all, ErrSegments},
		{"segments without checksum", Header{GSOType: GSOTCP4, GSOSize: 1448}, 60000, all, ErrSegments},
		{"UDP segments", tso(3, 1448), 60000, all, ErrSegments},
		{"unknown segments", tso(2, 1448), 60000, all, ErrSegments},
	} {
		if err := c.h.Check(c.n, c.allowed); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}
