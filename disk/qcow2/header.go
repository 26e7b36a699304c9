package qcow2

import (
	"encoding/binary"
	"fmt"
	"strings"
)

const (
	magic = 0x514649fb // "QFI\xfb"

	headerSize2 = 72  // of version 2
	headerSize3 = 104 // of version 3, without what later features add

	minClusterBits, maxClusterBits = 9, 21

	// What QEMU takes, too.
	maxL1       = 32 << 20 // bytes
	maxRefTable = 8 << 20  // bytes
	maxName     = 1023     // of a backing file, bytes
	maxSize     = 1 << 56  // bytes that a guest sees
	maxSnaps    = 65536

	// Header extensions.
	extEnd           = 0
	extBackingFormat = 0xe2792aca
	extStamp         = 0x4469426d // ours: "DiBm", the base that was remembered
)

// Incompatible features: who does not know one must not open the image.
const (
	featureDirty       = 1 << 0 // refcounts may be wrong
	featureCorrupt     = 1 << 1
	featureDataFile    = 1 << 2
	featureCompression = 1 << 3 // the type of compression is in the header
	featureExtendedL2  = 1 << 4

	featuresKnown = featureDirty | featureCorrupt | featureCompression
)

// Types of compression.
const (
	compressionDeflate = 0
	compressionZstd    = 1
)

// Where fields of the header are that change.
const (
	atRefTable     = 48
	atIncompatible = 72
	atAutoclear    = 88
)

// header is what the first cluster says. Offsets are in bytes from the file's
// beginning.
type header struct {
	version       uint32
	clusterBits   uint
	size          int64 // that a guest sees
	l1Offset      int64
	l1Entries     int64
	refOffset     int64
	refClusters   int64
	snapshots     int64
	snapsOffset   int64
	incompatible  uint64
	autoclear     uint64
	refOrder      uint // a refcount has 1<<refOrder bits
	length        int64
	compression   byte
	backing       string
	backingFormat string
	stamp         *Stamp
}

// Stamp is what an image remembers of the base under it, so that a base which
// has changed is found out. It is kept in a header extension of our own, which
// others carry along and ignore.
type Stamp struct {
	Name     string // of the backing file when it was remembered
	Size     int64  // bytes
	Modified int64  // nanoseconds of Unix time
}

func (s *Stamp) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(s.Size))
	b = binary.BigEndian.AppendUint64(b, uint64(s.Modified))
	return append(b, s.Name...)
}

func parseStamp(b []byte) *Stamp {
	if len(b) < 16 {
		return nil
	}
	return &Stamp{
		Size: int64(binary.BigEndian.Uint64(b)), Modified: int64(binary.BigEndian.Uint64(b[8:])), Name: string(b[16:]),
	}
}

// IsImage says whether a file that begins with b is a qcow2 image, sound or not.
func IsImage(b []byte) bool { return len(b) >= 4 && binary.BigEndian.Uint32(b) == magic }

// readHeader reads and checks the header of a file of so many bytes.
func readHeader(f File, fileSize int64) (*header, error) {
	var b [headerSize3 + 8]byte
	if fileSize < headerSize2 {
		return nil, corrupt("its header is cut off after %d bytes", fileSize)
	}
	if err := f.ReadV([][]byte{b[:]}, 0); err != nil {
		return nil, err
	}
	be := binary.BigEndian
	if !IsImage(b[:]) {
		return nil, corrupt("it does not begin like a qcow2 image")
	}
	h := &header{version: be.Uint32(b[4:]), refOrder: 4, length: headerSize2}
	if h.version != 2 && h.version != 3 {
		return nil, fmt.Errorf("it is qcow2 of version %d, and only 2 and 3 are known", h.version)
	}
	h.clusterBits = uint(be.Uint32(b[20:]))
	if h.clusterBits < minClusterBits || h.clusterBits > maxClusterBits {
		return nil, corrupt("clusters of 1<<%d bytes", be.Uint32(b[20:]))
	}
	if be.Uint32(b[32:]) != 0 {
		return nil, fmt.Errorf("it is encrypted, which is not supported; decrypt it with qemu-img convert")
	}
	if h.version == 3 {
		h.incompatible, h.autoclear = be.Uint64(b[atIncompatible:]), be.Uint64(b[atAutoclear:])
		h.refOrder, h.length = uint(be.Uint32(b[96:])), int64(be.Uint32(b[100:]))
		if h.refOrder > 6 {
			return nil, corrupt("refcounts of 1<<%d bits", h.refOrder)
		}
		if h.length < headerSize3 || h.length%8 != 0 || h.length > 1<<h.clusterBits {
			return nil, corrupt("a header of %d bytes", h.length)
		}
		if h.length > headerSize3 {
			h.compression = b[headerSize3]
		}
		if err := h.features(); err != nil {
			return nil, err
		}
	}
	return h, h.tables(f, b[:], fileSize)
}

