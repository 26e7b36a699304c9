package boot

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

// plain is more than one LZ4 block, compressible, and no two MiB of it alike.
func plain() []byte {
	p := make([]byte, lz4Block+3<<20)
	pattern{int64(len(p))}.ReadAt(p, 0)
	for i := 0; i < len(p); i += 4096 {
		binary.LittleEndian.PutUint32(p[i:], uint32(i))
	}
	return p
}

// sized appends the unpacked size, as Linux's build does.
func sized(packed []byte, n int) []byte {
	return binary.LittleEndian.AppendUint32(packed, uint32(n))
}

func packLZ4(p []byte) []byte {
	out := []byte("\x02\x21\x4c\x18")
	var c lz4.Compressor
	for len(p) > 0 {
		block := p[:min(len(p), lz4Block)]
		dst := make([]byte, lz4.CompressBlockBound(len(block)))
		n, err := c.CompressBlock(block, dst)
		if err != nil {
			panic(err)
		}
		out = binary.LittleEndian.AppendUint32(out, uint32(n))
		out = append(out, dst[:n]...)
		p = p[len(block):]
	}
	return out
}

func pack(t testing.TB, p []byte, open func(w io.Writer) (io.WriteCloser, error)) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := open(&b)
	if err == nil {
		_, err = w.Write(p)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func packGzip(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil }

// calls is what the fixtures hold, 64 calls to one place: made by
// "xz --check=crc32 --x86 --lzma2=dict=64KiB" and bzip2, which Go cannot write.
func calls() []byte {
	var p []byte
	for i := range 64 {
		p = append(p, 0xE8)
		p = binary.LittleEndian.AppendUint32(p, uint32(0x1000-8*i))
		p = append(p, 0x90, 0x90, 0x90)
	}
	return p
}

const (
	callsXZ = "fd377a585a0000016922de360201040021010800d2b974cbe001ff000f5d0074013df00c6297c857b23344c7" +
		"0000000047ed3431000127800400000096c678e73e300d8b020000000001595a"
	callsBzip2 = "425a6839314159265359eee213b70000ddffffc041c04040404040404040404040404040404040404040404040" +
		"40404040404020009209454320c2032307faa9306aa7ffaaa9e90c41a034190c5290000000000000004abfcaa492" +
		"44d94dbbabb2ddfc38f2bb9f4ebdbbf8bfcfaf7f30c7475cffecaaaaaaaaaaaaaaaea712009000b4000e01048492" +
		"111121b8bb9229c2848777109db8"
)

func fixture(t testing.TB, s string) []byte {
	p, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestUnpack(t *testing.T) {
	p := plain()
	small := calls()
	part := p[:300<<10]
	for _, c := range []struct {
		name   string
		packed []byte
		want   []byte
	}{
		{"gzip", pack(t, part, packGzip), part},
		{"gzip with a size", sized(pack(t, part, packGzip), len(part)), part},
		{"lz4", sized(packLZ4(p), len(p)), p},
		{"xz", sized(pack(t, part, func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) }), len(part)), part},
		{"xz with the x86 filter", sized(fixture(t, callsXZ), len(small)), small},
		{"lzma", sized(pack(t, part, func(w io.Writer) (io.WriteCloser, error) { return lzma.NewWriter(w) }), len(part)), part},
		{"zstd", sized(pack(t, part, func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }), len(part)), part},
		{"bzip2", sized(fixture(t, callsBzip2), len(small)), small},
		{"none", []byte("\x7fELF and the rest"), []byte("\x7fELF and the rest")},
	} {
		var got bytes.Buffer
		if err := parse(t, makeBzImage(c.packed)).Unpack(&got); err != nil {
			t.Errorf("%s: %v", c.name, err)
		} else if !bytes.Equal(got.Bytes(), c.want) {
			t.Errorf("%s: %d bytes came out, and not those that went in (%d)", c.name, got.Len(), len(c.want))
		}
	}
}

