package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// folders are where kernels lie: in /boot of a root filesystem, or at the root of
// one that is mounted there.
var folders = []string{"/boot", "/"}

// system finds what the volume boots; nil if it has no kernel.
func (v *volume) system() (*System, error) {
	for _, find := range []func(*volume, string) (*System, error){(*volume).linked, (*volume).specified, (*volume).newest} {
		for _, dir := range folders {
			if s, err := find(v, dir); s != nil || err != nil {
				return s, err
			}
		}
	}
	return nil, nil
}

// linked takes the links that Debian's and Ubuntu's kernels keep up to date.
func (v *volume) linked(dir string) (*System, error) {
	for _, at := range []string{"/", dir} {
		if s, err := v.pair(path.Join(at, "vmlinuz"), path.Join(at, "initrd.img")); s != nil || err != nil {
			return s, err
		}
	}
	return nil, nil
}

// pair opens a kernel and its initrd; nil if there is no such kernel. There may be
// no such initrd, or the name may be empty for none.
func (v *volume) pair(kernel, initrd string) (*System, error) {
	k, err := v.file(kernel)
	if err != nil {
		return nil, absent(err)
	}
	s := &System{Kernel: k}
	if initrd != "" {
		s.Initrd, err = v.file(initrd)
		err = absent(err)
	}
	return s, err
}

// absent is err unless it says that there is no such file.
func absent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

const (
	// maxEntries bounds the boot entries that are looked at, and maxEntry the bytes
	// of one.
	maxEntries = 100
	maxEntry   = 16 << 10
)

// specified takes the entry of the Boot Loader Specification that sorts highest,
// which is the newest kernel's; the rescue entries sort below.
func (v *volume) specified(dir string) (*System, error) {
	entries := path.Join(dir, "loader/entries")
	names, err := v.names(entries)
	if err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(n string) bool { return !strings.HasSuffix(n, ".conf") || strings.Contains(n, "rescue") })
	slices.SortFunc(names, func(a, b string) int { return compareVersions(b, a) })
	for _, name := range names[:min(len(names), maxEntries)] {
		at := path.Join(entries, name)
		n, err := v.walk(at)
		if err != nil {
			return nil, err
		}
		if !n.is(modeRegular) {
			continue
		}
		b, err := v.all(n, at, maxEntry)
		if err != nil {
			return nil, err
		}
		keys := parseEntry(string(b))
		if keys["linux"] == "" {
			continue
		}
		// Its paths are from the root of the filesystem that it is on.
		initrd, _, _ := strings.Cut(keys["initrd"], " ") // GRUB's variables may follow
		s, err := v.pair(keys["linux"], initrd)
		if err != nil {
			return nil, err
		}
		if s != nil {
			s.Words = rootWords(keys["options"])
			return s, nil
		}
	}
	return nil, nil
}

// parseEntry reads lines of a key and a value; of a key that comes again the first
// counts.
func parseEntry(text string) map[string]string {
	keys := map[string]string{}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if _, again := keys[key]; !again {
			keys[key] = strings.TrimSpace(value)
		}
	}
	return keys
}

// rootWords are those of an entry's options that say where the root is and how it is
// mounted; empty if they do not say where.
func rootWords(options string) string {
	var words []string
	found := false
	for _, w := range strings.Fields(options) {
		name, value, _ := strings.Cut(w, "=")
		switch name {
		case "root":
			found = value != "" && !strings.Contains(value, "$")
			words = append(words, w)
		case "ro", "rw", "rootflags", "rootfstype":
			words = append(words, w)
		}
	}
	if !found {
		return ""
	}
	return strings.Join(words, " ")
}

// initrds are the names that distributions give to the initrd of a kernel's version.
var initrds = []string{"initrd.img-%s", "initrd-%s", "initrd-%s.img", "initramfs-%s.img", "initramfs-%s"}

// newest takes the kernel in dir whose version is the highest.
func (v *volume) newest(dir string) (*System, error) {
	names, err := v.names(dir)
	if err != nil {
		return nil, err
	}
	const prefix = "vmlinuz-"
	best := ""
	for _, n := range names {
		version, is := strings.CutPrefix(n, prefix)
		if is && version != "" && !strings.Contains(version, "rescue") && (best == "" || compareVersions(version, best) > 0) {
			best = version
		}
	}
	if best == "" {
		return nil, nil
	}
	initrd := ""
	for _, format := range initrds {
		if name := fmt.Sprintf(format, best); slices.Contains(names, name) {
			initrd = path.Join(dir, name)
			break
		}
	}
	return v.pair(path.Join(dir, prefix+best), initrd)
}

// compareVersions orders names by the numbers in them, and by letters elsewhere:
// 6.9 comes before 6.10.
func compareVersions(a, b string) int {
	for a != "" && b != "" {
		x, restA := leading(a)
		y, restB := leading(b)
		if isDigit(x[0]) && isDigit(y[0]) {
			x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
			if len(x) != len(y) {
				return len(x) - len(y)
			}
		}
		if c := strings.Compare(x, y); c != 0 {
			return c
		}
		a, b = restA, restB
	}
	return len(a) - len(b)
}

// leading splits s, which is not empty, after its first run of digits or of others.
func leading(s string) (head, rest string) {
	i := 1
	for i < len(s) && isDigit(s[i]) == isDigit(s[0]) {
		i++
	}
	return s[:i], s[i:]
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
