package boot

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// cacheFormat is part of every key: a new number leaves old entries unused.
	cacheFormat = 2
	// cacheKeep is how many unpacked kernels are kept, about 30 MiB each.
	cacheKeep = 4
	// cacheStale is the age at which another process's unfinished entry is
	// taken for left behind.
	cacheStale = time.Hour

	cacheSuffix = ".vmlinux"
	tempSuffix  = ".tmp"
)

// OpenKernel opens the kernel at path. The Kernel reads from the file, which is
// the caller's to close; it is nil exactly if there is an error.
func OpenKernel(path string) (*Kernel, *os.File, error) {
	k, f, _, err := openKernel(path)
	return k, f, err
}

// OpenUnpacked does the same, but gives a bzImage as the ELF inside it, which is
// unpacked once and then kept, trimmed, in the user's cache folder; where there
// can be no such folder it is unpacked into memory each time.
func OpenUnpacked(path string) (*Kernel, *os.File, error) {
	k, f, st, err := openKernel(path)
	if err != nil || !k.Packed() {
		return k, f, err
	}
	defer f.Close()
	return unpacked(path, k, cacheEntry(path, st))
}

// OpenUnpackedAt is OpenUnpacked for the kernel of size bytes in r, such as one in
// a disk's image; the name is for messages. If it is no bzImage, the Kernel reads
// from r, and the file is nil.
func OpenUnpackedAt(name string, r io.ReaderAt, size int64) (*Kernel, *os.File, error) {
	k, err := ParseKernel(name, r, size)
	if err != nil || !k.Packed() {
		return k, nil, err
	}
	// What it is read from may be a disk that changes, so its contents are the key.
	h := sha256.New()
	fmt.Fprintf(h, "%d\x00contents\x00", cacheFormat)
	if _, err := io.Copy(h, io.NewSectionReader(r, 0, size)); err != nil {
		return nil, nil, fmt.Errorf("kernel %s: %w", name, err)
	}
	return unpacked(name, k, cacheFile(h.Sum(nil)))
}

// unpacked is a bzImage's ELF, from the cache's entry if it is there.
func unpacked(name string, k *Kernel, entry string) (*Kernel, *os.File, error) {
	if k, c, ok := openCached(name, entry); ok {
		return k, c, nil
	}
	u, mem, err := unpackKernel(name, k)
	if err != nil {
		return nil, nil, err
	}
	if entry != "" && saveCached(u, entry) == nil {
		if k, c, ok := openCached(name, entry); ok {
			mem.Close()
			return k, c, nil
		}
	}
	return u, mem, nil
}

func openKernel(path string) (*Kernel, *os.File, fs.FileInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("kernel %s: %w", path, pathless(err))
	}
	st, err := f.Stat()
	if err != nil {
		return nil, nil, nil, errors.Join(fmt.Errorf("kernel %s: %w", path, pathless(err)), f.Close())
	}
	k, err := ParseKernel(path, f, st.Size())
	if err != nil {
		return nil, nil, nil, errors.Join(err, f.Close())
	}
	return k, f, st, nil
}

// pathless is err without the path that the caller's message already names.
func pathless(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// cacheEntry is the file in which the kernel at path is cached, or empty for
// none. The times of change stand for the contents. The inode's number does
// not: the same file has another one when it is seen through a 9p mount.
func cacheEntry(path string, st fs.FileInfo) string {
	path, err := filepath.Abs(path)
	if err != nil {
		return ""
	}
	var changed syscall.Timespec
	if raw, ok := st.Sys().(*syscall.Stat_t); ok {
		changed = raw.Ctim
	}
	key := sha256.Sum256(fmt.Appendf(nil, "%d\x00%s\x00%d\x00%d\x00%d",
		cacheFormat, path, st.Size(), st.ModTime().UnixNano(), changed.Nano()))
	return cacheFile(key[:])
}

// cacheFile is the file of a key, or empty for none.
func cacheFile(key []byte) string {
	dir, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "disco", "kernels", fmt.Sprintf("%x%s", key[:12], cacheSuffix))
}

// openCached opens a cache entry, if it is there and whole. An ELF's headers say
// how long the file is, so parsing finds a truncated one.
func openCached(path, entry string) (*Kernel, *os.File, bool) {
	if entry == "" {
		return nil, nil, false
	}
	f, err := os.Open(entry)
	if err != nil {
		return nil, nil, false
	}
	st, err := f.Stat()
	if err == nil {
		var k *Kernel
		if k, err = ParseKernel(path, f, st.Size()); err == nil && !k.Packed() {
			now := time.Now()
			os.Chtimes(entry, now, now) // best effort: the oldest are dropped first
			return k, f, true
		}
	}
	f.Close()
	return nil, nil, false
}

// unpackKernel unpacks k into a file that is only in memory.
func unpackKernel(path string, k *Kernel) (*Kernel, *os.File, error) {
	fd, err := unix.MemfdCreate("disco-kernel", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, nil, fmt.Errorf("kernel %s: memory to unpack it in: %w", path, err)
	}
	mem := os.NewFile(uintptr(fd), path)
	if err := k.Unpack(mem); err != nil {
		return nil, nil, errors.Join(err, mem.Close())
	}
	// Decompressors keep windows of many MiB, and this process lives long.
	debug.FreeOSMemory()
	st, err := mem.Stat()
	if err != nil {
		return nil, nil, errors.Join(err, mem.Close())
	}
	u, err := ParseKernel(path, mem, st.Size())
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("unpacked %w", err), mem.Close())
	}
	if u.Packed() {
		return nil, nil, errors.Join(fmt.Errorf("kernel %s: what is packed in it is not an ELF", path), mem.Close())
	}
	return u, mem, nil
}

// saveCached writes k to a cache entry, whole or not at all, and drops the
// entries that have not been used for longest.
func saveCached(k *Kernel, entry string) (err error) {
	dir := filepath.Dir(entry)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	trimCache(dir, cacheKeep-1)
	f, err := os.CreateTemp(dir, "*"+tempSuffix)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if err := k.Trim(f); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return os.Rename(f.Name(), entry)
}

// trimCache removes all but the keep newest entries of dir, and what killed
// processes left there. A guest that has an entry open keeps its contents.
func trimCache(dir string, keep int) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	type aged struct {
		name string
		used time.Time
	}
	var entries []aged
	for _, f := range files {
		st, err := f.Info()
		if err != nil || !st.Mode().IsRegular() {
			continue
		}
		switch {
		case strings.HasSuffix(f.Name(), cacheSuffix):
			entries = append(entries, aged{f.Name(), st.ModTime()})
		case strings.HasSuffix(f.Name(), tempSuffix) && time.Since(st.ModTime()) > cacheStale:
			os.Remove(filepath.Join(dir, f.Name()))
		}
	}
	slices.SortFunc(entries, func(a, b aged) int { return cmp.Or(b.used.Compare(a.used), cmp.Compare(a.name, b.name)) })
	for _, e := range entries[min(keep, len(entries)):] {
		os.Remove(filepath.Join(dir, e.name))
	}
}