func TestUnpackRefuses(t *testing.T) {
	p := plain()[:300<<10]
	lz := sized(packLZ4(p), len(p))
	for _, c := range []struct {
		name   string
		packed []byte
		want   string
	}{
		{"no payload", nil, "has no payload; use --kaslr"},
		{"too short", []byte{1, 2}, "cannot be unpacked: payload: EOF; use --kaslr"},
		{"unknown", []byte("LZO-like bytes"), "unknown compression (it begins 4c5a4f2d6c69)"},
		{"cut gzip", pack(t, p, packGzip)[:1000], "gzip: unexpected EOF"},
		{"damaged gzip", []byte("\x1f\x8b\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), "gzip: "},
		{"cut lz4", lz[:len(lz)/2], "lz4: unexpected EOF"},
		{"lz4 block of 0", sized([]byte("\x02\x21\x4c\x18\x00\x00\x00\x00"), 0), "lz4: a block of 0 bytes"},
		{"lz4 block of 4 GiB", sized([]byte("\x02\x21\x4c\x18\xff\xff\xff\xff"), 0), "lz4: a block of 4294967295 bytes"},
		{"lz4 garbage", sized([]byte("\x02\x21\x4c\x18\x04\x00\x00\x00\xff\xff\xff\xff"), 0), "lz4: "},
		{"lzma window of 4 GiB", sized([]byte("\x5d\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), 0), "lzma: a window of"},
		{"cut xz", fixture(t, callsXZ)[:40], "xz: "},
		{"cut zstd", []byte("\x28\xb5\x2f\xfd\x00\x00\x00\x00"), "zstd: "},
		{"cut bzip2", fixture(t, callsBzip2)[:40], "bzip2: "},
	} {
		err := parse(t, makeBzImage(c.packed)).Unpack(io.Discard)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q in it", c.name, err, c.want)
		}
	}
	if err := parse(t, makeELF(0, 0, seg{phys: 1 << 20, data: []byte("x")})).Unpack(io.Discard); err == nil {
		t.Error("an ELF was unpacked")
	}
}

func TestUnpackStopsBomb(t *testing.T) {
	block := packLZ4(make([]byte, lz4Block))[4:]
	bomb := append([]byte("\x02\x21\x4c\x18"), bytes.Repeat(block, 2*maxUnpacked/lz4Block)...)
	var n counter
	err := parse(t, makeBzImage(bomb)).Unpack(&n)
	if !errors.Is(err, errTooLarge) {
		t.Errorf("%v, want %v", err, errTooLarge)
	}
	if n > maxUnpacked+1 {
		t.Errorf("%d bytes were written, more than %d", n, maxUnpacked)
	}
}

func TestUnpackWriteError(t *testing.T) {
	boom := errors.New("boom")
	if err := parse(t, makeBzImage(pack(t, calls(), packGzip))).Unpack(refusing{boom}); !errors.Is(err, boom) {
		t.Errorf("error %v does not wrap the writer's", err)
	}
}

type counter int64

func (n *counter) Write(p []byte) (int, error) {
	*n += counter(len(p))
	return len(p), nil
}

type refusing struct{ err error }

func (r refusing) Write([]byte) (int, error) { return 0, r.err }

func FuzzUnpack(f *testing.F) {
	p := calls()
	f.Add(pack(f, p, packGzip))
	f.Add(sized(packLZ4(p), len(p)))
	f.Add(sized(fixture(f, callsXZ), len(p)))
	f.Add(sized(fixture(f, callsBzip2), len(p)))
	f.Add(sized(pack(f, p, func(w io.Writer) (io.WriteCloser, error) { return lzma.NewWriter(w) }), len(p)))
	f.Add(sized(pack(f, p, func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }), len(p)))
	f.Fuzz(func(t *testing.T, payload []byte) {
		var n counter
		k := parse(t, makeBzImage(payload))
		_ = k.Unpack(&n)
		if n > maxUnpacked+1 {
			t.Errorf("%d bytes were written", n)
		}
	})
}
