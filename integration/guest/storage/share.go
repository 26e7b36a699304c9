package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"disco/integration/guest/solo"
)

const (
	rootDisk  = "/dev/vda1"
	readAhead = "/sys/block/vda/queue/read_ahead_kb"
	root      = "/root"
)

// share reads, works, says how much memory the kernel thinks is used, and halts with
// all of that still in its page cache.
func share(w solo.Words) error {
	if err := solo.Await(rootDisk); err != nil {
		return err
	}
	// Requests cost most of the time of an emulated host.
	if err := os.WriteFile(readAhead, []byte("1024"), 0); err != nil {
		return err
	}
	if err := unix.Mount(rootDisk, root, "ext4", unix.MS_RDONLY|unix.MS_NOATIME, ""); err != nil {
		return fmt.Errorf("mount %s: %w", rootDisk, err)
	}
	before, err := solo.Memory()
	if err != nil {
		return err
	}
	solo.Say("share=up cached=%d buffers=%d", before["Cached"], before["Buffers"])
	s := &sum{}
	for _, dir := range strings.Split(w.Text("read", "/usr"), ",") {
		if err := s.tree(filepath.Join(root, dir)); err != nil {
			return err
		}
	}
	solo.Say("share=read files=%d bytes=%d sum=%016x", s.files, s.bytes, s.state)
	did, err := work(w.Text("job", "query"))
	if err != nil {
		return err
	}
	solo.Say("share=job bytes=%d sum=%016x", did.bytes, did.state)
	m, err := solo.Memory()
	if err != nil {
		return err
	}
	solo.Say("share=memory total=%d free=%d cached=%d buffers=%d anonymous=%d slab=%d",
		m["MemTotal"], m["MemFree"], m["Cached"], m["Buffers"], m["AnonPages"], m["Slab"])
	solo.Say("share=done")
	// A halted kernel keeps its memory, and takes no time from guests that still work.
	return unix.Reboot(unix.LINUX_REBOOT_CMD_HALT)
}

// sum is a checksum of files: of their contents and of where which byte is. It is
// no cryptographic one: a cryptographic one takes longer than reading.
type sum struct {
	files, bytes int
	state        uint64
	buf          []byte
}

// Write implements io.Writer; all but the last of the pieces of a file are whole words.
func (s *sum) Write(p []byte) (int, error) {
	n := len(p)
	s.bytes += n
	for ; len(p) >= 8; p = p[8:] {
		s.word(binary.LittleEndian.Uint64(p))
	}
	var last [8]byte
	copy(last[:], p)
	s.word(binary.LittleEndian.Uint64(last[:]))
	s.word(uint64(n))
	return n, nil
}

func (s *sum) word(w uint64) {
	s.state = (s.state ^ w) * 0x9e3779b97f4a7c15
	s.state ^= s.state >> 32
}

// tree adds all below path, in the order of the names.
func (s *sum) tree(path string) error {
	if s.buf == nil {
		s.buf = make([]byte, 1<<20)
	}
	return filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		s.files++
		s.Write([]byte(path))
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			s.Write([]byte(to))
			return err
		case d.Type().IsRegular():
			return s.file(path)
		}
		return nil
	})
}

func (s *sum) file(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		n, err := io.ReadFull(f, s.buf)
		s.Write(s.buf[:n])
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return fmt.Errorf("%s: %w", path, err)
		}
	}
}

// work does a job in the root filesystem, in parallel, and sums up what it makes.
func work(job string) (*sum, error) {
	s := &sum{}
	switch job {
	case "none":
		return s, nil
	case "query":
		// One for each CPU: all packages, and whose the files of some folders are.
		var cmds []*exec.Cmd
		for i := range runtime.NumCPU() {
			if i%2 == 0 {
				cmds = append(cmds, inside("dpkg-query", "-W", "-f", "${Package} ${Version} ${Installed-Size}\n"))
			} else {
				cmds = append(cmds, inside("dpkg-query", "-S", "/usr/bin/*"))
			}
		}
		return s, all(s, cmds)
	case "build":
		return s, build(s)
	}
	return nil, fmt.Errorf("no job %q is known", job)
}

// inside is a command in the root filesystem.
func inside(name string, args ...string) *exec.Cmd {
	c := exec.Command("/usr/bin/"+name, args...)
	c.Dir = "/"
	c.Env = []string{"PATH=/usr/sbin:/usr/bin", "LC_ALL=C"}
	c.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	return c
}

// all runs commands at once, and adds up what they print.
func all(s *sum, cmds []*exec.Cmd) error {
	out, said := make([]bytes.Buffer, len(cmds)), make([]bytes.Buffer, len(cmds))
	for i, c := range cmds {
		c.Stdout, c.Stderr = &out[i], &said[i]
		if err := c.Start(); err != nil {
			return fmt.Errorf("%s: %w", c.Path, err)
		}
	}
	var errs []error
	for i, c := range cmds {
		if err := c.Wait(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w: %.200s", c.Path, err, said[i].Bytes()))
		}
		s.Write(out[i].Bytes())
	}
	return errors.Join(errs...)
}

const source = `#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int f%[1]d(int n) { char *s = malloc(n + 2); memset(s, 'a' + %[1]d, n); int r = printf("%%.1s %%d\n", s, n); free(s); return r; }
`

// build compiles as many small files as there are CPUs, and one more, by make.
func build(s *sum) error {
	const dir = root + "/tmp"
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		return err
	}
	n := runtime.NumCPU() + 1
	var objects []string
	for i := range n {
		if err := os.WriteFile(fmt.Sprintf("%s/f%d.c", dir, i), fmt.Appendf(nil, source, i), 0o644); err != nil {
			return err
		}
		objects = append(objects, fmt.Sprintf("f%d.o", i))
	}
	rules := "all: " + strings.Join(objects, " ") + "\n%.o: %.c\n\t@gcc -O1 -c -o $@ $<\n"
	if err := os.WriteFile(dir+"/Makefile", []byte(rules), 0o644); err != nil {
		return err
	}
	if err := all(s, []*exec.Cmd{inside("make", "-C", "/tmp", "-j", strconv.Itoa(n))}); err != nil {
		return err
	}
	for _, o := range objects {
		b, err := os.ReadFile(dir + "/" + o)
		if err != nil {
			return err
		}
		s.Write(b)
	}
	return nil
}
