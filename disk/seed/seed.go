// Package seed makes the disk from which cloud-init's NoCloud source takes what a
// guest is to become: a FAT filesystem labelled CIDATA with user-data, meta-data
// and, if given, network-config and vendor-data. It is in memory, and read-only.
//
// What the files say is cloud-init's business and not looked at, except that the
// user-data are of a kind that cloud-init would not silently ignore.
package seed

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/diskfs/go-diskfs/backend"
	"github.com/diskfs/go-diskfs/filesystem/fat12"
)

const (
	userData = "user-data"
	metaData = "meta-data"

	label = "CIDATA"
	size  = 2 << 20 // bytes of the disk
	// maxFiles bounds the bytes of all files together.
	maxFiles = 1 << 20
)

// others are the files that a folder may hold besides user-data.
var others = []string{metaData, "network-config", "vendor-data"}

// Files are the disk's, by name.
type Files map[string][]byte

// Read takes the files for a seed from path: a folder in which they lie, with those
// names, or a file that is the user-data. If there are no meta-data, they are made:
// the host name is name, or disco if that is empty, and the instance's identifier
// depends on all that is there, so that cloud-init starts over exactly if something
// else is asked of it.
func Read(path, name string) (Files, error) {
	files, err := read(path)
	if err != nil {
		return nil, fmt.Errorf("cloud-init %s: %w", path, err)
	}
	if _, given := files[metaData]; !given {
		if name == "" {
			name = "disco"
		}
		files[metaData] = fmt.Appendf(nil, "instance-id: disco-%s\nlocal-hostname: %s\n", files.digest(), name)
	}
	return files, nil
}

func read(path string) (Files, error) {
	files := Files{}
	st, err := os.Stat(path)
	if err != nil {
		return nil, pathless(err)
	}
	if !st.IsDir() {
		if files[userData], err = readFile(path); err != nil {
			return nil, err
		}
		return files, files.check()
	}
	for _, n := range append([]string{userData}, others...) {
		b, err := readFile(filepath.Join(path, n))
		switch {
		case err == nil:
			files[n] = b
		case !errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("%s: %w", n, err)
		case n == userData:
			return nil, fmt.Errorf("the folder has no file %s", userData)
		}
	}
	return files, files.check()
}

// readFile reads a regular file that fits.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, pathless(err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(pathless(err), errors.New("not a regular file"))
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFiles+1))
	return b, pathless(err)
}

// pathless is err without the path that the caller's message already names.
func pathless(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// kinds are the beginnings by which cloud-init knows what user-data are.
var kinds = []string{
	"#cloud-config", "#!", "#include", "#cloud-boothook", "#part-handler", "#upstart-job", "## template:",
	"Content-Type:", "MIME-Version:", "From ", "\x1f\x8b",
}

func (f Files) check() error {
	total := 0
	for _, b := range f {
		total += len(b)
	}
	if total > maxFiles {
		return fmt.Errorf("more than %d KiB", maxFiles>>10)
	}
	u := f[userData]
	for _, k := range kinds {
		if bytes.HasPrefix(u, []byte(k)) {
			return nil
		}
	}
	if len(u) == 0 {
		return nil
	}
	line, _, _ := bytes.Cut(u[:min(len(u), 40)], []byte("\n"))
	return fmt.Errorf("its user-data begin with %q, which cloud-init would ignore; begin with #cloud-config, or with #! for a script", line)
}

// digest stands for all that is in f.
func (f Files) digest() string {
	h := sha256.New()
	for _, n := range append([]string{userData}, others...) {
		fmt.Fprintf(h, "%s %d\n", n, len(f[n]))
		h.Write(f[n])
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:6])
}

// New makes the disk. It is the same for the same files.
func New(files Files) (*Disk, error) {
	d := &Disk{bytes: make([]byte, size)}
	if err := d.fill(files); err != nil {
		return nil, fmt.Errorf("cloud-init: the seed disk: %w", err)
	}
	return d, nil
}

func (d *Disk) fill(files Files) error {
	v, err := fat12.Create(&image{SectionReader: io.NewSectionReader(bytes.NewReader(d.bytes), 0, size), bytes: d.bytes}, size, 0, 0, label, true)
	if err != nil {
		return err
	}
	for _, n := range append([]string{userData}, others...) {
		b, given := files[n]
		if !given {
			continue
		}
		f, err := v.OpenFile("/"+n, os.O_CREATE|os.O_RDWR)
		if err != nil {
			return err
		}
		if len(b) > 0 {
			if _, err := f.Write(b); err != nil {
				return err
			}
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return v.SetRootDirLabel(label)
}

// image is the disk's bytes as the library wants them.
type image struct {
	*io.SectionReader
	bytes []byte
}

func (i *image) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > int64(len(i.bytes)-len(p)) {
		return 0, io.ErrShortWrite
	}
	return copy(i.bytes[off:], p), nil
}

func (i *image) Stat() (fs.FileInfo, error)              { return nil, errors.ErrUnsupported }
func (i *image) Close() error                            { return nil }
func (i *image) Sys() (*os.File, error)                  { return nil, backend.ErrNotSuitable }
func (i *image) Writable() (backend.WritableFile, error) { return i, nil }
func (i *image) Path() string                            { return "" }
