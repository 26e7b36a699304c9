package lab

import (
	"bufio"
	"bytes"
	"io"
	"strings"
	"testing"
)

func TestFramesComeBackAsTheyWent(t *testing.T) {
	want := []frame{
		{kindHello, 0, []byte(`{"Version":1}`)},
		{kindData, stderr, bytes.Repeat([]byte{0, 255}, maxData/2)},
		{kindEOF, stdin, nil},
		{kindStart, 0, bytes.Repeat([]byte("x"), 300<<10)},
		{kindExit, 0, []byte(`{}`)},
	}
	var wire []byte
	for _, f := range want {
		wire = appendFrame(wire, f)
	}
	r := bufio.NewReader(bytes.NewReader(wire))
	var buf []byte
	for i, w := range want {
		f, err := readFrame(r, &buf)
		if err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
		if f.kind != w.kind || f.stream != w.stream || !bytes.Equal(f.payload, w.payload) {
			t.Errorf("frame %d: got %d/%d with %d bytes, want %d/%d with %d", i, f.kind, f.stream, len(f.payload), w.kind, w.stream, len(w.payload))
		}
	}
	if _, err := readFrame(r, &buf); err != io.EOF {
		t.Errorf("after the last frame: %v, want EOF", err)
	}
}

func TestReadFrameRefuses(t *testing.T) {
	for _, c := range []struct {
		name, wire, want string
	}{
		{"kind 0", "\x00\x00\x00\x00\x00\x00\x00\x00", "unknown kind 0"},
		{"kind beyond the last", string(rune(kindEnd)) + "\x00\x00\x00\x00\x00\x00\x00", "unknown kind"},
		{"stream", "\x05\x03\x00\x00\x00\x00\x00\x00", "unknown stream 3"},
		{"reserved", "\x05\x00\x01\x00\x00\x00\x00\x00", "reserved"},
		{"length", "\x05\x00\x00\x00\x01\x00\x00\x01", "more than"},
		{"cut header", "\x05\x00\x00", io.ErrUnexpectedEOF.Error()},
		{"cut payload", "\x05\x00\x00\x00\x02\x00\x00\x00x", io.ErrUnexpectedEOF.Error()},
		{"no payload", "\x05\x00\x00\x00\x02\x00\x00\x00", io.ErrUnexpectedEOF.Error()},
	} {
		var buf []byte
		_, err := readFrame(bufio.NewReader(strings.NewReader(c.wire)), &buf)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add(appendFrame(nil, frame{kindData, stdout, []byte("hello")}))
	f.Add(appendFrame(appendFrame(nil, frame{kindResize, 0, make([]byte, 8)}), frame{kindEOF, stdin, nil}))
	f.Add([]byte{byte(kindStart), 0, 0, 0, 255, 255, 255, 0})
	f.Fuzz(func(t *testing.T, wire []byte) {
		r := bufio.NewReader(bytes.NewReader(wire))
		var buf, again []byte
		for {
			fr, err := readFrame(r, &buf)
			if err != nil {
				// What was read whole is what was sent.
				if !bytes.HasPrefix(wire, again) {
					t.Errorf("%d bytes were read as others", len(again))
				}
				if err == io.EOF && len(again) != len(wire) {
					t.Errorf("end after %d of %d bytes", len(again), len(wire))
				}
				if cap(buf) > 2*len(wire)+128<<10 {
					t.Errorf("%d bytes of buffer for %d of input", cap(buf), len(wire))
				}
				return
			}
			_, _ = fr.numbers(1)
			_, _ = fr.numbers(2)
			again = appendFrame(again, fr)
		}
	})
}

func FuzzLink(f *testing.F) {
	f.Add(appendFrame(nil, frame{kindData, stdout, []byte("hello")}))
	f.Add(appendFrame(nil, frame{kindCredit, stdin, []byte{0, 0, 4, 0}}))
	f.Add(appendFrame(appendFrame(nil, frame{kindEOF, stdout, nil}), frame{kindData, stdout, []byte("late")}))
	f.Fuzz(func(t *testing.T, wire []byte) {
		l, err := hear(t, wire)
		if err == nil {
			t.Error("serve ended without a reason")
		}
		got, _ := io.ReadAll(l.in[stdout])
		if len(got) > window {
			t.Errorf("%d bytes came through a window of %d", len(got), window)
		}
	})
}
