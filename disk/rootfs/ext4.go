package rootfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
)

// Layout of ext4's structures: kernel.org, filesystems/ext4. All is little-endian.
const (
	superOffset = 1024
	superSize   = 1024
	ext4Magic   = 0xef53

	rootInode   = 2
	inodeFields = 128 // of an inode, what is read here

	incompatExtents = 0x40
	incompat64Bit   = 0x80
	// incompatKnown are the incompatible features that reading can live with, or
	// that are looked at where they matter: file types in directories, a journal
	// to replay, extents, 64 bits, flexible groups, multiple mount protection,
	// values in inodes, the checksums' seed, large directories, data in inodes,
	// encryption and case folding.
	incompatKnown = 0x2 | 0x4 | incompatExtents | incompat64Bit | 0x200 | 0x100 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000

	flagEncrypted = 0x800
	flagExtents   = 0x80000
	flagInline    = 0x10000000

	extentMagic     = 0xf30a
	extentDepth     = 5       // of a tree, at most
	extentUnwritten = 1 << 15 // a length above it is of blocks that read as zeroes

	modeType    = 0xf000
	modeDir     = 0x4000
	modeRegular = 0x8000
	modeLink    = 0xa000
)

// What a hostile image can make us do is bounded by these.
const (
	maxLinks     = 40      // symbolic links on the way to one file
	maxLink      = 4 << 10 // bytes of one's target
	maxDirectory = 8 << 20 // bytes
	maxFile      = 1 << 30 // bytes of a kernel or an initrd
	maxRuns      = 1 << 17 // runs of blocks of a file
	maxNodes     = 1 << 12 // blocks of a file's tree or tables of blocks
)

var errNotExt4 = errors.New("not an ext4 filesystem")

// volume is an ext2, ext3 or ext4 filesystem that is only read. What a journal
// has that is not yet in place is not seen, and checksums are not checked: what is
// taken from here is checked by who uses it.
type volume struct {
	r              io.ReaderAt
	size           int64 // bytes that r has for it
	block          int64 // bytes
	inodes         uint32
	inodesPerGroup uint32
	inodeSize      int64
	descriptors    int64 // where the groups' begin
	descriptorSize int64
	wide           bool // 64-bit block numbers in them
	uuid           [16]byte
}

// openVolume reads the superblock. The error is errNotExt4 if there is none.
func openVolume(r io.ReaderAt, size int64) (*volume, error) {
	b := make([]byte, superSize)
	if size < superOffset+superSize {
		return nil, errNotExt4
	}
	if _, err := r.ReadAt(b, superOffset); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if le.Uint16(b[0x38:]) != ext4Magic {
		return nil, errNotExt4
	}
	v := &volume{
		r: r, size: size, inodes: le.Uint32(b[0x0:]), inodesPerGroup: le.Uint32(b[0x28:]),
		inodeSize: 128, descriptorSize: 32, uuid: [16]byte(b[0x68:]),
	}
	incompat := le.Uint32(b[0x60:])
	if unknown := incompat &^ incompatKnown; unknown != 0 {
		return nil, fmt.Errorf("ext4 with features that are not known here (%#x)", unknown)
	}
	if le.Uint32(b[0x4c:]) > 0 { // revision
		v.inodeSize = int64(le.Uint16(b[0x58:]))
	}
	if v.wide = incompat&incompat64Bit != 0; v.wide {
		v.descriptorSize = int64(le.Uint16(b[0xfe:]))
	}
	shift := le.Uint32(b[0x18:])
	if shift > 6 || v.inodeSize < inodeFields || v.inodesPerGroup == 0 ||
		v.wide && v.descriptorSize < 64 || v.descriptorSize > 1024 {
		return nil, errors.New("ext4 with a damaged superblock")
	}
	v.block = 1024 << shift
	v.descriptors = (int64(le.Uint32(b[0x14:])) + 1) * v.block
	return v, nil
}

