package main

import (
	"strings"
	"testing"
)

const smaps = `00400000-00a00000 r-xp 00000000 00:1e 12 /bin/disco
Size:               6144 kB
Rss:                3000 kB
Pss:                1500 kB
c000000000-c000400000 rw-p 00000000 00:00 0
Rss:                2000 kB
7f0000000000-7f0010000000 rw-s 00000000 00:01 33 /memfd:disco- (deleted)
Rss:               65536 kB
7f0020000000-7f0020003000 rw-s 00000000 00:0f 34 anon_inode:kvm-vcpu:0
Rss:                   8 kB
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
Rss:                  12 kB
VmFlags: rd wr
`

func TestAddUp(t *testing.T) {
	want := own{Total: 5020 << 10, Anonymous: 2020 << 10, File: 3000 << 10, Guest: 64 << 20}
	for _, name := range []string{"memfd:disco-", ""} {
		got, err := addUp(strings.NewReader(smaps), name)
		if err != nil {
			t.Fatal(err)
		}
		if *got != want {
			t.Errorf("guest memory %q: %+v, want %+v", name, *got, want)
		}
	}
	for _, bad := range []string{"", "1000-2000 rw-p 0 00:00 0\nRss: 4 kB\n", smaps + "Rss: many kB\n"} {
		if _, err := addUp(strings.NewReader(bad), ""); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}
