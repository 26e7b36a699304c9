package seed

import (
	"errors"
	"io"
)

// Disk is a seed disk, as a virtio block device wants one. It may be read by many
// goroutines.
type Disk struct{ bytes []byte }

var errReadOnly = errors.New("the seed disk is read-only")

// Size is in bytes.
func (d *Disk) Size() int64 { return int64(len(d.bytes)) }

// BlockSize is in bytes.
func (d *Disk) BlockSize() int { return 512 }

// ReadOnly is true.
func (d *Disk) ReadOnly() bool { return true }

// ReadV fills bufs from off.
func (d *Disk) ReadV(bufs [][]byte, off int64) error {
	for _, b := range bufs {
		if off < 0 || off > int64(len(d.bytes)-len(b)) {
			return io.ErrUnexpectedEOF
		}
		off += int64(copy(b, d.bytes[off:]))
	}
	return nil
}

// WriteV fails.
func (d *Disk) WriteV([][]byte, int64) error { return errReadOnly }

// Flush does nothing.
func (d *Disk) Flush() error { return nil }

// Discard fails.
func (d *Disk) Discard(int64, int64) error { return errReadOnly }

// WriteZeroes fails.
func (d *Disk) WriteZeroes(int64, int64, bool) error { return errReadOnly }
