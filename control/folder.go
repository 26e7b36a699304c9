package control

// Folder is what a guest does with a shared folder. Counts are totals since the guest
// was made, which its restart does not change.
type Folder struct {
	Guest    string `json:"guest"`
	Tag      string `json:"tag"`
	Requests uint64 `json:"requests"`
	Read     uint64 `json:"read"`    // bytes that were copied to the guest
	Written  uint64 `json:"written"` // and from it
	// Mapped is bytes of files that its window shows now, and Common those of them that
	// another window shows too: their pages exist once.
	Mapped uint64 `json:"mapped"`
	Common uint64 `json:"common"`
	Mended uint64 `json:"mended"` // pages that a file lost while they were mapped
	Nodes  int    `json:"nodes"`  // files that it knows of now
	Open   int    `json:"open"`   // files that it has open
}

func (f *Folder) clean() { f.Guest, f.Tag = printable(f.Guest), printable(f.Tag) }
