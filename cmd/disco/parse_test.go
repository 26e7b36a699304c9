package main

import (
	"reflect"
	"strings"
	"testing"

	"disco/net/segment"
	"disco/vmm"
)

var sizes = map[string]uint64{
	"0": 0, "1": 1, "4096": 4096, "512M": 512 << 20, "2G": 2 << 30, "2g": 2 << 30, "1T": 1 << 40, "64K": 64 << 10,
	"1.5G": 1536 << 20, "512MB": 512 << 20, "512MiB": 512 << 20, "10B": 10, "1P": 1 << 50,
}

var badSizes = []string{
	"", "M", "-1", "-512M", "+5", "5X", "512 M", " 5", "1e9", "0x10", "NaN", "Inf", "5Mi", "5bM", "1..5G", "1.G",
	"999999999999999P", "99999999999999999999", "1.5.5G", "５12M",
}

func TestParseSize(t *testing.T) {
	for s, want := range sizes {
		if got, err := parseSize(s); err != nil || got != want {
			t.Errorf("%q: got %d, %v, want %d", s, got, err, want)
		}
	}
	for _, s := range badSizes {
		if got, err := parseSize(s); err == nil {
			t.Errorf("%q: got %d, want an error", s, got)
		} else if !strings.Contains(err.Error(), "512M") {
			t.Errorf("%q: %q does not show the form", s, err)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for s := range sizes {
		f.Add(s)
	}
	for _, s := range badSizes {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := parseSize(s)
		if err != nil {
			return
		}
		if n > 1<<60 {
			t.Fatalf("%q is %d", s, n)
		}
		if n < 1<<40 { // RAMInBytes is exact up to 2^53 and in fewer digits
			if again, err := parseSize(formatSize(n)); err != nil || again != n {
				t.Errorf("%q is %d, written %q, read again %d, %v", s, n, formatSize(n), again, err)
			}
		}
	})
}

func TestParseDisk(t *testing.T) {
	for s, want := range map[string]vmm.Disk{
		"a.img":                     {Path: "a.img"},
		"a.img,ro":                  {Path: "a.img", ReadOnly: true},
		"/d/a,b.img":                {Path: "/d/a,b.img"},
		"/d/a,b.img,ro":             {Path: "/d/a,b.img", ReadOnly: true},
		"a.img,readonly":            {Path: "a.img,readonly"},
		"a,ro,b":                    {Path: "a,ro,b"},
		"a,size=5":                  {Path: "a,size=5"},
		"a,format=raw":              {Path: "a", Format: "raw"},
		"a,format=qcow2,backing":    {Path: "a", Format: "qcow2", Backing: true},
		"a,cache=writeback":         {Path: "a"},
		"a,cache=direct,ro":         {Path: "a", ReadOnly: true, Cache: vmm.Direct},
		"a,cache=writethrough":      {Path: "a", Cache: vmm.Writethrough},
		"a,iops=100,bps=20M":        {Path: "a", IOPS: 100, BPS: 20 << 20},
		"a,bps=1,iops=1,ro,backing": {Path: "a", ReadOnly: true, Backing: true, IOPS: 1, BPS: 1},
	} {
		got, err := parseDisk(s)
		if err != nil || got != want {
			t.Errorf("%q: got %+v, %v, want %+v", s, got, err, want)
		}
		if again, err := parseDisk(formatDisk(got)); err != nil || again != got {
			t.Errorf("%q is written %q, and read as %+v, %v", s, formatDisk(got), again, err)
		}
	}
	for s, want := range map[string]string{
		"":                      "no path",
		",ro":                   "no path",
		",ro,backing":           "no path",
		"a,format=vmdk":         "format=vmdk: there are raw and qcow2",
		"a,format=":             "format=: there are",
		"a,cache=none":          "there are writeback, writethrough and direct",
		"a,iops=0":              "1 or more",
		"a,iops=-1":             "1 or more",
		"a,iops=many,ro":        "iops=many: it is a number",
		"a,iops=5000000000":     "iops=5000000000",
		"a,bps=0":               "1 byte a second or more",
		"a,bps=fast":            "such as 20M",
		"a,ro,ro":               "ro is given twice",
		"a,iops=1,bps=1,iops=2": "iops is given twice",
	} {
		if got, err := parseDisk(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %+v, %v, want an error that says %q", s, got, err, want)
		}
	}
}

func FuzzParseDisk(f *testing.F) {
	for _, s := range []string{"a.img", "a.img,ro", ",ro", "", ",", "a,ro,ro", "a,iops=1,bps=2K,format=raw,cache=direct,backing"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := parseDisk(s)
		if err != nil {
			return
		}
		if again, err := parseDisk(formatDisk(d)); err != nil || again != d {
			t.Errorf("%q is %+v, written %q, and that is %+v, %v", s, d, formatDisk(d), again, err)
		}
	})
}

