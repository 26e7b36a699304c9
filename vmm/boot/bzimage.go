package boot

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Offsets in the setup header, which lies at the same place in a bzImage and in
// the zero page (Linux Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header").
const (
	hdrStart        = 0x1F1 // setup_sects, u8
	hdrRootFlags    = 0x1F2 // u16
	hdrSysSize      = 0x1F4 // u32, in 16-byte units
	hdrVidMode      = 0x1FA // u16
	hdrBootFlag     = 0x1FE // u16
	hdrJump         = 0x201 // u8: the header ends this far after hdrMagic
	hdrMagic        = 0x202 // u32
	hdrVersion      = 0x206 // u16
	hdrLoaderType   = 0x210 // u8
	hdrLoadFlags    = 0x211 // u8
	hdrCode32Start  = 0x214 // u32
	hdrInitrdAddr   = 0x218 // u32
	hdrInitrdSize   = 0x21C // u32
	hdrCmdline      = 0x228 // u32
	hdrInitrdMax    = 0x22C // u32, the highest address of an initrd's last byte
	hdrAlignment    = 0x230 // u32
	hdrXLoadFlags   = 0x236 // u16
	hdrCmdlineSize  = 0x238 // u32, without the NUL
	hdrPayload      = 0x248 // u32, from the start of the protected-mode code
	hdrPayloadSize  = 0x24C // u32
	hdrPrefAddress  = 0x258 // u64
	hdrInitSize     = 0x260 // u32
	bzHeaderEnd     = 0x290 // where the zero page has no more room for the header
	bootFlag        = 0xAA55
	headerMagic     = 0x53726448 // "HdrS"
	loadedHigh      = 1 << 0     // loadflags
	xlfKernel64     = 1 << 0     // xloadflags: there is a 64-bit entry at +0x200
	xlfAbove4G      = 1 << 1     // xloadflags: everything may lie above 4 GiB
	protocolMin     = 0x20C      // the first with xloadflags
	loaderUndefined = 0xFF
	vidModeNormal   = 0xFFFF
	entry64         = 0x200 // the 64-bit entry, from the start of the protected-mode code
	sector          = 512
)

// bzImage is a packed Linux kernel.
type bzImage struct {
	header      []byte // the file's first bytes, up to bzHeaderEnd
	start       int64  // file offset of the protected-mode code
	size        int64  // bytes of it
	payload     int64  // offset in it of the packed ELF
	payloadSize int64
	pref        uint64 // the address that the kernel would like
	initSize    uint64 // bytes of memory that it needs there
	initrdMax   uint64 // the highest address of the initrd's last byte
	above4G     bool
	cmdlineSize int // without the NUL
}

func isBzImage(head []byte) bool {
	return len(head) >= hdrVersion+2 &&
		binary.LittleEndian.Uint16(head[hdrBootFlag:]) == bootFlag &&
		binary.LittleEndian.Uint32(head[hdrMagic:]) == headerMagic
}

// parseBzImage checks the header of a bzImage of size bytes, of which head is
// the beginning.
func parseBzImage(head []byte, size int64) (*bzImage, error) {
	if len(head) < bzHeaderEnd {
		return nil, errTruncated
	}
	le := binary.LittleEndian
	version := le.Uint16(head[hdrVersion:])
	if version < protocolMin {
		return nil, fmt.Errorf("speaks boot protocol %d.%02d; 2.12 (Linux 3.8) or later is needed", version>>8, version&0xFF)
	}
	if head[hdrLoadFlags]&loadedHigh == 0 || le.Uint16(head[hdrXLoadFlags:])&xlfKernel64 == 0 {
		return nil, fmt.Errorf("is a bzImage without a 64-bit entry point; %s", giveKernel)
	}
	sects := int64(head[hdrStart])
	if sects == 0 {
		sects = 4
	}
	k := &bzImage{
		header:      head,
		start:       (sects + 1) * sector,
		size:        int64(le.Uint32(head[hdrSysSize:])) * 16,
		payload:     int64(le.Uint32(head[hdrPayload:])),
		payloadSize: int64(le.Uint32(head[hdrPayloadSize:])),
		pref:        le.Uint64(head[hdrPrefAddress:]),
		initSize:    uint64(le.Uint32(head[hdrInitSize:])),
		initrdMax:   uint64(le.Uint32(head[hdrInitrdMax:])),
		above4G:     le.Uint16(head[hdrXLoadFlags:])&xlfAbove4G != 0,
		cmdlineSize: int(min(le.Uint32(head[hdrCmdlineSize:]), cmdlineRoom-1)),
	}
	if k.size > size-k.start {
		return nil, fmt.Errorf("is truncated: its header promises %d bytes and the file has %d", k.start+k.size, size)
	}
	if k.size <= entry64 {
		return nil, fmt.Errorf("has only %d bytes of code", k.size)
	}
	if k.payload > k.size || k.payloadSize > k.size-k.payload {
		return nil, fmt.Errorf("has a payload at %#x+%#x, outside its %#x bytes of code", k.payload, k.payloadSize, k.size)
	}
	if k.pref < kernelFloor {
		k.pref = kernelFloor
	}
	k.initSize = max(k.initSize, uint64(k.size))
	return k, nil
}

// setupHeader is the part of the header that goes in the zero page.
func (k *bzImage) setupHeader() []byte {
	end := min(hdrMagic+int(k.header[hdrJump]), bzHeaderEnd)
	return k.header[hdrStart:end]
}

// load copies the protected-mode code to where the kernel prefers to be, with
// the room that it needs to unpack itself, and returns its address.
func (k *bzImage) load(g *guest, r io.ReaderAt) (uint64, error) {
	if err := g.claim("its code", k.pref, k.initSize); err != nil {
		return 0, err
	}
	g.add(k.pref, r, k.start, k.size)
	return k.pref, g.fill("its code")
}
