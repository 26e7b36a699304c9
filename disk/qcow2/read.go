package qcow2

import "io"

// request is the memory of one request.
type request struct {
	rest  vector
	part  [][]byte // what vector.next gives out
	bufs  [][]byte // of one system call
	head  []byte   // what of an old cluster is before and after what is written
	tail  []byte
	alone [1][]byte
	blank [1][]byte // zeroes that are written
}

// vector gives out the buffers of a request in parts.
type vector struct {
	bufs [][]byte
	skip int // bytes of bufs[0] that are gone
}

// next appends the buffers of the next n bytes to dst.
func (v *vector) next(dst [][]byte, n int64) [][]byte {
	for n > 0 {
		b := v.bufs[0][v.skip:]
		if int64(len(b)) > n {
			b = b[:n]
			v.skip += int(n)
		} else {
			v.bufs, v.skip = v.bufs[1:], 0
		}
		if len(b) > 0 {
			dst = append(dst, b)
		}
		n -= int64(len(b))
	}
	return dst
}

func (i *Image) request(bufs [][]byte) *request {
	r := i.requests.Get().(*request)
	r.rest = vector{bufs: bufs}
	return r
}

func (i *Image) done(r *request) {
	clear(r.part[:cap(r.part)])
	clear(r.bufs[:cap(r.bufs)])
	r.rest = vector{}
	i.requests.Put(r)
}

func length(bufs [][]byte) int64 {
	n := int64(0)
	for _, b := range bufs {
		n += int64(len(b))
	}
	return n
}

// ReadV fills bufs, in order, from the disk at off.
func (i *Image) ReadV(bufs [][]byte, off int64) error {
	n := length(bufs)
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
				r.part = r.rest.next(r.part[:0], p.bytes)
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
