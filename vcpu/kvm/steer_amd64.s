#include "textflag.h"

// func exchange(p *uint32, v uint32)
TEXT ·exchange(SB), NOSPLIT, $0-12
	MOVQ p+0(FP), AX
	MOVL v+8(FP), CX
	XCHGL CX, 0(AX)
	RET
