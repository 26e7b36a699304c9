package integration

import (
	"bufio"
	"crypto/md5"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"disco/integration/guest"
	"disco/vmm"
)

// TestLabFolder has two Linux guests mount one folder and map its files: they read
// what the host wrote, and the host what they wrote; the machine has the pages of a
// file that both read once; and when the host cuts the file short under them,
// they go on.
func TestLabFolder(t *testing.T) {
	const guests, size = 2, 6 << 20
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	data := make([]byte, size)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(data)
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("data", string(data))
	put("script", `b=/bin/busybox; cd /mnt/s || exit 1
me=$($b cat /proc/sys/kernel/random/boot_id)
$b mkdir $me && $b cp script $me/copy && $b dd if=data of=$me/part bs=64k count=16 conv=fsync 2>/dev/null || exit 2
$b ln -s /proc/version $me/link && $b cmp -s $me/link /proc/version || exit 3
$b ls /mnt/s/.. >/dev/null; $b ls $me/../../etc/passwd >/dev/null 2>&1 || [ -e $me/../script ] || exit 4
exec 3<data
echo "$($b md5sum <data) has-read"
until [ -e cut ]; do $b sleep 1; done
# The open file is as long as it was, for all that the guest's kernel knows.
$b md5sum <&3 >/dev/null; echo "is-still-there"
`)
	sum := fmt.Sprintf("%x", md5.Sum(data))
	report := filepath.Join(t.TempDir(), "report.json")
	l := disco(t, "run", "--host", "here", "--guests", strconv.Itoa(guests), "--cpus", "1", "--memory", "128M", "--net", "none",
		"--share", dir+":s,window=16M", "--report", report, "--cmdline", "disco.task=folder=s/dax,script=/mnt/s/script").start()
	l.saysTimes(guests, sum+"  - has-read")

	mapped := mappedOf(t, l.cmd.Process.Pid, filepath.Join(dir, "data"))
	t.Logf("of %d KiB the guests' windows show %d KiB, in %d KiB of memory", size>>10, mapped.rss, mapped.pss)
	if mapped.rss != guests*size>>10 {
		t.Errorf("%d KiB of the file are mapped, of %d", mapped.rss, guests*size>>10)
	}
	if part := float64(mapped.pss) / (size >> 10); part < 0.98 || part > 1.02 {
		t.Errorf("the machine has %.2f times the file", part)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != guests+2 {
		t.Errorf("the folder has %v, %v", entries, err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		part, err := os.ReadFile(filepath.Join(dir, e.Name(), "part"))
		if err != nil || string(part) != string(data[:1<<20]) {
			t.Errorf("a guest wrote another %d bytes, %v", len(part), err)
		}
	}

	if err := os.Truncate(filepath.Join(dir, "data"), size/2); err != nil {
		t.Fatal(err)
	}
	put("cut", "")
	l.saysTimes(guests, "is-still-there")
	l.saysTimes(guests, guest.Prefix+"task=script result=ok")
	l.ends(0)
	text, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	var reports []struct{ Folders []vmm.FolderStats }
	if err := json.Unmarshal(text, &reports); err != nil || len(reports) != guests {
		t.Fatalf("%d reports, %v", len(reports), err)
	}
	for i, r := range reports {
		if len(r.Folders) != 1 || r.Folders[0].Mended != size/2/pageSize || r.Folders[0].BadRequests != 0 {
			t.Errorf("guest %d: %+v", i, r.Folders)
		}
	}
}

// mapped is what a process has of a file, in KiB.
type mapped struct{ rss, pss int }

// mappedOf adds up the mappings of a file; of a page that is mapped n times each
// counts an n-th (proc(5), smaps).
func mappedOf(t testing.TB, pid int, path string) (m mapped) {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	on := false
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) >= 5 && strings.Contains(words[0], "-") {
			on = len(words) == 6 && words[5] == path
			continue
		}
		if !on || len(words) != 3 {
			continue
		}
		n, err := strconv.Atoi(words[1])
		if err != nil {
			continue
		}
		switch words[0] {
		case "Rss:":
			m.rss += n
		case "Pss:":
			m.pss += n
		}
	}
	return m
}
