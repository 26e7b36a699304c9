package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"disco/integration/guest"
	"disco/integration/guest/solo"
)

// A client connects to port and asks, as often as it wants, for one of these: a
// request is 16 bytes, little endian, the kind, the size of a message and the
// number of bytes or messages.
const (
	sendWritten = 1 + iota // bytes of guest.Pattern, by write
	sendFile               // bytes of the file on the disk, by sendfile
	sendRAM                // bytes of the file in memory, by sendfile
	echo                   // messages, each sent back
	leave                  // nothing: the client will want no more, ever
)

const (
	port        = 7000
	requestSize = 16
	// chunk is how much is written at once, and where the pattern that is written
	// begins anew.
	chunk = 1 << 20
	// longest is the largest message that is sent back.
	longest = 64 << 10
)

// dataFile is the file that is sent; it holds guest.Pattern of guest.PatternHost, as
// what is written does.
const dataFile = export + "/data"

const ramFile = "/ram/data"

// serve says that it is ready with all that it sends in its page cache.
func serve(w solo.Words) error {
	own, err := connectLink(w)
	if err != nil {
		return err
	}
	bytes, err := w.Number("bytes", 16<<20)
	if err != nil {
		return err
	}
	if err := mountExport(w.Text("rw", "") == "1"); err != nil {
		return err
	}
	if err := sayCached("net=up"); err != nil {
		return err
	}
	data, err := os.Open(dataFile)
	if err != nil {
		return err
	}
	defer data.Close()
	warmed, err := io.Copy(io.Discard, struct{ io.Reader }{data})
	if err != nil {
		return err
	}
	if err := sayCached(fmt.Sprintf("net=warm file=%d", warmed)); err != nil {
		return err
	}
	ram, err := fillRAM(bytes)
	if err != nil {
		return err
	}
	defer ram.Close()
	if err := serveNFS(own); err != nil {
		return fmt.Errorf("NFS server: %w", err)
	}
	clients, err := w.Number("clients", 1<<30)
	if err != nil {
		return err
	}
	s, err := listen(port)
	if err != nil {
		return err
	}
	if err := sayCached(fmt.Sprintf("net=serving ram=%d", bytes)); err != nil {
		return err
	}
	left, failed := make(chan bool), make(chan error, 1)
	go func() { failed <- acceptAll(s, data, ram, left) }()
	for range clients {
		select {
		case <-left:
		case err := <-failed:
			return err
		}
	}
	solo.Say("net=left")
	return nil
}

// sayCached says a line, and how much is in the page cache.
func sayCached(line string) error {
	m, err := solo.Memory()
	if err != nil {
		return err
	}
	solo.Say("%s cached=%d", line, m["Cached"])
	time.Sleep(still) // for the host to look
	return nil
}

// acceptAll answers clients, and tells left of each that leaves for good.
func acceptAll(s int, data, ram *os.File, left chan<- bool) error {
	for {
		c, _, err := unix.Accept4(s, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		go func() {
			defer unix.Close(c)
			switch err := answer(c, data, ram); {
			case errors.Is(err, errLeft):
				left <- true
			case !errors.Is(err, errClosed):
				solo.Say("result=failed reason=%q", err.Error())
			}
		}()
	}
}

var errLeft = errors.New("the client has left")

// fillRAM makes a file of guest.Pattern in a tmpfs.
func fillRAM(size int) (*os.File, error) {
	if err := os.MkdirAll("/ram", 0o755); err != nil {
		return nil, err
	}
	if err := unix.Mount("tmpfs", "/ram", "tmpfs", 0, "size=90%"); err != nil {
		return nil, fmt.Errorf("mount /ram: %w", err)
	}
	f, err := os.Create(ramFile)
	if err != nil {
		return nil, err
	}
	p := make([]byte, chunk)
	for at := 0; at < size; at += len(p) {
		guest.Pattern(p, guest.PatternHost, uint64(at/guest.SectorSize))
		if _, err := f.Write(p[:min(len(p), size-at)]); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// answer does what the client asks for, until it closes the connection.
func answer(c int, data, ram *os.File) error {
	if err := unix.SetsockoptInt(c, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return err
	}
	p := make([]byte, chunk)
	guest.Pattern(p, guest.PatternHost, 0)
	request := make([]byte, requestSize)
	for {
		if err := readAll(c, request); err != nil {
			return err
		}
		kind, size := binary.LittleEndian.Uint32(request), int(binary.LittleEndian.Uint32(request[4:]))
		count := int(binary.LittleEndian.Uint64(request[8:]))
		var err error
		switch kind {
		case sendWritten:
			for ; count > 0 && err == nil; count -= len(p) {
				err = writeAll(c, p[:min(len(p), count)])
			}
		case sendFile:
			err = sendAll(c, int(data.Fd()), count)
		case sendRAM:
			err = sendAll(c, int(ram.Fd()), count)
		case echo:
			err = echoAll(c, size, count)
		case leave:
			err = errLeft
		default:
			err = fmt.Errorf("request of kind %d", kind)
		}
		if err != nil {
			return err
		}
	}
}

// sendAll sends so many bytes of a file, from its beginning and over again.
func sendAll(c, file, count int) error {
	for at := int64(0); count > 0; {
		n, err := unix.Sendfile(c, file, &at, count)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("sendfile: %w", err)
		case n == 0 && at == 0:
			return errors.New("sendfile: the file is empty")
		case n == 0:
			at = 0
		}
		count -= max(n, 0)
	}
	return nil
}

func echoAll(c, size, count int) error {
	if size < 1 || size > longest {
		return fmt.Errorf("messages of %d bytes", size)
	}
	p := make([]byte, size)
	for range count {
		if err := readAll(c, p); err != nil {
			return err
		}
		if err := writeAll(c, p); err != nil {
			return err
		}
	}
	return nil
}
