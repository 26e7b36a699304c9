package lab

import (
	"testing"
	"time"
)

// TestHostPaceEnds has a pacer end with its QEMU.
func TestHostPaceEnds(t *testing.T) {
	gone, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		pace(gone)
	}()
	close(gone)
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("it paces what is gone")
	}
}
