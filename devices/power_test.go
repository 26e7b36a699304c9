package devices

import (
	"fmt"
	"slices"
	"testing"
)

func TestPowerPorts(t *testing.T) {
	var got []string
	note := func(s string) func() { return func() { got = append(got, s) } }
	power := Power{Sleep: func(typ byte) { got = append(got, fmt.Sprint("sleep ", typ)) }, Reset: note("reset")}
	exit := DebugExit{Exit: func(code int) { got = append(got, fmt.Sprint("exit ", code)) }}
	crash := PanicPort{Report: func(e PanicEvents) { got = append(got, fmt.Sprint("panic ", e)) }}
	for _, c := range []struct {
		name   string
		h      Handler
		offset uint64
		p      []byte
		want   []string
	}{
		{"sleep without enable", power, 0, []byte{5 << 2}, nil},
		{"sleep S5", power, 0, []byte{5<<2 | 1<<5}, []string{"sleep 5"}},
		{"status", power, 1, []byte{0xff}, nil},
		{"reset", power, 2, []byte{1}, []string{"reset"}},
		{"reset with another value", power, 2, []byte{3}, nil},
		{"wide", power, 0, []byte{0x20, 0, 1}, []string{"sleep 0", "reset"}},
		{"cf9 soft", &ResetControl{Reset: note("cf9")}, 0, []byte{0x02}, nil},
		{"cf9 hard", &ResetControl{Reset: note("cf9")}, 0, []byte{0x06}, []string{"cf9"}},
		{"keyboard", KeyboardReset{note("kbd")}, 0, []byte{0xfe}, []string{"kbd"}},
		{"keyboard, another command", KeyboardReset{note("kbd")}, 0, []byte{0xaa}, nil},
		{"panicked", crash, 0, []byte{1}, []string{"panic 1"}},
		{"crash loaded", crash, 0, []byte{2}, []string{"panic 2"}},
		{"unknown event", crash, 0, []byte{0xf0}, nil},
		{"exit 0", exit, 0, []byte{0, 0, 0, 0}, []string{"exit 1"}},
		{"exit 0x10", exit, 0, []byte{0x10, 0, 0, 0}, []string{"exit 33"}},
		{"exit by a byte", exit, 0, []byte{0x1f}, []string{"exit 63"}},
		{"exit cut to 8 bits", exit, 0, []byte{0xff, 0xff, 0xff, 0xff}, []string{"exit 255"}},
		{"exit at another port", exit, 2, []byte{1, 0}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got = nil
			c.h.Write(c.offset, c.p)
			if !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestPowerReads(t *testing.T) {
	cf9 := &ResetControl{Reset: func() {}}
	cf9.Write(0, []byte{0x0e})
	for _, c := range []struct {
		name string
		h    Handler
		want byte
	}{
		{"power", Power{}, 0},
		{"cf9 forgets the pulse bit", cf9, 0x0a},
		{"keyboard is idle", KeyboardReset{}, 0},
		{"pvpanic", PanicPort{}, 3},
		{"debug exit", DebugExit{}, 0},
	} {
		p := []byte{0xff, 0xff, 0xff}
		if c.h.Read(0, p); p[0] != c.want || p[1] != 0 || p[2] != 0 {
			t.Errorf("%s: read %x, want %#x", c.name, p, c.want)
		}
	}
}
