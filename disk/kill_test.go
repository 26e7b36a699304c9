package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"disco/disk/qcow2"
)

// childEnv has the test binary be a program that writes to a disk until it is
// killed: MODE SEED PATH.
const childEnv = "DISCO_DISK_CHILD"

func TestMain(m *testing.M) {
	if words := os.Getenv(childEnv); words != "" {
		if err := child(words); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

const (
	killWorkers = 3
	killPart    = 1 << 20 // bytes of the disk that each worker writes to
)

// write is one thing that a worker does to its part of the disk.
type write struct {
	kind   int // 0 discards, 1 zeroes, others write value
	off, n int64
	value  uint64
}

// writes are what a worker does between one flush and the next. They follow from
// the seed, so that the test knows them, too.
type writes struct {
	rng    *rand.Rand
	worker uint64
	round  uint64
}

func newWrites(seed, worker uint64) *writes {
	return &writes{rng: rand.New(rand.NewPCG(seed, worker)), worker: worker}
}

func (w *writes) next() []write {
	w.round++
	list := make([]write, 1+w.rng.IntN(4))
	for k := range list {
		off := w.rng.Int64N(killPart/SectorSize) * SectorSize
		n := min((1+w.rng.Int64N([]int64{1, 8, 200}[w.rng.IntN(3)]))*SectorSize, killPart-off)
		list[k] = write{w.rng.IntN(12), int64(w.worker)*killPart + off, n, w.worker<<40 | w.round<<8 | uint64(k) | 1<<63}
	}
	return list
}

func (w write) do(img Image) error {
	switch w.kind {
	case 0:
		return img.Discard(w.off, w.n)
	case 1:
		return img.WriteZeroes(w.off, w.n, true)
	}
	b := make([]byte, w.n)
	for k := 0; k < len(b); k += 8 {
		binary.LittleEndian.PutUint64(b[k:], w.value)
	}
	return img.WriteV([][]byte{b}, w.off)
}

func openMode(mode, path string) (Image, error) {
	return Open(path, Options{Backing: true, WriteThrough: strings.Contains(mode, "through"), Direct: strings.Contains(mode, "direct")})
}

// child writes, flushes, and says what it has flushed, until it is killed.
func child(words string) error {
	var mode, path string
	var seed uint64
	if _, err := fmt.Sscanf(words, "%s %d %s", &mode, &seed, &path); err != nil {
		return err
	}
	img, err := openMode(mode, path)
	if err != nil {
		return err
	}
	errs := make(chan error)
	for w := range uint64(killWorkers) {
		go func() {
			list := newWrites(seed, w)
			for {
				for _, w := range list.next() {
					if err := w.do(img); err != nil {
						errs <- err
						return
					}
				}
				if !strings.Contains(mode, "through") {
					if err := img.Flush(); err != nil {
						errs <- err
						return
					}
				}
				if _, err := os.Stdout.Write([]byte{byte(w)}); err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	return <-errs
}

// TestHostKill kills a program that writes to disks, at any moment and many times:
// all that it has flushed is there, and the images are sound. DISCO_KILLS asks for
// more.
func TestHostKill(t *testing.T) {
	kills := 32
	if s := os.Getenv("DISCO_KILLS"); s != "" {
		var err error
		if kills, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	modes := []string{"raw", "qcow2", "overlay", "qcow2-through", "overlay-small", "raw-direct", "overlay-direct", "raw-through"}
	var wg sync.WaitGroup
	for k, mode := range modes {
		wg.Go(func() { killRun(t, mode, uint64(k), (kills+len(modes)-1)/len(modes)) })
	}
	wg.Wait()
}

// forks is held while this process starts another, which for a moment has all the
// files that this one has open, and while it has an image open, whose lock would
// stay that much longer.
var forks sync.Mutex

func killRun(t *testing.T, mode string, seed uint64, kills int) {
	dir, err := os.MkdirTemp(t.TempDir(), mode)
	if err != nil {
		t.Error(err)
		return
	}
	path := filepath.Join(dir, "disk")
	if err := killImage(mode, dir, path); err != nil {
		t.Error(err)
		return
	}
	rng := rand.New(rand.NewPCG(seed, 99))
	forks.Lock()
	state, err := killContents(mode, path)
	forks.Unlock()
	if err != nil {
		t.Error(err)
		return
	}
	flushes := 0
	for k := range kills {
		seed := seed<<32 | uint64(k)
		flushed, err := killOnce(mode, path, seed, rng.IntN(40))
		if err != nil {
			t.Errorf("%s, kill %d: %v", mode, k, err)
			return
		}
		forks.Lock()
		state, err = killCheck(mode, path, seed, state, flushed)
		forks.Unlock()
		if err != nil {
			t.Errorf("%s, kill %d, after %d flushes: %v", mode, k, flushed, err)
			return
		}
		for _, n := range flushed {
			flushes += n
		}
		if !strings.HasPrefix(mode, "raw") && (k%20 == 0 || k == kills-1) {
			forks.Lock()
			out, err := exec.Command(qemuImg(t), "check", "-f", "qcow2", path).CombinedOutput()
			forks.Unlock()
			if err != nil && !leaksOnly(err) {
				t.Errorf("%s, kill %d: qemu-img check: %v\n%s", mode, k, err, out)
			}
		}
	}
	t.Logf("%s: %d kills, %d flushes", mode, kills, flushes)
}

// leaksOnly says whether qemu-img check found no more than leaks.
func leaksOnly(err error) bool {
	exit, ok := errors.AsType[*exec.ExitError](err)
	return ok && exit.ExitCode() == 3
}

func qemuImg(t testing.TB) string {
	if bin := os.Getenv("DISCO_QEMU_IMG"); bin != "" {
		return bin
	}
	if _, err := os.Stat("../build/images/qemu-img"); err != nil {
		t.Errorf("there is no qemu-img (%v); run make images", err)
	}
	return "../build/images/qemu-img"
}

func killImage(mode, dir, path string) error {
	const size = killWorkers * killPart
	if strings.HasPrefix(mode, "raw") {
		return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size))
	}
	o := qcow2.CreateOptions{Size: size}
	if strings.HasPrefix(mode, "overlay") {
		b := make([]byte, size)
		for s := range size / SectorSize {
			for k := 0; k < SectorSize; k += 8 {
				binary.LittleEndian.PutUint64(b[s*SectorSize+k:], uint64(s)|1<<62)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "base"), b, 0o600); err != nil {
			return err
		}
		o.Backing, o.BackingFormat = "base", "raw"
	}
	if strings.HasSuffix(mode, "small") {
		o.ClusterSize = 1024
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(qcow2.Create(&osFile{f}, o), f.Close())
}

// killOnce runs the child until it has flushed so many times, kills it, and
// returns how often each worker had flushed.
func killOnce(mode, path string, seed uint64, after int) (flushed [killWorkers]int, err error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %s", childEnv, mode, seed, path))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return flushed, err
	}
	forks.Lock()
	err = cmd.Start()
	forks.Unlock()
	if err != nil {
		return flushed, err
	}
	b := make([]byte, 1)
	for n := 0; ; n++ {
		if n == after {
			err = cmd.Process.Kill()
		}
		if _, err := out.Read(b); err == io.EOF {
			break
		} else if err != nil {
			return flushed, err
		}
		flushed[b[0]]++
	}
	if wait, ok := errors.AsType[*exec.ExitError](cmd.Wait()); !ok || wait.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		return flushed, fmt.Errorf("the child ended by itself: %v: %s", wait, &stderr)
	}
	return flushed, err
}

// killContents reads a disk's sectors, each of one number.
func killContents(mode, path string) ([]uint64, error) {
	img, err := openMode(mode, path)
	if err != nil {
		return nil, err
	}
	b := make([]byte, img.Size())
	if err := errors.Join(img.ReadV([][]byte{b}, 0), img.Close()); err != nil {
		return nil, err
	}
	state := make([]uint64, len(b)/SectorSize)
	for s := range state {
		sector := b[s*SectorSize : (s+1)*SectorSize]
		state[s] = binary.LittleEndian.Uint64(sector)
		if !bytes.Equal(sector[8:], sector[:SectorSize-8]) {
			return nil, fmt.Errorf("sector %d is mixed: %x", s, slices.Compact(numbers(sector)))
		}
	}
	return state, nil
}

func numbers(b []byte) (list []uint64) {
	for ; len(b) > 0; b = b[8:] {
		list = append(list, binary.LittleEndian.Uint64(b))
	}
	return list
}

// killCheck compares a disk with what it was before and what was flushed since. It
// returns what it is now.
func killCheck(mode, path string, seed uint64, was []uint64, flushed [killWorkers]int) ([]uint64, error) {
	if !strings.HasPrefix(mode, "raw") {
		f, err := openFile(path, true, false)
		if err != nil {
			return nil, err
		}
		r, err := qcow2.Check(container{f})
		if err := errors.Join(err, f.close()); err != nil {
			return nil, err
		}
		if r.Corruptions > 0 {
			return nil, fmt.Errorf("%+v", r)
		}
	}
	now, err := killContents(mode, path)
	if err != nil {
		return nil, err
	}
	may := make([][]uint64, len(was))
	for s, v := range was {
		may[s] = []uint64{v}
	}
	for worker, n := range flushed {
		list := newWrites(seed, uint64(worker))
		for round := 0; round <= n; round++ {
			for _, w := range list.next() {
				for s := w.off / SectorSize; s < (w.off+w.n)/SectorSize; s++ {
					last := may[s]
					if round < n && w.kind > 0 {
						last = nil // it is flushed, so it is nothing older
					}
					switch w.kind {
					case 0: // anything of these
						may[s] = append(last, 0, uint64(s)|1<<62)
					case 1:
						may[s] = append(last, 0)
					default:
						may[s] = append(last, w.value)
					}
				}
			}
		}
	}
	for s, v := range now {
		found := false
		for _, m := range may[s] {
			found = found || m == v
		}
		if !found {
			return nil, fmt.Errorf("sector %d is %#x, not of %#x", s, v, may[s])
		}
	}
	return now, nil
}
