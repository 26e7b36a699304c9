package vmm

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"disco/disk"
	"disco/disk/cache"
	"disco/disk/limit"
	"disco/disk/overlay"
	"disco/disk/qcow2"
	"disco/disk/turns"
	"disco/memory"
	"disco/memory/arena"
	"disco/numa/balance"
	"disco/scheduler/flow"
	"disco/virtio/blk"
)

// Disk is one virtio block device. Its zero value but for the Path is an image of
// either format that is written in place.
type Disk struct {
	Path     string // a regular file or a block device
	Format   string // "raw" or "qcow2"; empty finds out
	ReadOnly bool   // the guest sees a read-only device, and the file is opened so
	Overlay  Overlay
	Persist  string // OverlayPersist: the qcow2 file, made if it does not exist
	Backing  bool   // the image may name a backing file, in its own folder
	Cache    CacheMode
	IOPS     uint64 // requests a second; 0 for no limit
	BPS      uint64 // bytes a second; 0 for no limit
	Share    ShareMode
}

// Overlay says where a guest's writes to a disk go.
type Overlay int

const (
	// OverlayNone is the image itself.
	OverlayNone Overlay = iota
	// OverlayMemory is the monitor's memory: they are gone at power-off, and
	// outlive a restart.
	OverlayMemory
	// OverlayPersist is the qcow2 file Disk.Persist, whose backing file the image is.
	OverlayPersist
)

// CacheMode says when a guest's write is done.
type CacheMode int

const (
	// Writeback is when the host's page cache has it; a flush makes it stable.
	Writeback CacheMode = iota
	// Writethrough is when it is on stable storage.
	Writethrough
	// Direct is when the host's device has it, past the page cache; a flush makes
	// it stable.
	Direct
)

// ShareMode says whether guests that read the same blocks of a base get the same
// pages of memory.
type ShareMode int

const (
	// ShareAuto has them do so where it pays.
	ShareAuto ShareMode = iota
	// ShareAlways has them do so wherever it is possible.
	ShareAlways
	// ShareNever gives each guest a copy.
	ShareNever
)

// openDisk puts the layers of a disk on one another.
func (b *backends) openDisk(d Disk, cfg *Config, log *slog.Logger) {
	img, err := b.layers(d)
	if err != nil {
		b.problems = append(b.problems, err)
		return
	}
	b.devices = append(b.devices, blk.New(blk.Config{
		Backend: img, Queues: min(cfg.CPUs, maxQueues), ID: filepath.Base(d.Path), Share: d.Share.blk(), Log: log,
	}))
}

// layers opens what a disk is made of, and returns the uppermost.
func (b *backends) layers(d Disk) (blk.Backend, error) {
	img, err := b.images(d)
	if err != nil {
		return nil, err
	}
	b.disks = append(b.disks, img)
	return limit.New(turns.New(img, b.flow(d.Path)), d.IOPS, d.BPS), nil
}

// flow is the guest's, for requests to the disk that path is on, or nil.
func (b *backends) flow(path string) *flow.Flow {
	if b.turns == nil {
		return nil
	}
	return b.turns.turns(path)
}

// images opens a disk without its limits.
func (b *backends) images(d Disk) (disk.Disk, error) {
	options := disk.Options{
		ReadOnly: d.ReadOnly, Format: disk.Format(d.Format), Backing: d.Backing,
		Direct: d.Cache == Direct, WriteThrough: d.Cache == Writethrough,
	}
	if !d.based() {
		img, err := disk.Open(d.Path, options)
		if err == nil {
			b.own(img.Close)
		}
		return img, err
	}
	whole, err := b.bases.get(d)
	if err != nil {
		return nil, err
	}
	b.own(func() error { return b.bases.put(whole) })
	base := &near{whole, whole.From(0, false)}
	b.readers = append(b.readers, base.Reader)
	switch d.Overlay {
	case OverlayMemory:
		o, err := overlay.New(base, "disco-overlay-"+filepath.Base(d.Path))
		if err == nil {
			b.own(o.Close)
		}
		return o, err
	case OverlayPersist:
		options.Base, options.Format = base, disk.FormatOf(base.image)
		layer, err := disk.OpenOverlay(d.Persist, d.Path, options)
		if err != nil {
			return nil, err
		}
		b.own(layer.Close)
		return &kept{layer, base}, nil
	}
	return base, nil
}

// near is a base as one guest reads it.
type near struct {
	*base
	*cache.Reader
}

// readFrom has the guest's bases read from its first node, and copied there if its
// policy copies memory.
func (b *backends) readFrom(p *place, cfg *Config) {
	if len(b.readers) == 0 {
		return
	}
	node, copies := b.bases.near(p, cfg)
	for _, r := range b.readers {
		r.Move(node, copies)
	}
}