// read fills p from offset off of the filesystem.
func (v *volume) read(p []byte, off int64) error {
	if off < 0 || off > v.size-int64(len(p)) {
		return errors.New("damaged: it refers to what is past its end")
	}
	_, err := v.r.ReadAt(p, off)
	return err
}

// node is an inode.
type node struct {
	number uint32
	mode   uint16
	flags  uint32
	size   int64
	blocks [60]byte // a tree of extents, block numbers, or a link's target
}

func (n *node) is(kind uint16) bool { return n.mode&modeType == kind }

func (v *volume) node(number uint32) (*node, error) {
	if number == 0 || number > v.inodes {
		return nil, fmt.Errorf("damaged: inode %d of %d", number, v.inodes)
	}
	le := binary.LittleEndian
	group, index := int64((number-1)/v.inodesPerGroup), int64((number-1)%v.inodesPerGroup)
	d := make([]byte, v.descriptorSize)
	if err := v.read(d, v.descriptors+group*v.descriptorSize); err != nil {
		return nil, err
	}
	table := uint64(le.Uint32(d[0x8:]))
	if v.wide {
		table |= uint64(le.Uint32(d[0x28:])) << 32
	}
	at, err := v.offset(table)
	if err != nil {
		return nil, err
	}
	b := make([]byte, inodeFields)
	if err := v.read(b, at+index*v.inodeSize); err != nil {
		return nil, err
	}
	n := &node{number: number, mode: le.Uint16(b[0x0:]), flags: le.Uint32(b[0x20:]), blocks: [60]byte(b[0x28:])}
	n.size = int64(le.Uint32(b[0x4:])) | int64(le.Uint32(b[0x6c:]))<<32
	if n.size < 0 {
		return nil, fmt.Errorf("damaged: a file of %d bytes", uint64(n.size))
	}
	return n, nil
}

// offset is where a block begins.
func (v *volume) offset(block uint64) (int64, error) {
	if block > uint64(v.size/v.block) {
		return 0, errors.New("damaged: it refers to what is past its end")
	}
	return int64(block) * v.block, nil
}

// run is consecutive blocks of a file.
type run struct {
	first, count int64 // of the file, in blocks
	at           int64 // of the filesystem, in bytes
}

// File is a file of an image. It may be read by many goroutines, for as long as
// the image can be read and nobody writes to it.
type File struct {
	path string
	v    *volume
	size int64
	runs []run // ascending; what is between them reads as zeroes
}

// Path is where the file is, from the root of its filesystem.
func (f *File) Path() string { return f.path }

// Size is the file's size in bytes, at most 1 GiB.
func (f *File) Size() int64 { return f.size }

// ReadAt implements [io.ReaderAt].
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("negative offset")
	}
	if off >= f.size {
		return 0, io.EOF
	}
	short := int64(len(p)) > f.size-off
	p = p[:min(int64(len(p)), f.size-off)]
	done := 0
	for _, r := range f.after(off / f.v.block) {
		begin, end := r.first*f.v.block, (r.first+r.count)*f.v.block
		if done == len(p) || off+int64(len(p)) <= begin {
			break
		}
		if at := int(begin - off); at > done {
			clear(p[done:at])
			done = at
		}
		part := p[done:min(int64(len(p)), end-off)]
		if err := f.v.read(part, r.at+off+int64(done)-begin); err != nil {
			return done, fmt.Errorf("%s: %w", f.path, err)
		}
		done += len(part)
	}
	clear(p[done:])
	if short {
		return len(p), io.EOF
	}
	return len(p), nil
}

// after are the runs that end after a block.
func (f *File) after(block int64) []run {
	low, high := 0, len(f.runs)
	for low < high {
		mid := (low + high) / 2
		if r := f.runs[mid]; r.first+r.count > block {
			high = mid
		} else {
			low = mid + 1
		}
	}
	return f.runs[low:]
}

