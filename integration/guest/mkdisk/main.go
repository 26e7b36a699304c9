// Command mkdisk makes of a file with room for one filesystem a disk image with
// that partition: it writes a GPT around it. The filesystem begins at 1 MiB, and
// the last MiB of the file is the table's.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/diskfs/go-diskfs/partition/gpt"
)

const (
	sector = 512
	margin = 1 << 20 // bytes at each end
	// The identifiers are fixed, so that the same files make the same image.
	diskID      = "5E6B1E8A-3C43-4C4E-9D0E-6A1F5B0D15C0"
	partitionID = "0D15C05E-8E7F-4F4B-9B0B-5D6C3B2A1908"
)

func main() {
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: mkdisk IMAGE")
		os.Exit(2)
	}
	if err := write(flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "mkdisk:", err)
		os.Exit(1)
	}
}

func write(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	size := st.Size()
	if size%sector != 0 || size < 3*margin {
		return fmt.Errorf("%s: %d bytes is no size for a disk with a partition", path, size)
	}
	table := &gpt.Table{
		LogicalSectorSize: sector, PhysicalSectorSize: sector, ProtectiveMBR: true, GUID: diskID,
		Partitions: []*gpt.Partition{{
			Index: 1, Type: gpt.LinuxRootX86_64, Name: "root", GUID: partitionID,
			Start: margin / sector, End: uint64(size-margin)/sector - 1,
		}},
	}
	if err := table.Write(f, size); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return f.Close()
}
