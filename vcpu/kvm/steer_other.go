//go:build !amd64

package kvm

import "sync/atomic"

func exchange(p *uint32, v uint32) { atomic.SwapUint32(p, v) }