var networks = map[string]*vmm.Net{
	"none":                     nil,
	"user":                     {},
	"user,forward=tcp:8080:80": {Forwards: []vmm.Forward{{Proto: "tcp", HostPort: 8080, GuestPort: 80}}},
	"user,forward=tcp:0.0.0.0:8080:80,forward=udp:[::1]:53:5353": {Forwards: []vmm.Forward{
		{Proto: "tcp", HostAddr: "0.0.0.0", HostPort: 8080, GuestPort: 80},
		{Proto: "udp", HostAddr: "::1", HostPort: 53, GuestPort: 5353},
	}},
	"tap=tap0":            {Kind: vmm.NetTap, Tap: "tap0"},
	"tap=tap0,bridge=br0": {Kind: vmm.NetTap, Tap: "tap0", Bridge: "br0"},
	"segment=lan0":        {Kind: vmm.NetSegment, Segment: "lan0"},
	"segment=lan0,mac=02:00:00:00:00:0a,mtu=9000,map=always,rate=20M,guard=off": {
		Kind: vmm.NetSegment, Segment: "lan0", MAC: [6]byte{2, 0, 0, 0, 0, 10}, MTU: 9000, Map: segment.MapAlways, Rate: 20 << 20, Unguarded: true,
	},
}

var badNetworks = map[string]string{
	"":                                      "not a network",
	"users":                                 "not a network",
	"tap":                                   "not a network",
	"tap=":                                  "not a network",
	"none,x":                                "none takes no options",
	"user,":                                 `user does not take ""`,
	"user,bridge=br0":                       `user does not take "bridge=br0"`,
	"tap=t,forward=tcp:1:2":                 `tap=t does not take`,
	"tap=t,bridge=":                         `does not take "bridge="`,
	"tap=t,bridge=a,bridge=b":               `does not take "bridge=b"`,
	"user,forward=8080:80":                  "neither tcp: nor udp:",
	"user,forward=tcp:80":                   "one port, not two",
	"user,forward=tcp:0:80":                 `"0" is not a port`,
	"user,forward=tcp:65536:80":             `"65536" is not a port`,
	"user,forward=tcp:8080:http":            `"http" is not a port`,
	"user,forward=tcp:localhost:1:2":        `"localhost" is not an IP address`,
	"user,forward=tcp:[fe80::1%lo]:1:2":     "is not an IP address",
	"user,forward=tcp::1:2":                 `"" is not an IP address`,
	"segment":                               "not a network",
	"segment=":                              "not a network",
	"segment=l,x=y":                         `a segment does not take "x=y"; there are mac, mtu, map, rate and guard`,
	"segment=l,mac=1":                       "mac=1: not a MAC",
	"segment=l,mac=00:00:00:00:00:00":       "not a MAC",
	"segment=l,mac=02-00-00-00-00-00-00-01": "not a MAC",
	"segment=l,mtu=5":                       "mtu=5: an MTU is 1280 to 65535",
	"segment=l,map=yes":                     "map=yes: there are auto, always and never",
	"segment=l,rate=0":                      "rate=0: it is a size of 1 byte a second or more",
	"segment=l,guard=maybe":                 "guard=maybe: there are on and off",
	"segment=l,rate=1,rate=2":               "rate is given twice",
	"segment=l,forward=tcp:1:2":             "a segment does not take",
}

func TestParseNet(t *testing.T) {
	for s, want := range networks {
		got, err := parseNet(s)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %+v, %v, want %+v", s, got, err, want)
		}
		if want != nil && formatNet(*want) != s {
			t.Errorf("%+v is written %q, want %q", *want, formatNet(*want), s)
		}
	}
	for s, want := range badNetworks {
		if got, err := parseNet(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %+v, %v, want an error with %q", s, got, err, want)
		}
	}
}

func FuzzParseNet(f *testing.F) {
	for s := range networks {
		f.Add(s)
	}
	for s := range badNetworks {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := parseNet(s)
		if err != nil || n == nil {
			return
		}
		again, err := parseNet(formatNet(*n))
		if err != nil || !reflect.DeepEqual(again, n) {
			t.Errorf("%q is %+v, written %q, read again %+v, %v", s, n, formatNet(*n), again, err)
		}
	})
}

func TestQuote(t *testing.T) {
	got := quote([]string{"disco", "run", "--cmdline", "a b", "", "it's", "--net", "user,forward=tcp:1:2"})
	if want := `disco run --cmdline 'a b' '' 'it'\''s' --net user,forward=tcp:1:2`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
