package boot

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz/lzma"
	"github.com/xi2/xz"
)

const (
	maxUnpacked = 512 << 20 // bytes of ELF that a payload may hold
	maxWindow   = 128 << 20 // what the kernel's own build uses for zstd, the largest
	lz4Block    = 8 << 20   // of a legacy frame
)

var errTooLarge = fmt.Errorf("its payload holds more than %d MiB", maxUnpacked>>20)

// packing is one of the compressions that Linux's build offers.
type packing struct {
	name  string
	magic string
	// sized says that the build appends the unpacked size to the payload (four
	// bytes, little-endian); gzip has it in its own trailer.
	sized bool
	open  func(r io.Reader) (io.Reader, error)
}

var packings = []packing{
	{"gzip", "\x1f\x8b", false, openGzip},
	{"bzip2", "BZh", true, func(r io.Reader) (io.Reader, error) { return bzip2.NewReader(r), nil }},
	{"lzma", "\x5d\x00\x00", true, openLZMA},
	{"xz", "\xfd7zXZ\x00", true, func(r io.Reader) (io.Reader, error) { return xz.NewReader(r, maxWindow) }},
	{"lz4", "\x02\x21\x4c\x18", true, openLZ4},
	{"zstd", "\x28\xb5\x2f\xfd", true, openZstd},
	{"no compression", "\x7fELF", false, func(r io.Reader) (io.Reader, error) { return r, nil }},
}

// unpack writes what is packed in payload to w.
func unpack(w io.Writer, payload *io.SectionReader) error {
	var magic [6]byte
	if n, err := payload.ReadAt(magic[:], 0); n < len(magic) {
		return fmt.Errorf("payload: %w", err)
	}
	for _, p := range packings {
		if !bytes.HasPrefix(magic[:], []byte(p.magic)) {
			continue
		}
		n := payload.Size()
		if p.sized {
			n -= 4
		}
		if err := p.unpack(w, bufio.NewReaderSize(io.LimitReader(payload, n), 64<<10)); err != nil {
			if errors.Is(err, errTooLarge) {
				return err
			}
			return fmt.Errorf("%s: %w", p.name, err)
		}
		return nil
	}
	return fmt.Errorf("unknown compression (it begins %x)", magic)
}

func (p *packing) unpack(w io.Writer, r io.Reader) error {
	z, err := p.open(r)
	if err != nil {
		return err
	}
	if c, ok := z.(io.Closer); ok {
		defer c.Close()
	}
	n, err := io.Copy(w, io.LimitReader(z, maxUnpacked+1))
	if err != nil {
		return err
	}
	if n > maxUnpacked {
		return errTooLarge
	}
	return nil
}

func openGzip(r io.Reader) (io.Reader, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	z.Multistream(false)
	return z, nil
}

// openLZMA checks the window that the header asks for, which the decoder would
// otherwise allocate whatever its size.
func openLZMA(r io.Reader) (io.Reader, error) {
	b := r.(*bufio.Reader)
	h, err := b.Peek(lzma.HeaderLen)
	if err != nil {
		return nil, err
	}
	if dict := binary.LittleEndian.Uint32(h[1:]); dict > maxWindow {
		return nil, fmt.Errorf("a window of %d MiB; at most %d MiB is allowed", dict>>20, maxWindow>>20)
	}
	return lzma.NewReader(b)
}

func openZstd(r io.Reader) (io.Reader, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	return z.IOReadCloser(), nil
}

// lz4Frame reads LZ4's legacy frame, the kernel's: a magic number, then blocks
// of a packed size and that many bytes, each of which holds 8 MiB but the last.
type lz4Frame struct {
	r           io.Reader
	packed, out []byte
	rest        []byte // of out, not yet read
}

func openLZ4(r io.Reader) (io.Reader, error) {
	if _, err := io.CopyN(io.Discard, r, 4); err != nil {
		return nil, err
	}
	return &lz4Frame{r: r}, nil
}

// Read implements io.Reader.
func (f *lz4Frame) Read(p []byte) (int, error) {
	for len(f.rest) == 0 {
		if err := f.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

// next unpacks one block.
func (f *lz4Frame) next() error {
	var size [4]byte
	if _, err := io.ReadFull(f.r, size[:]); err != nil {
		return err // io.EOF between blocks is the end
	}
	n := binary.LittleEndian.Uint32(size[:])
	if n == 0 || n > uint32(lz4.CompressBlockBound(lz4Block)) {
		return fmt.Errorf("a block of %d bytes", n)
	}
	if f.out == nil {
		f.out = make([]byte, lz4Block)
	}
	if uint32(cap(f.packed)) < n {
		f.packed = make([]byte, n)
	}
	f.packed = f.packed[:n]
	if _, err := io.ReadFull(f.r, f.packed); err != nil {
		return noEOF(err)
	}
	m, err := lz4.UncompressBlock(f.packed, f.out)
	if err != nil {
		return err
	}
	f.rest = f.out[:m]
	return nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
