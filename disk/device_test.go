package disk

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// A loop device stands for any block device. Needs root.
func TestHostBlockDevice(t *testing.T) {
	back, err := os.OpenFile(image(t, 1<<20), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/dev/loop%d", n)
	loop, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer loop.Close()
	if err := unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_SET_FD, int(back.Fd())); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
			t.Error(err)
		}
	}()

	r := open(t, path, false)
	if r.Size() != 1<<20 || r.BlockSize() != 512 {
		t.Errorf("size %d, blocks of %d", r.Size(), r.BlockSize())
	}
	if _, err := OpenRaw(path, false, false); !errors.Is(err, ErrInUse) {
		t.Errorf("a second writer: %v", err)
	}
	want, got := pattern(64<<10), make([]byte, 64<<10)
	for _, err := range []error{
		r.WriteV(split(want), 4096), r.WriteZeroes(8192, 4096, false), r.WriteZeroes(16384+512, 512, true),
		r.Discard(1<<19, 4096), r.Flush(), r.ReadV([][]byte{got}, 4096),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	clear(want[4096:8192])
	clear(want[12288+512 : 12288+1024])
	if !bytes.Equal(got, want) {
		t.Error("read differs from what was written")
	}
}
