package main

import (
	"errors"
	"regexp"
	"strconv"

	"github.com/docker/go-units"

	"disco/vmm"
)

var sizeForm = regexp.MustCompile(`(?i)^[0-9]{1,15}(\.[0-9]{1,6})?([KMGTP](i?B)?|B)?$`)

var errSize = errors.New("not a size; write one like 512M or 2G")

// parseSize reads a number of bytes; K, M, G, T and P are powers of 1024.
func parseSize(s string) (uint64, error) {
	if !sizeForm.MatchString(s) {
		return 0, errSize
	}
	n, err := units.RAMInBytes(s)
	if err != nil || n < 0 || n > 1<<60 {
		return 0, errSize
	}
	return uint64(n), nil
}

// formatSize is what parseSize reads.
func formatSize(n uint64) string {
	if n > 0 && n%1024 == 0 {
		return vmm.FormatSize(n)
	}
	return strconv.FormatUint(n, 10)
}
