package vmm

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"

	"disco/folder"
	"disco/memory/arena"
	virtiofs "disco/virtio/fs"
	"disco/vmm/boot"
)

// Folder is a folder of the host that the guest can mount: a virtio-fs device.
type Folder struct {
	Path     string // of a directory
	Tag      string // by which the guest mounts it, 1 to 36 bytes of printable text without spaces
	ReadOnly bool   // the guest changes nothing in it
	// Window is the size in bytes of the window in which the guest may map the
	// host's page cache, a power of two from 2 MiB; 0 for none. The guest's kernel
	// spends a 64th of it on keeping books.
	Window uint64
	// Advise has guests that were not told otherwise map files of 64 KiB or more.
	Advise bool
}

const (
	// DefaultWindow is what is usual for Folder.Window.
	DefaultWindow = 256 << 20
	// mapFrom is the size of a file from which the guest is advised to map it: to
	// map it costs a mapping of 2 MiB and requests, to copy it costs copies.
	mapFrom = 64 << 10
)

// folders checks that folders can be opened, and that they have names of their own.
func (v *validator) folders(c *Config) {
	tags := map[string]bool{}
	var windows uint64
	for _, f := range c.Folders {
		v.folder(f.Path)
		if f.Tag == "" || len(f.Tag) > virtiofs.MaxTag || strings.ContainsFunc(f.Tag, func(r rune) bool { return !unicode.IsGraphic(r) || unicode.IsSpace(r) }) {
			v.add("share %s: tag %q: use 1 to %d bytes of printable text without spaces; write DIR:TAG", f.Path, f.Tag, virtiofs.MaxTag)
		}
		if tags[f.Tag] {
			v.add("share %s: another folder has the tag %q; give one of them another by DIR:TAG", f.Path, f.Tag)
		}
		tags[f.Tag] = true
		if f.Advise && f.Window == 0 {
			v.add("share %s: without a window files cannot be mapped; leave out dax or window=off", f.Path)
		}
		if f.Window != 0 && (f.Window < virtiofs.MinWindow || f.Window&(f.Window-1) != 0) {
			v.add("share %s: a window of %s; give it a power of two from %s, or off", f.Path, FormatSize(f.Window), FormatSize(virtiofs.MinWindow))
			continue
		}
		if windows += f.Window; windows > boot.Window64Size/2 {
			v.add("share %s: the windows of all shares together are more than %s", f.Path, FormatSize(boot.Window64Size/2))
			windows = 0
		}
	}
}

func (v *validator) folder(path string) {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		v.add("share %s: there is no such folder", path)
	case err != nil:
		v.add("share %s: %w", path, reason(err))
	case !st.IsDir():
		v.add("share %s: it is not a folder", path)
	default:
		v.access("share", path, st, unix.R_OK|unix.X_OK, "read")
	}
}

// sharedFolder is a folder of a guest with its device.
type sharedFolder struct {
	tag    string
	files  *folder.Folder
	device *virtiofs.Device
}

// openFolder opens a folder for the guest.
func (b *backends) openFolder(f Folder, cfg *Config, log *slog.Logger) {
	c := folder.Config{Path: f.Path, ReadOnly: f.ReadOnly}
	c.Nodes, c.Files, c.Cached = folderBounds(cfg.Memory)
	var window *virtiofs.Window
	if f.Window != 0 {
		var err error
		if window, err = openWindow(f.Window); err != nil {
			log.Warn("a shared folder cannot be mapped by the guest, which copies then", "share", f.Path, "err", err)
		} else {
			if f.Advise {
				c.MapFrom = mapFrom
			}
			b.own(window.Close)
		}
	}
	files, err := folder.Open(c)
	if err != nil {
		b.refusals = append(b.refusals, err)
		return
	}
	b.own(files.Close)
	dev, err := virtiofs.New(virtiofs.Config{
		Tag: f.Tag, Backend: files, Queues: min(cfg.CPUs, maxQueues), Window: window, Log: log.With("share", f.Tag),
	})
	if err != nil {
		b.refusals = append(b.refusals, err)
		return
	}
	b.devices = append(b.devices, dev)
	b.folders = append(b.folders, sharedFolder{f.Tag, files, dev})
}

func openWindow(size uint64) (*virtiofs.Window, error) {
	if _, err := arena.VMAs.Measure(int64(size / virtiofs.MinWindow)); err != nil {
		return nil, err
	}
	return virtiofs.NewWindow(size)
}

// folderBounds are what a guest of so many bytes of memory may hold of a folder. A
// file that it knows of costs its kernel a kibibyte or more, so half as many are
// enough for one that knows of nothing else. Of the descriptors of this process,
// which guests, disks and networks need too, one folder gets a small part.
func folderBounds(memory uint64) (nodes, files, cached int) {
	const leastNodes, mostNodes = 1 << 14, 1 << 20
	nodes = int(min(max(memory/2048, leastNodes), mostNodes))
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		limit.Cur = 1024
	}
	const least = 64
	return nodes, int(min(max(limit.Cur/16, least), 1<<14)), int(min(max(limit.Cur/64, least), 1<<12))
}

// FolderStats is what a guest has done with a shared folder since it was made, and
// what it holds of it now.
type FolderStats struct {
	Tag string `json:"tag"`
	virtiofs.Stats
	Held folder.Stats `json:"held"`
}

// FolderStats are those of Config.Folders, in order. It is for before Close.
func (g *Guest) FolderStats() []FolderStats {
	var all []FolderStats
	for _, f := range g.backends.folders {
		all = append(all, FolderStats{f.tag, f.device.Stats(), f.files.Stats()})
	}
	return all
}

// GuestFolder is what a guest of a Monitor does with a shared folder.
type GuestFolder struct {
	Guest string
	FolderStats
	// Common is how many of the bytes mapped by the guest another guest's window, or
	// another of its own, shows too: those pages exist once.
	Common uint64
}

// FolderStats are those of all guests, in the order of their making.
func (m *Monitor) FolderStats() []GuestFolder {
	var all []GuestFolder
	var pieces [][]virtiofs.Piece
	windows := map[virtiofs.Piece]int{}
	for _, g := range m.Guests() {
		stats := g.FolderStats()
		for i, f := range g.backends.folders {
			all = append(all, GuestFolder{Guest: g.cfg.Name, FolderStats: stats[i]})
			here := f.device.Pieces(nil)
			pieces = append(pieces, here)
			for _, p := range here {
				windows[p.Same()]++
			}
		}
	}
	for i := range all {
		for _, p := range pieces[i] {
			if windows[p.Same()] > 1 {
				all[i].Common += p.Bytes
			}
		}
	}
	return all
}

// mender is a device with memory that may lose pages.
type mender interface{ Mend() bool }

// mend mends what it can of the devices' memory. It is called on the thread of a
// vCPU that could not reach a page.
func (m *machine) mend() bool {
	mended := false
	for _, d := range m.menders {
		mended = d.Mend() || mended
	}
	return mended
}
