package main

import (
	"cmp"
	"fmt"
	"io"
	"text/tabwriter"

	"disco/control"
)

// Folders makes source a control.Source.
func (s *source) Folders() []control.Folder {
	var all []control.Folder
	for _, f := range s.monitor.FolderStats() {
		all = append(all, control.Folder{
			Guest: cmp.Or(f.Guest, "guest"), Tag: f.Tag, Requests: f.Requests, Read: f.Read, Written: f.Written,
			Mapped: f.Mapped, Common: f.Common, Mended: f.Mended, Nodes: f.Held.Nodes, Open: f.Held.Files,
		})
	}
	return all
}

// printFolders prints the shared folders of one process, and says whether there are any.
func printFolders(out io.Writer, pid int, all []control.Folder) bool {
	if len(all) == 0 {
		return false
	}
	fmt.Fprintf(out, "shared folders of process %d:\n", pid)
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "  GUEST\tFOLDER\tREQUESTS\tREAD\tWRITTEN\tIN WINDOW\tIN COMMON\tFILES\tOPEN")
	for _, f := range all {
		fmt.Fprintf(t, "  %s\t%s\t%d\t%s\t%s\t%s\t%s\t%d\t%d\n", f.Guest, f.Tag, f.Requests, size(f.Read), size(f.Written),
			size(f.Mapped), size(f.Common), f.Nodes, f.Open)
	}
	t.Flush()
	return true
}
