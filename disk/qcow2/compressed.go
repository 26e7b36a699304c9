package qcow2

import (
	"bytes"
	"compress/flate"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// unzipper unpacks compressed clusters, and keeps the last one: requests are often
// smaller than clusters, and in order.
type unzipper struct {
	zstd bool

	mu      sync.Mutex
	source  bytes.Reader
	deflate io.ReadCloser
	zst     *zstd.Decoder
	packed  []byte
	plain   []byte
	entry   uint64 // of the L2 table, whose cluster is in plain; 0 for none
}

// readCompressed fills bufs from the compressed cluster of an L2 entry, from skip
// on.
func (i *Image) readCompressed(bufs [][]byte, entry uint64, skip int64) error {
	u := &i.unzip
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.entry != entry {
		u.entry = 0
		if err := u.unpack(i, entry); err != nil {
			return err
		}
		u.entry = entry
	}
	rest := u.plain[skip:]
	for _, b := range bufs {
		rest = rest[copy(b, rest):]
	}
	return nil
}

// unpack reads and unpacks a cluster to u.plain.
func (u *unzipper) unpack(i *Image, entry uint64) error {
	offset, n := i.packed(entry)
	fileSize, err := i.file.Size()
	if err != nil {
		return err
	}
	// The file may end with the bytes that are of use.
	n = min(n, fileSize-offset)
	if offset < i.cluster || n <= 0 {
		return corrupt("a compressed cluster is at %#x, and the file ends at %#x", offset, fileSize)
	}
	if u.plain == nil {
		u.plain = make([]byte, i.cluster)
	}
	if int64(cap(u.packed)) < n {
		u.packed = make([]byte, n)
	}
	u.packed = u.packed[:n]
	if err := i.file.ReadV([][]byte{u.packed}, offset); err != nil {
		return err
	}
	u.source.Reset(u.packed)
	var plain io.Reader
	if u.zstd {
		if u.zst == nil {
			// One thread, and a window no larger than a cluster has use for.
			u.zst, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
				zstd.WithDecoderMaxWindow(maxWindow))
			if err != nil {
				return err
			}
		}
		if err := u.zst.Reset(&u.source); err != nil {
			return corrupt("a compressed cluster at %#x: %v", offset, err)
		}
		plain = u.zst
	} else {
		if u.deflate == nil {
			u.deflate = flate.NewReader(&u.source)
		} else if err := u.deflate.(flate.Resetter).Reset(&u.source, nil); err != nil {
			return err
		}
		plain = u.deflate
	}
	if _, err := io.ReadFull(plain, u.plain); err != nil {
		return corrupt("a compressed cluster at %#x does not unpack: %v", offset, err)
	}
	return nil
}

// maxWindow is how far back a zstd frame may refer, in bytes: compressors use a
// window of the next power of two, and few use more than what they compress.
const maxWindow = 8 << 20
