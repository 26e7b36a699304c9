package capture

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// maxBlock is the longest block that Copy takes, in bytes.
const maxBlock = 1 << 20

// Counts are what Copy found in a file.
type Counts struct {
	Frames  uint64 // in the file
	Dropped uint64 // that came and are not, because they came too fast
}

// Copy copies a file that a Capture writes from r to w, block by block as they come,
// until r ends or either fails. A last block that came in part is left out, and is no
// error. It does not believe what it reads: a file that is not of this package's making
// is an error.
func Copy(w io.Writer, r io.Reader) (Counts, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	out := bufio.NewWriterSize(w, 64<<10)
	n, err := transfer(out, in)
	if e := out.Flush(); e != nil && !errors.Is(err, e) {
		err = errors.Join(err, e)
	}
	return n, err
}

func transfer(out *bufio.Writer, in *bufio.Reader) (n Counts, err error) {
	var block []byte
	for first := true; ; first = false {
		if in.Buffered() == 0 {
			// Whoever looks at the file sees what there is.
			if err := out.Flush(); err != nil {
				return n, err
			}
		}
		head, err := in.Peek(8)
		switch {
		case errors.Is(err, io.EOF):
			return n, nil
		case err != nil:
			return n, err
		}
		kind, size := le.Uint32(head), le.Uint32(head[4:])
		if size < 12 || size > maxBlock || size&3 != 0 || first != (kind == sectionHeader) {
			return n, fmt.Errorf("it is no capture: a block of type %#x and %d bytes", kind, size)
		}
		if cap(block) < int(size) {
			block = make([]byte, size)
		}
		block = block[:size]
		switch _, err := io.ReadFull(in, block); {
		case errors.Is(err, io.ErrUnexpectedEOF):
			return n, nil
		case err != nil:
			return n, err
		}
		if le.Uint32(block[size-4:]) != size {
			return n, fmt.Errorf("it is no capture: a block of %d bytes ends as one of %d", size, le.Uint32(block[size-4:]))
		}
		switch kind {
		case packetBlock:
			n.Frames++
		case statisticsBlock:
			if d, ok := dropped(block); ok {
				n.Dropped = d
			}
		}
		if _, err := out.Write(block); err != nil {
			return n, err
		}
	}
}

// dropped is what a statistics block says of frames that are missing.
func dropped(block []byte) (uint64, bool) {
	const options = 20 // type, length, interface, time
	if len(block) < options+blockTail {
		return 0, false
	}
	for b := block[options : len(block)-blockTail]; len(b) >= 4; {
		code, size := le.Uint16(b), int(le.Uint16(b[2:]))
		if b = b[4:]; len(b) < size {
			break
		}
		if code == optDropped && size == 8 {
			return le.Uint64(b), true
		}
		b = b[min(len(b), size+(-size&3)):]
	}
	return 0, false
}
