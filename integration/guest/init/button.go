package main

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
)

// Linux, include/uapi/linux/input-event-codes.h.
const (
	evKey    = 1
	keyPower = 116
)

// inputEventSize is sizeof(struct input_event) on 64-bit machines: two words of
// time, type and code of 16 bits, a value of 32.
const inputEventSize = 24

// buttons powers the guest off when the power button is pressed.
type buttons struct {
	count   int
	ignored atomic.Bool
}

// watchButtons begins to watch every input device.
func watchButtons() *buttons {
	b := &buttons{}
	devices, _ := filepath.Glob("/dev/input/event*")
	for _, name := range devices {
		f, err := os.Open(name)
		if err != nil {
			say("warning=%s", oneLine(err))
			continue
		}
		b.count++
		go b.watch(f)
	}
	return b
}

func (b *buttons) watch(f *os.File) {
	var event [inputEventSize]byte
	for {
		if _, err := f.Read(event[:]); err != nil {
			return
		}
		pressed := binary.LittleEndian.Uint16(event[16:]) == evKey &&
			binary.LittleEndian.Uint16(event[18:]) == keyPower &&
			binary.LittleEndian.Uint32(event[20:]) == 1
		if pressed && !b.ignored.Load() {
			say("button=power")
			powerOff()
		}
	}
}

func (b *buttons) ignore() { b.ignored.Store(true) }

func (b *buttons) wait() error {
	if b.count == 0 {
		return errors.New("there is no button")
	}
	say("waiting=button")
	select {}
}
