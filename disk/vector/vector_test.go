package vector

import (
	"bytes"
	"slices"
	"testing"
)

func TestVector(t *testing.T) {
	bufs := [][]byte{nil, []byte("ab"), {}, []byte("cdef"), []byte("g")}
	if n := Len(bufs); n != 7 {
		t.Errorf("%d bytes, want 7", n)
	}
	v := New(bufs)
	if b := v.Next(1); string(b) != "a" {
		t.Errorf("the first byte is %q", b)
	}
	want := [][]byte{[]byte("b"), []byte("cd")}
	if got := v.Take(nil, 3); !slices.EqualFunc(got, want, bytes.Equal) {
		t.Errorf("the next three are %q, want %q", got, want)
	}
	if b := v.Next(100); string(b) != "ef" {
		t.Errorf("one piece is %q, want what is left of its buffer", b)
	}
	if got := v.Take(nil, 1); len(got) != 1 || string(got[0]) != "g" {
		t.Errorf("the last is %q", got)
	}
	if got := v.Take(nil, 0); got != nil {
		t.Errorf("nothing more is %q", got)
	}
}
