package boot

import "encoding/binary"

// aml is ACPI machine language: the encoding of one term or of several in a
// row (ACPI 6.5 §20.2). Names are whole four-character segments, optionally
// after a backslash.
type aml []byte

func join(terms []aml) aml {
	var b aml
	for _, t := range terms {
		b = append(b, t...)
	}
	return b
}

// packaged is op, a PkgLength that covers itself and the rest, and the rest
// (§20.2.4).
func packaged(op []byte, rest aml) aml {
	n := len(rest)
	var length []byte
	switch {
	case n+1 <= 0x3F:
		length = []byte{byte(n + 1)}
	case n+2 <= 0xFFF:
		n += 2
		length = []byte{1<<6 | byte(n&0xF), byte(n >> 4)}
	default:
		n += 3
		length = []byte{2<<6 | byte(n&0xF), byte(n >> 4), byte(n >> 12)}
	}
	return append(append(append(aml{}, op...), length...), rest...)
}

func scope(name string, terms ...aml) aml {
	return packaged([]byte{0x10}, append(aml(name), join(terms)...))
}

func device(name string, terms ...aml) aml {
	return packaged([]byte{0x5B, 0x82}, append(aml(name), join(terms)...))
}

// method is a serialized method of args arguments.
func method(name string, args byte, terms ...aml) aml {
	return packaged([]byte{0x14}, append(append(aml(name), args|1<<3), join(terms)...))
}

func name(name string, value aml) aml {
	return append(append(aml{0x08}, name...), value...)
}

func list(elements ...aml) aml {
	return packaged([]byte{0x12}, append(aml{byte(len(elements))}, join(elements)...))
}

func number(n uint32) aml {
	switch {
	case n <= 1:
		return aml{byte(n)}
	case n <= 0xFF:
		return aml{0x0A, byte(n)}
	case n <= 0xFFFF:
		return binary.LittleEndian.AppendUint16(aml{0x0B}, uint16(n))
	}
	return binary.LittleEndian.AppendUint32(aml{0x0C}, n)
}

func text(s string) aml { return append(append(aml{0x0D}, s...), 0) }

// eisaID packs an identifier like PNP0A08: three letters of five bits and four
// hexadecimal digits, big-endian (§19.3.4).
func eisaID(s string) aml {
	n := uint32(s[0]-'@')<<26 | uint32(s[1]-'@')<<21 | uint32(s[2]-'@')<<16
	for i, c := range []byte(s[3:7]) {
		d := uint32(c - '0')
		if c >= 'A' {
			d = uint32(c-'A') + 10
		}
		n |= d << (12 - 4*i)
	}
	return binary.BigEndian.AppendUint32(aml{0x0C}, n)
}

var arg0 = aml{0x68}

func ifEqual(a, b aml, then ...aml) aml {
	return packaged([]byte{0xA0}, append(append(append(aml{0x93}, a...), b...), join(then)...))
}

func notify(object string, value aml) aml {
	return append(append(aml{0x86}, object...), value...)
}

// resources is a buffer of resource descriptors and their end tag, whose
// checksum of 0 means that there is none (§6.4.2.9).
func resources(descriptors ...aml) aml {
	b := append(join(descriptors), 0x79, 0)
	return packaged([]byte{0x11}, append(number(uint32(len(b))), b...))
}

// ports is length ports at base (§6.4.2.5).
func ports(base uint16, length byte) aml {
	le := binary.LittleEndian
	b := le.AppendUint16(aml{0x47, 1}, base) // decodes 16 bits
	b = le.AppendUint16(b, base)
	return append(b, 1, length)
}

// edge is an edge-triggered, active-high, exclusive interrupt (§6.4.3.6).
func edge(gsi uint32) aml {
	return binary.LittleEndian.AppendUint32(aml{0x89, 6, 0, 1<<0 | 1<<1, 1}, gsi)
}

// fixedMemory is writable memory at base (§6.4.3.4).
func fixedMemory(base, length uint32) aml {
	le := binary.LittleEndian
	return le.AppendUint32(le.AppendUint32(aml{0x86, 9, 0, 1}, base), length)
}

// Flags of address space descriptors (§6.4.3.5): the window is passed on to
// the devices below, and both of its ends are fixed.
const (
	producerFixed = 1<<2 | 1<<3
	readWrite     = 1 << 0
)

// window ends a descriptor of length addresses at base, which head begins:
// granularity, first, last, translation and length, all of one size.
func window[T uint16 | uint32 | uint64](head aml, base, length T) aml {
	for _, v := range []T{0, base, base + length - 1, 0, length} {
		head, _ = binary.Append(head, binary.LittleEndian, v) // no error for an integer
	}
	return head
}

// busRange is a window of bus numbers.
func busRange(first, last uint16) aml {
	return window(aml{0x88, 13, 0, 2, producerFixed, 0}, first, last-first+1)
}

// window32 is a window of uncached 32-bit memory addresses.
func window32(base, length uint32) aml {
	return window(aml{0x87, 23, 0, 0, producerFixed, readWrite}, base, length)
}

// window64 is a window of uncached 64-bit memory addresses.
func window64(base, length uint64) aml {
	return window(aml{0x8A, 43, 0, 0, producerFixed, readWrite}, base, length)
}