// features refuses what is not known, by name.
func (h *header) features() error {
	var unknown []string
	for bit := range 64 {
		if h.incompatible&^featuresKnown>>bit&1 == 0 {
			continue
		}
		switch 1 << bit {
		case featureDataFile:
			unknown = append(unknown, "an external data file")
		case featureExtendedL2:
			unknown = append(unknown, "extended L2 entries")
		default:
			unknown = append(unknown, fmt.Sprintf("feature %d", bit))
		}
	}
	if unknown != nil {
		return fmt.Errorf("it has %s, which is not supported; rewrite it with qemu-img convert -O qcow2", strings.Join(unknown, " and "))
	}
	if h.compression > compressionZstd || h.compression != 0 && h.incompatible&featureCompression == 0 {
		return corrupt("compression of type %d", h.compression)
	}
	return nil
}

// tables reads the rest of a header b: where the tables are.
func (h *header) tables(f File, b []byte, fileSize int64) error {
	be := binary.BigEndian
	cluster := int64(1) << h.clusterBits
	size := be.Uint64(b[24:])
	if size == 0 || size%sectorSize != 0 || size > maxSize {
		return corrupt("a disk of %d bytes", size)
	}
	h.size = int64(size)
	h.l1Entries = int64(be.Uint32(b[36:]))
	h.refClusters = int64(be.Uint32(b[56:]))
	h.snapshots = int64(be.Uint32(b[60:]))
	perL1 := cluster / 8 * cluster // bytes of the disk that one L1 entry stands for
	if need := (h.size + perL1 - 1) / perL1; h.l1Entries < need {
		return corrupt("an L1 table of %d entries, where a disk of %d bytes needs %d", h.l1Entries, h.size, need)
	}
	for _, t := range []struct {
		name        string
		offset      uint64
		bytes, most int64
		at          *int64
	}{
		{"L1 table", be.Uint64(b[40:]), h.l1Entries * 8, maxL1, &h.l1Offset},
		{"refcount table", be.Uint64(b[atRefTable:]), h.refClusters * cluster, maxRefTable, &h.refOffset},
	} {
		switch {
		case t.bytes > t.most:
			return corrupt("its %s has %d bytes, where %d are the most", t.name, t.bytes, t.most)
		case t.bytes == 0 || t.offset == 0 || t.offset%uint64(cluster) != 0:
			return corrupt("its %s has %d bytes and is at %#x", t.name, t.bytes, t.offset)
		case t.offset > uint64(fileSize) || t.bytes > fileSize-int64(t.offset):
			return corrupt("its %s is at %#x to %#x, and the file ends at %#x: it was cut off", t.name, t.offset, t.offset+uint64(t.bytes), fileSize)
		}
		*t.at = int64(t.offset)
	}
	if h.snapshots > maxSnaps {
		return corrupt("%d snapshots", h.snapshots)
	}
	if at := be.Uint64(b[64:]); h.snapshots > 0 {
		if at == 0 || at%uint64(cluster) != 0 || at >= uint64(fileSize) {
			return corrupt("a snapshot table at %#x", at)
		}
		h.snapsOffset = int64(at)
	}
	return h.names(f, be.Uint64(b[8:]), int64(be.Uint32(b[16:])))
}

// names reads the header's extensions and the backing file's name, which are in
// the first cluster.
func (h *header) names(f File, nameAt uint64, nameLen int64) error {
	first := make([]byte, 1<<h.clusterBits)
	if err := f.ReadV([][]byte{first}, 0); err != nil {
		return err
	}
	end := int64(len(first))
	if nameAt != 0 {
		if nameLen == 0 || nameLen > maxName || nameAt < uint64(h.length) || nameAt > uint64(end) || nameLen > end-int64(nameAt) {
			return corrupt("a backing file's name of %d bytes at %#x", nameLen, nameAt)
		}
		h.backing = string(first[nameAt:][:nameLen])
		end = int64(nameAt)
		if strings.ContainsRune(h.backing, 0) {
			return corrupt("a backing file's name %q", h.backing)
		}
	}
	for rest := first[h.length:max(end, h.length)]; len(rest) >= 8; {
		kind, n := binary.BigEndian.Uint32(rest), int(binary.BigEndian.Uint32(rest[4:]))
		if kind == extEnd {
			break
		}
		rest = rest[8:]
		if n < 0 || n > len(rest) {
			return corrupt("a header extension %#x of %d bytes", kind, n)
		}
		switch kind {
		case extBackingFormat:
			h.backingFormat = string(rest[:n])
		case extStamp:
			h.stamp = parseStamp(rest[:n])
		}
		rest = rest[min((n+7)&^7, len(rest)):]
	}
	return nil
}
