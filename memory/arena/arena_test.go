package arena

import (
	"testing"
	"unsafe"
)

func TestMappingsShowTheSameBytes(t *testing.T) {
	a, err := New("test", 3*hugePageSize+PageSize, HugeTHP)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := a.Map()
	if err != nil {
		t.Fatal(err)
	}
	defer Unmap(b)
	if len(b) != len(a.Bytes()) || uint64(len(b)) != a.Size() {
		t.Fatalf("lengths %d, %d and %d", len(b), len(a.Bytes()), a.Size())
	}
	for _, i := range []int{0, PageSize, len(b) - 1} {
		a.Bytes()[i] = 0x5a
		if b[i] != 0x5a {
			t.Errorf("byte %d is not shared", i)
		}
	}
}

func TestMappingsAreAlignedForHugePages(t *testing.T) {
	a, err := New("test", PageSize, HugeTHP)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if p := uintptr(unsafe.Pointer(&a.Bytes()[0])); p%hugePageSize != 0 {
		t.Errorf("mapped at %#x", p)
	}
}

func TestNewRefusesBadSizes(t *testing.T) {
	for _, size := range []uint64{0, 1, PageSize + 1, 1 << 63} {
		if a, err := New("test", size, HugeTHP); err == nil {
			a.Close()
			t.Errorf("size %d was taken", size)
		}
	}
}
