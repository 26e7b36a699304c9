// Command mkdata makes the disk that the guests of integration/guest/peer serve: an
// ext4 filesystem, without a partition table, in which data, part (16 MiB) and warm
// (one) hold guest.Pattern of guest.PatternHost. Most of it is empty: it is a sparse file. It
// needs mke2fs, and no rights.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"disco/integration/guest"
)

func main() {
	out := flag.String("o", "", "the disk to make")
	data := flag.Int("data", 64, "MiB of the file data")
	size := flag.Int("size", 640, "MiB of the disk")
	flag.Parse()
	if *out == "" || *data < 1 || *size < 2**data+32 || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := write(*out, *data, *size); err != nil {
		fmt.Fprintln(os.Stderr, "mkdata:", err)
		os.Exit(1)
	}
}

// write makes the disk beside its final name and renames it.
func write(out string, data, size int) error {
	dir, err := os.MkdirTemp(filepath.Dir(out), "mkdata-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	root, disk := filepath.Join(dir, "root"), filepath.Join(dir, "disk")
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	for name, mib := range map[string]int{"data": data, "part": 16, "warm": 1} {
		if err := fill(filepath.Join(root, name), mib); err != nil {
			return err
		}
	}
	program, err := findMke2fs()
	if err != nil {
		return err
	}
	c := exec.Command(program, "-q", "-t", "ext4", "-b", "4096", "-m", "0", "-J", "size=8",
		"-E", "root_owner=0:0,lazy_itable_init=1", "-d", root, disk, strconv.Itoa(size)+"m")
	if said, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("mke2fs: %w: %s", err, said)
	}
	return os.Rename(disk, out)
}

func findMke2fs() (string, error) {
	for _, name := range []string{"mke2fs", "/usr/sbin/mke2fs", "/sbin/mke2fs"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("mke2fs is missing: install it (Debian's package e2fsprogs)")
}

func fill(path string, mib int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	p := make([]byte, 1<<20)
	for i := range mib {
		guest.Pattern(p, guest.PatternHost, uint64(i*len(p)/guest.SectorSize))
		if _, err := w.Write(p); err != nil {
			return err
		}
	}
	return errors.Join(w.Flush(), f.Close())
}
