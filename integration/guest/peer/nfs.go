package main

import (
	"fmt"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"disco/integration/guest/solo"
)

const (
	disk   = "/dev/vda"
	export = "/export"
	// clients is how many addresses of the server's network, from its first on, are
	// let in.
	clients = 32
)

// mountExport mounts the disk's filesystem.
func mountExport(writable bool) error {
	if err := solo.Await(disk); err != nil {
		return err
	}
	if err := os.MkdirAll(export, 0o755); err != nil {
		return err
	}
	flags := uintptr(unix.MS_NOATIME)
	if !writable {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount(disk, export, "ext4", flags, ""); err != nil {
		return fmt.Errorf("mount %s: %w", disk, err)
	}
	return nil
}

// Flags of an export (Linux, include/uapi/linux/nfsd/export.h).
const (
	exportInsecurePort   = 0x2
	exportAsync          = 0x10
	exportNoSubtreeCheck = 0x400
	exportFSID           = 0x2000
)

// serveNFS has the kernel serve export by NFS 4 at the usual port. What rpc.mountd
// would answer when the kernel asks, who the clients are and what they may see, is
// told to it beforehand for good (nfsd(7), its channels).
func serveNFS(own netip.Addr) error {
	const control = "/proc/fs/nfsd"
	if err := unix.Mount("nfsd", control, "nfsd", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", control, err)
	}
	const (
		never  = 1<<31 - 1
		nobody = 65534
	)
	var known strings.Builder
	at := own.As4()
	for last := range clients {
		at[3] = byte(last + 1)
		fmt.Fprintf(&known, "nfsd %v %d lan\n", netip.AddrFrom4(at), never)
	}
	flags := exportInsecurePort | exportAsync | exportNoSubtreeCheck | exportFSID
	for _, tell := range []struct{ path, lines string }{
		{"/proc/net/rpc/auth.unix.ip/channel", known.String()},
		{"/proc/net/rpc/nfsd.export/channel", fmt.Sprintf("lan %s %d %d %d %d 0\n", export, never, flags, nobody, nobody)},
		// The root of what clients see: the file handle of kind 1 (by number), 0.
		{"/proc/net/rpc/nfsd.fh/channel", fmt.Sprintf("lan 1 \\x00000000 %d %s\n", never, export)},
		// Nobody has locks from before, and who comes is to wait for them no longer than
		// must be.
		{control + "/nfsv4gracetime", "10\n"},
		{control + "/versions", "-3 +4 +4.1 +4.2\n"},
		{control + "/portlist", "tcp 2049\n"},
		{control + "/threads", "4\n"},
	} {
		for line := range strings.Lines(tell.lines) {
			if err := tellKernel(tell.path, line); err != nil {
				return err
			}
		}
	}
	return nil
}

// tellKernel writes a line to a file of the kernel's, by one call.
func tellKernel(path, line string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString(line); err != nil {
		return fmt.Errorf("%q: %w", strings.TrimSpace(line), err)
	}
	return nil
}

// mountNFS mounts what the server exports, when it is there. To the server a client is
// its host name: of two with the same it takes the second for the first, started anew,
// and forgets all that the first has open, over and over.
func mountNFS(w solo.Words, own netip.Addr, at string) error {
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	server := w.Text("server", "")
	s, err := dial(server, port)
	if err != nil {
		return err
	}
	unix.Close(s)
	if err := unix.Sethostname([]byte(own.String())); err != nil {
		return fmt.Errorf("sethostname: %w", err)
	}
	options := fmt.Sprintf("vers=4.2,proto=tcp,sec=sys,hard,addr=%s,clientaddr=%v", server, own)
	if err := unix.Mount(server+":/", at, "nfs4", unix.MS_NOATIME, options); err != nil {
		return fmt.Errorf("mount of %s by NFS: %w", server, err)
	}
	return nil
}
