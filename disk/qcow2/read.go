package qcow2

import (
	"io"

	"disco/disk/vector"
)

// request is the memory of one request.
type request struct {
	rest  vector.Vector
	part  [][]byte // what rest gives out
	bufs  [][]byte // of one system call
	head  []byte   // what of an old cluster is before and after what is written
	tail  []byte
	alone [1][]byte
	blank [1][]byte // zeroes that are written
}

func (i *Image) request(bufs [][]byte) *request {
	r := i.requests.Get().(*request)
	r.rest = vector.New(bufs)
	return r
}

func (i *Image) done(r *request) {
	clear(r.part[:cap(r.part)])
	clear(r.bufs[:cap(r.bufs)])
	r.rest = vector.Vector{}
	i.requests.Put(r)
}

// ReadV fills bufs, in order, from the disk at off.
func (i *Image) ReadV(bufs [][]byte, off int64) error {
	n := vector.Len(bufs)
	if err := i.check("read", off, n, false); err != nil {
		return err
	}
	r := i.request(bufs)
	defer i.done(r)
	i.busy.RLock()
	defer i.busy.RUnlock()
	for at, left := off, n; left > 0; {
		i.mu.Lock()
		p, err := i.lookup(at, left)
		i.mu.Unlock()
		if err == nil {
			part := bufs
			if p.bytes != n {
				r.part = r.rest.Take(r.part[:0], p.bytes)
				part = r.part
			}
			err = i.read(part, at, p)
		}
		if err != nil {
			return i.fail("read", off, n, err)
		}
		at, left = at+p.bytes, left-p.bytes
	}
	return nil
}

// read fills bufs with what a place has, for the disk at off.
func (i *Image) read(bufs [][]byte, off int64, p place) error {
	switch p.where {
	case Own:
		return i.file.ReadV(bufs, p.offset)
	case compressed:
		return i.readCompressed(bufs, p.entry, off&(i.cluster-1))
	case Below:
		if i.base != nil {
			return i.readBase(bufs, off)
		}
	}
	for _, b := range bufs {
		clear(b)
	}
	return nil
}

// readBase fills bufs from the base, and with zeroes past its end.
func (i *Image) readBase(bufs [][]byte, off int64) error {
	size := i.base.Size()
	for _, b := range bufs {
		n := int(max(min(int64(len(b)), size-off), 0))
		clear(b[n:])
		if n > 0 {
			if m, err := i.base.ReadAt(b[:n], off); m < n {
				if err == nil {
					err = io.ErrUnexpectedEOF
				}
				return err
			}
		}
		off += int64(len(b))
	}
	return nil
}
