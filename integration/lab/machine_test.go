package lab

import (
	"slices"
	"strings"
	"testing"
)

// values returns what follows each occurrence of an option.
func values(args []string, option string) []string {
	var v []string
	for i, a := range args[:len(args)-1] {
		if a == option {
			v = append(v, args[i+1])
		}
	}
	return v
}

func TestCommandLine(t *testing.T) {
	for _, c := range []struct {
		name string
		o    Options
		want map[string][]string
	}{
		{"default", Options{}, map[string][]string{
			"-smp":    {"4,sockets=2,cores=2,threads=1"},
			"-m":      {"3072M"},
			"-object": {"memory-backend-ram,id=m0,size=1536M", "memory-backend-ram,id=m1,size=1536M"},
			"-numa":   {"node,nodeid=0,memdev=m0,cpus=0-1", "node,nodeid=1,memdev=m1,cpus=2-3", "dist,src=0,dst=1,val=21"},
			"-kernel": {"/proc/self/fd/3"},
			"-initrd": {"/proc/self/fd/4"},
			"-netdev": {"user,id=net"},
		}},
		{"one node", Options{Nodes: 1, CPUs: 1, Memory: 512 << 20, Dir: "/a,b"}, map[string][]string{
			"-smp":  {"1,sockets=1,cores=1,threads=1"},
			"-m":    {"512M"},
			"-numa": {"node,nodeid=0,memdev=m0,cpus=0-0"},
			"-fsdev": {"local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
				"local,id=dir,path=/a,,b,security_model=none,multidevs=remap"},
		}},
		{"three nodes", Options{Nodes: 3, Memory: 1 << 30, Distance: 31}, map[string][]string{
			"-m": {"1023M"}, // the same for each, in whole MiB
			"-numa": {"node,nodeid=0,memdev=m0,cpus=0-1", "node,nodeid=1,memdev=m1,cpus=2-3", "node,nodeid=2,memdev=m2,cpus=4-5",
				"dist,src=0,dst=1,val=31", "dist,src=0,dst=2,val=31", "dist,src=1,dst=2,val=31"},
		}},
		{"forwards", Options{Forwards: []Forward{{8080, 80}, {8443, 443}}}, map[string][]string{
			"-netdev": {"user,id=net,hostfwd=tcp:127.0.0.1:8080-10.0.2.15:20200,hostfwd=tcp:127.0.0.1:8443-10.0.2.15:20201"},
		}},
		{"nothing shared", Options{Dir: "/"}, map[string][]string{
			"-fsdev": {"local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"},
		}},
	} {
		dir := c.o.Dir
		c.o.Dir = "/"
		if problems := c.o.complete(someMemory); problems != nil {
			t.Fatalf("%s: %v", c.name, problems)
		}
		c.o.Dir = dir
		args := qemuArguments(&c.o, descriptors{kernel: 3, initrd: 4, port: 5, console: 6})
		for option, want := range c.want {
			if got := values(args, option); !slices.Equal(got, want) {
				t.Errorf("%s: %s\n got %q\nwant %q", c.name, option, got, want)
			}
		}
		// The root is never writable.
		for _, f := range values(args, "-fsdev") {
			if strings.Contains(f, "path=/,") && !strings.Contains(f, "readonly=on") {
				t.Errorf("%s: %s", c.name, f)
			}
		}
	}
}