// open gives an inode's contents, if they are no more than limit bytes.
func (v *volume) open(n *node, path string, limit int64) (*File, error) {
	switch {
	case n.size > limit:
		return nil, fmt.Errorf("%s: %d bytes; at most %d are read", path, n.size, limit)
	case n.flags&flagEncrypted != 0:
		return nil, fmt.Errorf("%s: encrypted", path)
	case n.flags&flagInline != 0:
		return nil, fmt.Errorf("%s: its data are in its inode, which is not known here", path)
	}
	m := mapper{v: v, last: (n.size + v.block - 1) / v.block}
	var err error
	if n.flags&flagExtents != 0 {
		err = m.extents(n.blocks[:], -1)
	} else {
		err = m.table(n.blocks[:])
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &File{path: path, v: v, size: n.size, runs: m.runs}, nil
}

// mapper collects the runs of a file.
type mapper struct {
	v     *volume
	last  int64 // the file's blocks
	runs  []run
	nodes int // blocks of the tree that were read
}

// add appends a run, which must be behind the others.
func (m *mapper) add(first, count int64, block uint64) error {
	if count = min(count, m.last-first); count <= 0 {
		return nil // allocated past the end
	}
	at, err := m.v.offset(block)
	if err != nil {
		return err
	}
	if k := len(m.runs); k > 0 {
		prev := &m.runs[k-1]
		if first < prev.first+prev.count {
			return errors.New("damaged: its blocks are out of order")
		}
		if first == prev.first+prev.count && at == prev.at+prev.count*m.v.block {
			prev.count += count
			return nil
		}
	}
	if len(m.runs) == maxRuns {
		return fmt.Errorf("in more than %d pieces", maxRuns)
	}
	m.runs = append(m.runs, run{first, count, at})
	return nil
}

// load reads a block of the file's tree or tables.
func (m *mapper) load(block uint64) ([]byte, error) {
	if m.nodes++; m.nodes > maxNodes {
		return nil, errors.New("damaged: too large a map of its blocks")
	}
	at, err := m.v.offset(block)
	if err != nil {
		return nil, err
	}
	b := make([]byte, m.v.block)
	return b, m.v.read(b, at)
}

// extents walks a node of a tree of extents, of a depth, or of any if that is -1.
func (m *mapper) extents(b []byte, depth int) error {
	le := binary.LittleEndian
	entries, has := int(le.Uint16(b[2:])), int(le.Uint16(b[6:]))
	if le.Uint16(b) != extentMagic || has > extentDepth || depth >= 0 && has != depth || entries > len(b)/12-1 {
		return errors.New("damaged: its tree of extents")
	}
	for i := range entries {
		e := b[12*(i+1):][:12]
		first := int64(le.Uint32(e))
		if has > 0 {
			child, err := m.load(uint64(le.Uint32(e[4:])) | uint64(le.Uint16(e[8:]))<<32)
			if err != nil {
				return err
			}
			if err := m.extents(child, has-1); err != nil {
				return err
			}
			continue
		}
		count := int64(le.Uint16(e[4:]))
		if count > extentUnwritten {
			continue // reads as zeroes
		}
		if err := m.add(first, count, uint64(le.Uint32(e[8:]))|uint64(le.Uint16(e[6:]))<<32); err != nil {
			return err
		}
	}
	return nil
}

// table walks the block numbers of a file of ext2 or ext3: twelve, and those of
// tables of one, two and three levels.
func (m *mapper) table(b []byte) error {
	next := int64(0)
	for i := range 15 {
		if err := m.level(&next, uint64(binary.LittleEndian.Uint32(b[4*i:])), max(0, i-11)); err != nil {
			return err
		}
	}
	return nil
}

// level adds what a number at a level stands for, and counts its blocks in next.
func (m *mapper) level(next *int64, block uint64, level int) error {
	if *next >= m.last {
		return nil
	}
	span := int64(1)
	for range level {
		span *= m.v.block / 4
	}
	if block == 0 {
		*next += span // a hole
		return nil
	}
	if level == 0 {
		*next++
		return m.add(*next-1, 1, block)
	}
	b, err := m.load(block)
	if err != nil {
		return err
	}
	for ; len(b) > 0; b = b[4:] {
		if err := m.level(next, uint64(binary.LittleEndian.Uint32(b)), level-1); err != nil {
			return err
		}
	}
	return nil
}

// entry is a name in a directory.
type entry struct {
	name  string
	inode uint32
}

// list reads a directory. Indexed ones read the same: their indexes look like
// entries that are not used.
func (v *volume) list(n *node, path string) ([]entry, error) {
	f, err := v.open(n, path, maxDirectory)
	if err != nil {
		return nil, err
	}
	var all []entry
	b := make([]byte, v.block)
	for off := int64(0); off < f.size; off += v.block {
		if _, err := f.ReadAt(b, off); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		for rest := b; len(rest) >= 8; {
			inode, length := binary.LittleEndian.Uint32(rest), int(binary.LittleEndian.Uint16(rest[4:]))
			if length == 0 || length == 0xffff { // 64 KiB do not fit
				length = len(rest)
			}
			name := int(rest[6])
			if length < 8 || length > len(rest) || name > length-8 {
				return nil, fmt.Errorf("%s: damaged: an entry of %d bytes", path, length)
			}
			if inode != 0 && name > 0 {
				all = append(all, entry{string(rest[8:][:name]), inode})
			}
			rest = rest[length:]
		}
	}
	return all, nil
}

// walk finds path, following symbolic links. The error wraps fs.ErrNotExist if
// there is nothing. Nothing is found outside of this filesystem.
func (v *volume) walk(path string) (*node, error) {
	root, err := v.node(rootInode)
	if err != nil {
		return nil, err
	}
	at := []*node{root} // the way down
	todo := strings.Split(path, "/")
	links := 0
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		here := at[len(at)-1]
		switch name {
		case "", ".":
			continue
		case "..":
			at = at[:max(1, len(at)-1)]
			continue
		}
		n, err := v.child(here, name, path)
		if err != nil {
			return nil, err
		}
		if !n.is(modeLink) {
			at = append(at, n)
			continue
		}
		if links++; links > maxLinks {
			return nil, fmt.Errorf("%s: more than %d symbolic links", path, maxLinks)
		}
		target, err := v.target(n, path)
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(target, "/") {
			at = at[:1]
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return at[len(at)-1], nil
}

func (v *volume) child(dir *node, name, path string) (*node, error) {
	if !dir.is(modeDir) {
		return nil, fmt.Errorf("%s: %w", path, fs.ErrNotExist)
	}
	all, err := v.list(dir, path)
	if err != nil {
		return nil, err
	}
	for _, e := range all {
		if e.name == name {
			return v.node(e.inode)
		}
	}
	return nil, fmt.Errorf("%s: %w", path, fs.ErrNotExist)
}

// target is what a symbolic link says.
func (v *volume) target(n *node, path string) (string, error) {
	if n.size < int64(len(n.blocks)) && n.flags&flagExtents == 0 {
		return string(n.blocks[:n.size]), nil
	}
	b, err := v.all(n, path, maxLink)
	return string(b), err
}

// all is a small file's contents.
func (v *volume) all(n *node, path string, limit int64) ([]byte, error) {
	f, err := v.open(n, path, limit)
	if err != nil {
		return nil, err
	}
	b := make([]byte, f.size)
	if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b, nil
}

// file opens the regular file at path.
func (v *volume) file(path string) (*File, error) {
	n, err := v.walk(path)
	if err != nil {
		return nil, err
	}
	if !n.is(modeRegular) {
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	return v.open(n, "/"+strings.TrimPrefix(path, "/"), maxFile)
}

// names are those in the directory at path; none if there is no such directory.
func (v *volume) names(path string) ([]string, error) {
	n, err := v.walk(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !n.is(modeDir) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	all, err := v.list(n, path)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(all))
	for i, e := range all {
		names[i] = e.name
	}
	return names, nil
}
