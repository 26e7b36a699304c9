// Package vector goes through the buffers of a request to a disk.
//
// Not done here: what is in them, and alignment.
package vector

// Len sums the bytes of buffers.
func Len(bufs [][]byte) int64 {
	n := int64(0)
	for _, b := range bufs {
		n += int64(len(b))
	}
	return n
}

// Vector gives out the buffers of a request in parts. It belongs to one goroutine,
// and changes no buffer. The zero value is empty.
type Vector struct {
	bufs [][]byte
	skip int // bytes of bufs[0] that are gone
}

// New is a Vector of bufs, which it does not keep beyond its own use.
func New(bufs [][]byte) Vector { return Vector{bufs: bufs} }

// Next takes up to n bytes, which are 1 or more and must be left, in one piece.
func (v *Vector) Next(n int64) []byte {
	for len(v.bufs[0]) == v.skip {
		v.bufs, v.skip = v.bufs[1:], 0
	}
	b := v.bufs[0][v.skip:]
	b = b[:min(n, int64(len(b)))]
	v.skip += len(b)
	return b
}

// Take appends the pieces of the next n bytes, which must be left, to dst.
func (v *Vector) Take(dst [][]byte, n int64) [][]byte {
	for n > 0 {
		b := v.Next(n)
		dst = append(dst, b)
		n -= int64(len(b))
	}
	return dst
}