// near is from where a guest reads bases: its first node, of the cache's, and whether
// what others have is copied there.
func (s *bases) near(p *place, cfg *Config) (node int, copies bool) {
	if len(p.nodes) == 0 {
		return 0, false
	}
	policy := cfg.NUMA.Balance.Policy
	return max(0, slices.Index(s.nodes(), int(p.nodes[0]))), policy == balance.Replicate || policy == balance.Full
}

// kept is a persisted overlay that lends what is not its own.
type kept struct {
	*disk.Layer
	base *near
}

// Lend lends pages of the base where the overlay has nothing.
func (k *kept) Lend(off, n int64) (r memory.Run, skip int64) {
	const mask = arena.PageSize - 1
	where, run, err := k.Lookup(off, n)
	if err != nil {
		return r, n // reading it says what is wrong
	}
	if where == qcow2.Below {
		if run = min(run, k.base.Size()-off) &^ mask; run > 0 {
			return k.base.Lend(off, run)
		}
	}
	return r, max(run&^mask, arena.PageSize)
}

// Return ends a Lend.
func (k *kept) Return(r memory.Run, mapped int) { k.base.Return(r, mapped) }

// blk is the mode as the device knows it.
func (m ShareMode) blk() blk.Share {
	return [...]blk.Share{ShareAuto: blk.ShareAuto, ShareAlways: blk.ShareAlways, ShareNever: blk.ShareNever}[m]
}

func (v *validator) disks(disks []Disk) {
	type used struct {
		st       os.FileInfo
		readOnly bool
	}
	var seen []used
	for _, d := range disks {
		if d.Path == "" {
			v.add("disk: it has no path")
			continue
		}
		st := v.stat("disk", d.Path)
		if st == nil {
			continue
		}
		mode, verb := uint32(unix.R_OK|unix.W_OK), "read and write"
		if d.ReadOnly || d.Overlay != OverlayNone {
			mode, verb = unix.R_OK, "read"
		}
		if m := st.Mode(); !m.IsRegular() && m.Type() != fs.ModeDevice {
			v.add("disk %s: it is neither a regular file nor a block device", d.Path)
			continue
		}
		v.access("disk", d.Path, st, mode, verb)
		v.layers(d)
		for _, u := range seen {
			if os.SameFile(st, u.st) && !(mode == unix.R_OK && u.readOnly) {
				v.add("disk %s: it is given twice, and not read-only both times", d.Path)
				break
			}
		}
		seen = append(seen, used{st, mode == unix.R_OK})
	}
	for i, d := range disks {
		if d.Persist != "" {
			v.persist(d, disks[:i])
		}
		for _, u := range seen {
			if st, err := os.Stat(d.Persist); err == nil && os.SameFile(st, u.st) {
				v.add("overlay %s: it is a disk, too", d.Persist)
				break
			}
		}
	}
}

// persist looks at the file that an overlay is kept in, or where it is to be made.
func (v *validator) persist(d Disk, before []Disk) {
	for _, o := range before {
		if filepath.Clean(o.Persist) == filepath.Clean(d.Persist) {
			v.add("overlay %s: it is given twice", d.Persist)
		}
	}
	st, err := os.Stat(d.Persist)
	if errors.Is(err, fs.ErrNotExist) {
		dir := filepath.Dir(d.Persist)
		if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
			v.add("overlay %s: this user cannot make it in %s (%w)", d.Persist, dir, err)
		}
		return
	}
	switch {
	case err != nil:
		v.add("overlay %s: %w", d.Persist, reason(err))
	case st.IsDir():
		v.add("overlay %s: it is a directory; name a file", d.Persist)
	default:
		if err := unix.Access(d.Persist, unix.R_OK|unix.W_OK); err != nil {
			v.add("overlay %s: this user cannot read and write it (%w)", d.Persist, err)
		}
	}
}

func (v *validator) layers(d Disk) {
	switch disk.Format(d.Format) {
	case "", disk.FormatRaw, disk.FormatQCOW2:
	default:
		v.add("disk %s: the format %q is not known; there are raw and qcow2", d.Path, d.Format)
	}
	if d.Overlay < OverlayNone || d.Overlay > OverlayPersist {
		v.add("disk %s: overlay %d: there is no such kind", d.Path, int(d.Overlay))
	}
	if d.Cache < Writeback || d.Cache > Direct {
		v.add("disk %s: cache mode %d: there is no such one", d.Path, int(d.Cache))
	}
	if d.Share < ShareAuto || d.Share > ShareNever {
		v.add("disk %s: share mode %d: there is no such one", d.Path, int(d.Share))
	}
	if (d.Overlay == OverlayPersist) != (d.Persist != "") {
		v.add("disk %s: a persisted overlay and the file to keep it in go together", d.Path)
	}
	if d.ReadOnly && d.Overlay != OverlayNone {
		v.add("disk %s: a read-only disk needs no overlay; give it one or the other", d.Path)
	}
}
