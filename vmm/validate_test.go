package vmm

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// good is a Config without problems, its files in a fresh folder.
func good(t *testing.T) Config {
	t.Helper()
	return Config{
		Kernel: file(t, "vmlinuz", 4096),
		Initrd: file(t, "initrd.img", 4096),
		CPUs:   2,
		Memory: 256 << 20,
		Disks:  []Disk{{Path: file(t, "a.img", 1<<20)}, {Path: file(t, "b.img", 1<<20), ReadOnly: true}},
		Nets: []Net{
			{Kind: NetUser, Forwards: []Forward{{Proto: "tcp", HostPort: 8080, GuestPort: 80}}},
			{Kind: NetTap, Tap: "tap0", Bridge: "br0"},
		},
		Vsock: filepath.Join(t.TempDir(), "v.sock"),
	}
}

func file(t *testing.T, name string, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestValidate(t *testing.T) {
	tests := []struct {
		name   string
		change func(t *testing.T, c *Config)
		want   []string // a piece of each problem, in order
		host   bool     // the problem is the host's
	}{
		{name: "good", change: func(*testing.T, *Config) {}},
		{name: "name", change: func(_ *testing.T, c *Config) { c.Name = "a b" }, want: []string{`name "a b": use at most`}},
		{name: "no kernel", change: func(_ *testing.T, c *Config) { c.Kernel = "" }, want: []string{"kernel: none is named"}},
		{name: "kernel absent", change: func(_ *testing.T, c *Config) { c.Kernel = "/nowhere/vmlinuz" }, want: []string{"kernel /nowhere/vmlinuz: there is no such file"}},
		{name: "kernel folder", change: func(t *testing.T, c *Config) { c.Kernel = t.TempDir() }, want: []string{"it is a directory"}},
		{name: "kernel device", change: func(_ *testing.T, c *Config) { c.Kernel = "/dev/null" }, want: []string{"kernel /dev/null: it is not a regular file"}},
		{name: "kernel empty", change: func(t *testing.T, c *Config) { c.Kernel = file(t, "k", 0) }, want: []string{"the file is empty"}},
		{name: "initrd absent", change: func(_ *testing.T, c *Config) { c.Initrd = "/nowhere/initrd" }, want: []string{"initrd /nowhere/initrd: there is no such file"}},
		{name: "initrd huge", change: func(t *testing.T, c *Config) { c.Initrd = file(t, "i", 1<<30) }, want: []string{"its 1G do not fit in a memory of 256M"}},
		{name: "no initrd", change: func(_ *testing.T, c *Config) { c.Initrd = "" }},
		{name: "from disk", change: func(_ *testing.T, c *Config) { c.Kernel, c.Initrd, c.FromDisk = "", "", true }},
		{name: "from disk, and a kernel", change: func(_ *testing.T, c *Config) { c.FromDisk = true }, want: []string{"give one or the other"}},
		{name: "from no disk", change: func(_ *testing.T, c *Config) { c.Kernel, c.Initrd, c.FromDisk, c.Disks = "", "", true, nil }, want: []string{"there is no disk"}},
		{name: "cloud-init", change: func(t *testing.T, c *Config) { c.CloudInit = t.TempDir() }},
		{name: "cloud-init absent", change: func(_ *testing.T, c *Config) { c.CloudInit = "/nowhere/user-data" }, want: []string{"cloud-init /nowhere/user-data: no such file"}},
		{name: "cloud-init device", change: func(_ *testing.T, c *Config) { c.CloudInit = "/dev/null" }, want: []string{"neither a folder nor a file"}},
		{name: "cmdline", change: func(_ *testing.T, c *Config) { c.Cmdline = "a\nb" }, want: []string{"must be one line"}},
		{name: "no cpus", change: func(_ *testing.T, c *Config) { c.CPUs = 0 }, want: []string{"cpus 0: a guest has at least 1"}},
		{name: "many cpus", change: func(_ *testing.T, c *Config) { c.CPUs = 100000 }, want: []string{"cpus 100000: a guest has at most 254"}},
		{name: "tiny memory", change: func(_ *testing.T, c *Config) { c.Memory, c.Initrd = 1, "" }, want: []string{"memory 1 byte: a guest has at least 16M; write a size like 512M"}},
		{name: "odd memory", change: func(_ *testing.T, c *Config) { c.Memory = 32<<20 + 1 }, want: []string{"whole pages"}},
		{name: "vast memory", change: func(_ *testing.T, c *Config) { c.Memory = 1 << 50 }, want: []string{"memory 1024T: this host has"}, host: true},
		{name: "disk absent", change: func(_ *testing.T, c *Config) { c.Disks[0].Path = "/nowhere/d" }, want: []string{"disk /nowhere/d: there is no such file"}},
		{name: "disk folder", change: func(t *testing.T, c *Config) { c.Disks[0].Path = t.TempDir() }, want: []string{"it is a directory"}},
		{name: "disk character device", change: func(_ *testing.T, c *Config) { c.Disks[0].Path = "/dev/null" }, want: []string{"neither a regular file nor a block device"}},
		{name: "disk format", change: func(_ *testing.T, c *Config) { c.Disks[0].Format = "vmdk" }, want: []string{`the format "vmdk" is not known; there are raw and qcow2`}},
		{name: "disk overlaid and read-only", change: func(_ *testing.T, c *Config) { c.Disks[1].Overlay = OverlayMemory }, want: []string{"a read-only disk needs no overlay"}},
		{name: "disk kept nowhere", change: func(_ *testing.T, c *Config) { c.Disks[0].Overlay = OverlayPersist }, want: []string{"go together"}},
		{name: "disk kept without overlay", change: func(t *testing.T, c *Config) { c.Disks[0].Persist = file(t, "o", 512) }, want: []string{"go together"}},
		{name: "disk of no kind", change: func(_ *testing.T, c *Config) { c.Disks[0].Overlay, c.Disks[0].Cache, c.Disks[0].Share = 7, 8, 9 },
			want: []string{"overlay 7: there is no such kind", "cache mode 8", "share mode 9"}},
		{name: "disks overlaid with one base", change: func(_ *testing.T, c *Config) {
			c.Disks[0].Overlay = OverlayMemory
			c.Disks[1] = c.Disks[0]
		}},
		{name: "overlay", change: func(t *testing.T, c *Config) {
			c.Disks[0].Overlay, c.Disks[0].Persist = OverlayPersist, filepath.Join(t.TempDir(), "new")
		}},
		{name: "overlay in no folder", change: func(_ *testing.T, c *Config) {
			c.Disks[0].Overlay, c.Disks[0].Persist = OverlayPersist, "/nowhere/o"
		}, want: []string{"overlay /nowhere/o: this user cannot make it in /nowhere"}},
		{name: "overlay folder", change: func(t *testing.T, c *Config) {
			c.Disks[0].Overlay, c.Disks[0].Persist = OverlayPersist, t.TempDir()
		}, want: []string{"it is a directory"}},
		{name: "overlay on itself", change: func(_ *testing.T, c *Config) {
			c.Disks[0].Overlay, c.Disks[0].Persist = OverlayPersist, c.Disks[0].Path
		}, want: []string{"it is a disk, too"}},
		{name: "overlay twice", change: func(t *testing.T, c *Config) {
			c.Disks[0].Overlay, c.Disks[0].Persist = OverlayPersist, file(t, "o", 512)
			c.Disks[1] = c.Disks[0]
		}, want: []string{"is given twice"}},
		{name: "disk unnamed", change: func(_ *testing.T, c *Config) { c.Disks[0].Path = "" }, want: []string{"disk: it has no path"}},
		{name: "disk twice", change: func(_ *testing.T, c *Config) { c.Disks[1].Path = c.Disks[0].Path }, want: []string{"is given twice, and not read-only"}},
		{name: "disk twice read-only", change: func(_ *testing.T, c *Config) {
			c.Disks[0].ReadOnly = true
			c.Disks[1].Path = c.Disks[0].Path
		}},
		{name: "tap unnamed", change: func(_ *testing.T, c *Config) { c.Nets[1].Tap = "" }, want: []string{"net tap: it has no name"}},
		{name: "tap long", change: func(_ *testing.T, c *Config) { c.Nets[1].Tap = "sixteen-letters-" }, want: []string{"more than 15 bytes"}},
		{name: "tap pattern", change: func(_ *testing.T, c *Config) { c.Nets[1].Tap = "tap%d" }, want: []string{"no interface can have this name"}},
		{name: "bridge path", change: func(_ *testing.T, c *Config) { c.Nets[1].Bridge = "../x" }, want: []string{`net bridge "../x"`}},
		{name: "tap twice", change: func(_ *testing.T, c *Config) { c.Nets[0] = c.Nets[1] }, want: []string{"net tap tap0: it is given twice"}},
		{name: "tap forwards", change: func(_ *testing.T, c *Config) { c.Nets[1].Forwards = c.Nets[0].Forwards }, want: []string{"only a user-mode network"}},
		{name: "user with tap", change: func(_ *testing.T, c *Config) { c.Nets[0].Tap = "tap1" }, want: []string{"no tap and no bridge"}},
		{name: "forward proto", change: func(_ *testing.T, c *Config) { c.Nets[0].Forwards[0].Proto = "sctp" }, want: []string{`"sctp" is neither tcp nor udp`}},
		{name: "forward port 0", change: func(_ *testing.T, c *Config) { c.Nets[0].Forwards[0].GuestPort = 0 }, want: []string{"ports are 1 to 65535"}},
		{name: "forward address", change: func(_ *testing.T, c *Config) { c.Nets[0].Forwards[0].HostAddr = "here" }, want: []string{`"here" is not an IP address`}},
		{name: "forward twice", change: func(_ *testing.T, c *Config) {
			c.Nets[0].Forwards = append(c.Nets[0].Forwards, Forward{Proto: "tcp", HostAddr: "127.0.0.1", HostPort: 8080, GuestPort: 81})
		}, want: []string{"host port 8080 is given twice"}},
		{name: "forward tcp and udp", change: func(_ *testing.T, c *Config) {
			c.Nets[0].Forwards = append(c.Nets[0].Forwards, Forward{Proto: "udp", HostPort: 8080, GuestPort: 80})
		}},
		{name: "many devices", change: func(_ *testing.T, c *Config) { c.Nets = slices.Repeat([]Net{{}}, 27) }, want: []string{"29 disks, network devices and shared folders: a guest has at most 28"}},
		{name: "console", change: func(_ *testing.T, c *Config) { c.Console = 7 }, want: []string{"console 7"}},
		{name: "vsock long", change: func(_ *testing.T, c *Config) { c.Vsock = strings.Repeat("v", 97) }, want: []string{"at most 96 bytes, and this has 97"}},
		{name: "vsock folder", change: func(_ *testing.T, c *Config) { c.Vsock = "/nowhere/v" }, want: []string{"its folder does not exist"}},
		{name: "timeout", change: func(_ *testing.T, c *Config) { c.Timeout = -time.Second }, want: []string{"timeout -1s"}},
		{name: "grace", change: func(_ *testing.T, c *Config) { c.Grace = -time.Second }, want: []string{"grace -1s"}},
		{name: "all together", change: func(_ *testing.T, c *Config) {
			c.Kernel, c.CPUs, c.Memory, c.Timeout = "", 0, 1, -1
		}, want: []string{"kernel", "cpus", "memory", "timeout"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := good(t)
			tt.change(t, &c)
			err := c.Validate()
			if tt.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			ce, ok := errors.AsType[*ConfigError](err)
			if !ok {
				t.Fatalf("got %v, want a ConfigError", err)
			}
			if len(ce.Problems) != len(tt.want) {
				t.Fatalf("got %d problems, want %d:\n%v", len(ce.Problems), len(tt.want), err)
			}
			for i, p := range ce.Problems {
				if !strings.Contains(p.Error(), tt.want[i]) || strings.Contains(p.Error(), "\n") {
					t.Errorf("problem %q, want one line with %q", p, tt.want[i])
				}
			}
			if _, host := errors.AsType[*HostError](err); host != tt.host {
				t.Errorf("is a HostError: %v, want %v", host, tt.host)
			}
		})
	}
}

func TestFormatSize(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 bytes", 1: "1 byte", 4096: "4K", 512 << 20: "512M", 1536 << 20: "1536M", 2 << 30: "2G", 1 << 40: "1T", 1<<30 + 1: "1073741825 bytes",
	} {
		if got := FormatSize(n); got != want {
			t.Errorf("FormatSize(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestForwardString(t *testing.T) {
	for want, f := range map[string]Forward{
		"tcp:8080:80":         {Proto: "tcp", HostPort: 8080, GuestPort: 80},
		"udp:0.0.0.0:53:5353": {Proto: "udp", HostAddr: "0.0.0.0", HostPort: 53, GuestPort: 5353},
		"tcp:[::1]:8080:80":   {Proto: "tcp", HostAddr: "::1", HostPort: 8080, GuestPort: 80},
	} {
		if got := f.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
