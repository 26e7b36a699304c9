package control

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"testing"
)

// served is a Server of f, and a client of it.
func served(t *testing.T, f Source) (*Server, *Client) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	l, err := Listen(filepath.Join(t.TempDir(), "s"), log)
	if err != nil {
		t.Fatal(err)
	}
	v := Serve(l, Handler(f, nil), log)
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	c := NewClient(v.Path())
	t.Cleanup(c.Close)
	return v, c
}

// TestCapture: a capture is streamed as it comes, ends with its client or with its
// server, and leaves room for the next.
func TestCapture(t *testing.T) {
	v, c := served(t, newFake())
	if s, err := c.Segments(t.Context()); err != nil || len(s.Segments) != 1 || s.Segments[0].Name != "lan0" {
		t.Errorf("segments %+v, %v", s, err)
	}
	begin := func(ctx context.Context) io.ReadCloser {
		t.Helper()
		r, err := c.Capture(ctx, "lan0", 100)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		b := make([]byte, len("snap 100\n"))
		if _, err := io.ReadFull(r, b); err != nil || string(b) != "snap 100\n" {
			t.Fatalf("it begins with %q, %v", b, err)
		}
		return r
	}
	ctx, cancel := context.WithCancel(t.Context())
	for range maxCaptures {
		begin(ctx)
	}
	var refused *Error
	if _, err := c.Capture(t.Context(), "lan0", 0); !errors.As(err, &refused) || refused.Status != 503 {
		t.Errorf("one too many: %v", err)
	}
	cancel()
	var r io.ReadCloser
	for r == nil { // until the server has noticed
		var err error
		if r, err = c.Capture(t.Context(), "lan0", 7); err != nil && !errors.As(err, &refused) {
			t.Fatal(err)
		}
	}
	defer r.Close()
	done := make(chan []byte)
	go func() {
		b, err := io.ReadAll(r)
		if err != nil {
			t.Error(err)
		}
		done <- b
	}()
	if err := v.Close(); err != nil {
		t.Error(err)
	}
	if b := <-done; string(b) != "snap 7\nend\n" {
		t.Errorf("the server ends with %q", b)
	}
	if _, err := c.Capture(t.Context(), "lan0", 0); !Gone(err) {
		t.Errorf("a server that is gone: %v", err)
	}
}

func TestCaptureNoSegment(t *testing.T) {
	_, c := served(t, newFake())
	var refused *Error
	if _, err := c.Capture(t.Context(), "lan1", 0); !errors.As(err, &refused) || refused.Status != 404 {
		t.Errorf("%v", err)
	}
}
