package lab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// root is where the command's root filesystem is put together.
const root = "/root"

// mountRoot puts the host's root folder under an overlay that keeps what is written
// in memory, with dir shared from the host over it, at root.
func mountRoot(dir string) error {
	const lower, rw = "/lower", "/rw"
	// The largest message that virtio 9p carries is 125 pages of 4 KiB. The host's
	// files are taken as not changing while the lab runs, except those of dir.
	const plan9 = "trans=virtio,version=9p2000.L,msize=512000,"
	mounts := []struct {
		source, target, kind string
		flags                uintptr
		data                 string
	}{
		{rootTag, lower, "9p", unix.MS_RDONLY, plan9 + "cache=loose"},
		{"tmpfs", rw, "tmpfs", 0, "mode=755"},
		{"overlay", root, "overlay", 0, "lowerdir=" + lower + ",upperdir=" + rw + "/upper,workdir=" + rw + "/work,xino=off"},
		{"/dev", root + "/dev", "", unix.MS_MOVE, ""},
		{"/proc", root + "/proc", "", unix.MS_MOVE, ""},
		{"/sys", root + "/sys", "", unix.MS_MOVE, ""},
		{"devpts", root + "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=620,ptmxmode=666"},
		{"tmpfs", root + "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"tmpfs", root + "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
		{"debugfs", root + "/sys/kernel/debug", "debugfs", 0, ""},
		{dirTag, root + dir, "9p", 0, plan9 + "cache=mmap"},
	}
	for _, m := range mounts {
		if m.source == dirTag && dir == "/" {
			continue
		}
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.source, m.target, err)
		}
		if m.target == rw {
			for _, d := range []string{"/upper", "/work"} {
				if err := os.Mkdir(rw+d, 0o755); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// enterRoot makes the folder root the root, and frees what the initramfs held.
func enterRoot() error {
	if err := os.RemoveAll("/modules"); err != nil {
		return err
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	return os.Chdir("/")
}

// tune sets what a monitor of many guests wants of its host.
func tune() error {
	for _, t := range []struct{ file, value string }{
		{"/proc/sys/kernel/hostname", "lab"},
		{"/proc/sys/vm/max_map_count", "1048576"},
		{"/sys/kernel/mm/transparent_hugepage/shmem_enabled", "advise"},
	} {
		if err := os.WriteFile(t.file, []byte(t.value), 0); err != nil {
			return err
		}
	}
	files := unix.Rlimit{Cur: 65536, Max: 65536}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	locked := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &locked); err != nil {
		return fmt.Errorf("limit of locked memory: %w", err)
	}
	// udev's work, which nothing else does here.
	for _, d := range []struct {
		file string
		mode os.FileMode
	}{{"/dev/kvm", 0o666}, {"/dev/net/tun", 0o666}} {
		if err := os.Chmod(d.file, d.mode); err != nil {
			return err
		}
	}
	for target, link := range map[string]string{
		"/proc/self/fd": "/dev/fd", "/proc/self/fd/0": "/dev/stdin", "/proc/self/fd/1": "/dev/stdout", "/proc/self/fd/2": "/dev/stderr",
	} {
		if err := os.Symlink(target, link); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// setUpNetwork brings up the loopback and the one network card, with the
// addresses of QEMU's user network.
func setUpNetwork() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("network: lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("network: lo: %w", err)
	}
	card, err := waitForCard(10 * time.Second)
	if err != nil {
		return err
	}
	name := card.Attrs().Name
	if err := netlink.LinkSetUp(card); err != nil {
		return fmt.Errorf("network: %s: %w", name, err)
	}
	address, err := netlink.ParseAddr(labAddress + "/24")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(card, address); err != nil {
		return fmt.Errorf("network: %s: address: %w", name, err)
	}
	route := &netlink.Route{LinkIndex: card.Attrs().Index, Gw: net.ParseIP(labGateway)}
	if err := netlink.RouteAdd(route); err != nil {
		return fmt.Errorf("network: %s: route: %w", name, err)
	}
	return nil
}

func waitForCard(patience time.Duration) (netlink.Link, error) {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		links, err := netlink.LinkList()
		if err != nil {
			return nil, fmt.Errorf("network: %w", err)
		}
		for _, l := range links {
			if a := l.Attrs(); a.Flags&net.FlagLoopback == 0 && len(a.HardwareAddr) == 6 && l.Type() == "device" {
				return l, nil
			}
		}
	}
	return nil, fmt.Errorf("network: no card appeared in %s", patience)
}

// writeResolver points name lookups at QEMU's resolver. The host's file may be a
// link into a folder of a service that does not run here.
func writeResolver() error {
	const file = "/etc/resolv.conf"
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, []byte("nameserver "+labDNS+"\n"), 0o644)
}

// carry accepts TCP connections at one address and carries them to another.
func carry(from, to string) error {
	l, err := net.Listen("tcp", from)
	if err != nil {
		return fmt.Errorf("forward: %w", err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				fmt.Fprintln(os.Stderr, "disco lab: forward:", err)
				return
			}
			go carryOne(c.(*net.TCPConn), to)
		}
	}()
	return nil
}

func carryOne(near *net.TCPConn, to string) {
	defer near.Close()
	c, err := net.Dial("tcp", to)
	if err != nil {
		// Nobody listens: the caller sees the connection closed, as it would see it
		// refused.
		_ = near.SetLinger(0)
		return
	}
	far := c.(*net.TCPConn)
	defer far.Close()
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(far, near)
		_ = far.CloseWrite()
		close(done)
	}()
	_, _ = io.Copy(near, far)
	_ = near.CloseWrite()
	<-done
}
