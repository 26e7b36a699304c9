package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"disco/integration/guest"
	"disco/integration/guest/solo"
)

// warmFile is what is read before anything is counted, so that what the first use
// of a filesystem costs is not in it.
const warmFile = mountPoint + "/warm"

// files mounts, says that it is ready, reads all when a line comes on the console,
// says what its kernel makes of it, and stays with that in its page cache.
func files(w solo.Words) error {
	if err := mountFiles(w); err != nil {
		return err
	}
	p := make([]byte, 1<<20)
	if _, err := readWhole(warmFile, p); err != nil {
		return err
	}
	before, err := solo.Memory()
	if err != nil {
		return err
	}
	solo.Say("files=ready cached=%d", before["Cached"])
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return fmt.Errorf("console: %w", err)
	}
	began := time.Now()
	n, err := readWhole(filepath.Join(mountPoint, w.Text("name", "data")), p)
	if err != nil {
		return err
	}
	took := time.Since(began)
	after, err := solo.Memory()
	if err != nil {
		return err
	}
	solo.Say("files=read bytes=%d nanos=%d cached=%d", n, took.Nanoseconds(), after["Cached"])
	return solo.Stay()
}

func mountFiles(w solo.Words) error {
	switch way := w.Text("way", ""); way {
	case wayNFS:
		own, err := connectLink(w)
		if err != nil {
			return err
		}
		return mountNFS(w, own, mountPoint)
	case "dax", "fuse":
		if err := os.MkdirAll(mountPoint, 0o755); err != nil {
			return err
		}
		options := "dax=never"
		if way == "dax" {
			options = "dax=always"
		}
		tag := w.Text("tag", "")
		if err := unix.Mount(tag, mountPoint, "virtiofs", unix.MS_NOATIME, options); err != nil {
			return fmt.Errorf("mount of the folder %s, %s: %w", tag, options, err)
		}
		return nil
	default:
		return fmt.Errorf("no way %q is known", way)
	}
}

// readWhole reads a file that holds guest.Pattern of guest.PatternHost, and checks
// each page of it.
func readWhole(path string, p []byte) (int, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for at := 0; ; {
		n, err := io.ReadFull(f, p)
		if wrong := check(p[:n], at, 1<<62); wrong != nil {
			return at, fmt.Errorf("%s: %w", path, wrong)
		}
		at += n
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return at, nil
		}
		if err != nil {
			return at, err
		}
	}
}

// copies mounts the server's export, compares every byte of the first disco.bytes of
// the file in it, writes them to a file of its own there, disco.copies times, and
// compares those that the others wrote.
func copies(w solo.Words) error {
	own, err := connectLink(w)
	if err != nil {
		return err
	}
	if err := mountNFS(w, own, mountPoint); err != nil {
		return err
	}
	size, err := w.Number("bytes", 16<<20)
	if err != nil {
		return err
	}
	number, err := w.Number("copies", 1)
	if err != nil {
		return err
	}
	for i := range number {
		path := copyPath(w.Text("name", "copy"), i)
		if err := copyFile(mountPoint+"/data", path, size); err != nil {
			return err
		}
		solo.Say("copy=made path=%s bytes=%d", path, size)
	}
	for _, other := range strings.Split(w.Text("others", ""), ",") {
		for i := range number {
			if other == "" {
				continue
			}
			path := copyPath(other, i)
			if err := awaitFile(path); err != nil {
				return err
			}
			if err := everyByte(path, size, func([]byte) error { return nil }); err != nil {
				return err
			}
			solo.Say("copy=checked path=%s bytes=%d", path, size)
		}
	}
	if err := unix.Unmount(mountPoint, 0); err != nil {
		return fmt.Errorf("unmount: %w", err)
	}
	s, err := dial(w.Text("server", ""), port)
	if err != nil {
		return err
	}
	if err := writeAll(s, request(leave, 0, 0)); err != nil {
		return err
	}
	unix.Close(s)
	solo.Say("copy=done")
	return nil
}

// awaitFile waits for a file that another guest makes, ten minutes at most.
func awaitFile(path string) error {
	for range 6000 {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("%s does not come", path)
}

func copyPath(name string, i int) string {
	return filepath.Join(mountPoint, fmt.Sprintf("%s-%d", name, i))
}

// copyFile copies the first bytes of a file that holds the pattern, and checks them.
// The copy gets its name when it is whole.
func copyFile(from, to string, size int) error {
	f, err := os.Create(to + ".part")
	if err != nil {
		return err
	}
	defer f.Close()
	err = everyByte(from, size, func(p []byte) error {
		_, err := f.Write(p)
		return err
	})
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return err
	}
	return os.Rename(to+".part", to)
}

// everyByte compares every one of the first bytes of a file with the pattern, and
// hands them on.
func everyByte(path string, size int, use func([]byte) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	got, want := make([]byte, 256<<10), make([]byte, 256<<10)
	for at := 0; at < size; at += len(got) {
		got = got[:min(len(got), size-at)]
		if _, err := io.ReadFull(f, got); err != nil {
			return fmt.Errorf("%s, byte %d: %w", path, at, err)
		}
		guest.Pattern(want, guest.PatternHost, uint64(at/guest.SectorSize))
		if !bytes.Equal(got, want[:len(got)]) {
			return fmt.Errorf("%s: what is read after byte %d is wrong", path, at)
		}
		if err := use(got); err != nil {
			return err
		}
	}
	return nil
}
