package qcow2

import "fmt"

// Flush returns when all writes that have returned are on stable storage. Several
// at once share the work.
//
// After the host has failed to make writes stable, which of them are is not known;
// if there were any that changed metadata, the image can only be read from then
// on, until it is opened again. In the file it is whole, as of the last Flush.
func (i *Image) Flush() error {
	if i.options.ReadOnly {
		return nil
	}
	want := i.flushes.Load() + 1
	i.flushing.Lock()
	defer i.flushing.Unlock()
	if i.flushed >= want {
		return nil // one that began after this call did it
	}
	n := i.flushes.Add(1)
	if err := i.flush(); err != nil {
		return fmt.Errorf("qcow2: flush: %w", err)
	}
	i.flushed = n
	return nil
}

// flush does it. flushing is held.
func (i *Image) flush() error {
	i.mu.Lock()
	if i.broken != nil {
		i.mu.Unlock()
		return i.broken
	}
	i.pages.take(&i.snap)
	i.freeing, i.dropped = i.dropped, i.freeing[:0]
	i.mu.Unlock()

	err := i.writeBack()

	i.mu.Lock()
	i.pages.settle(&i.snap, err == nil)
	if err != nil {
		for _, e := range i.freeing {
			i.dropped = join(i.dropped, e)
		}
		i.freeing = i.freeing[:0]
	}
	i.mu.Unlock()
	if err != nil {
		return err
	}
	return i.free(i.freeing)
}

// writeBack writes the snapshot in steps, each stable before the next. L2 tables
// that are new need no step before the L1 table: empty, or as a copy, they went to
// the file when they were made, and are stable with the first one.
func (i *Image) writeBack() error {
	for n, step := range [][]kind{{kindRefcount}, {kindRefTable}, {kindL2, kindL1}} {
		none := n > 0 // data is stable with the first step
		for _, k := range step {
			if len(i.snap.off[k]) > 0 {
				none = false
			}
			if err := i.snap.write(i.file, k, i.pages.size); err != nil {
				return err
			}
		}
		if none {
			continue
		}
		if err := i.sync(); err != nil {
			return err
		}
	}
	return nil
}

// sync makes what was written stable. If it fails, some of it may be gone without
// a further word, clusters with copied data among it, so no reference to what is
// new may be written.
func (i *Image) sync() error {
	err := i.file.Sync()
	if err != nil {
		i.mu.Lock()
		if i.pages.dirty > 0 {
			i.breaks(fmt.Errorf("the host lost writes to the image, which is read-only until it is opened again: %w", err))
		}
		i.mu.Unlock()
	}
	return err
}
