package vmm

import "disco/virtio/blk"

// DiskStats counts what became of a disk's requests since the guest was made.
type DiskStats struct {
	Mapped  uint64 `json:"mapped"`  // bytes of reads that were answered by mapping pages of the cache
	Copied  uint64 `json:"copied"`  // bytes of reads that were copied
	Overlay uint64 `json:"overlay"` // bytes that the overlay in memory holds now
}

// DiskStats are those of Config.Disks, in order. It is for before Close.
func (g *Guest) DiskStats() []DiskStats {
	var all []DiskStats
	for _, d := range g.backends.devices {
		// That of cloud-init comes after the others.
		if d, ok := d.(*blk.Device); ok && len(all) < len(g.backends.disks) {
			s := DiskStats{Mapped: d.Mapped(), Copied: d.Copied()}
			if o, ok := g.backends.disks[len(all)].(interface{ Memory() uint64 }); ok {
				s.Overlay = o.Memory()
			}
			all = append(all, s)
		}
	}
	return all
}
