package lab

import (
	"fmt"
	"strconv"
	"strings"
)

const (
	portName = "disco"      // the virtio serial port of the protocol
	rootTag  = "disco.root" // 9p: the host's root folder, read-only
	dirTag   = "disco.dir"  // 9p: the shared folder
	initPath = "/init"
	initArg  = "disco.lab" // on the kernel command line, says that this is a lab

	labAddress = "10.0.2.15" // what QEMU's user network expects its machine to be
	labGateway = "10.0.2.2"
	labDNS     = "10.0.2.3"

	// forwardBase is the lab's port of the first forward; its init carries
	// connections from there to the loopback, where both a service bound to
	// 127.0.0.1 and one bound to 0.0.0.0 are found.
	forwardBase = 20200
)

// descriptors are the numbers that QEMU's files have in QEMU.
type descriptors struct{ kernel, initrd, port, console int }

// kernelArguments is what the lab's kernel is told. Each costs or saves time in
// emulation, or decides what happens when something goes wrong.
func kernelArguments() []string {
	return []string{
		initArg,
		"console=ttyS0",
		"panic=-1",            // and -no-reboot: a panic ends QEMU
		"tsc=reliable",        // emulated TSCs are one clock; without it time is read from a slow timer
		"no_timer_check",      // its wait loops fail on a loaded machine
		"nohz=off",            // a lost interrupt is made up for by the next tick
		"mitigations=off",     // there is no speculation to guard against
		"nokaslr",             // addresses of a panic can be looked up
		"cryptomgr.notests",   // a quarter of a second of self-tests
		"nowatchdog",          // lockup splats say only that the machine under it was busy
		"random.trust_cpu=on", // no waiting for entropy
		"audit=0",
		"rcupdate.rcu_expedited=1", // mounts and module loading wait for grace periods
	}
}

// qemuArguments returns QEMU's command line for a completed o.
func qemuArguments(o *Options, fd descriptors) []string {
	perNode := o.Memory / uint64(o.Nodes) >> 20
	cpus := o.CPUs / o.Nodes
	a := []string{
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-name", "disco-lab",
		"-machine", "pc,usb=off,vmport=off,hpet=off,smbus=off",
		"-accel", "tcg,thread=multi",
		"-cpu", "max,+svm,+npt,-la57,-erms,-fsrm",
		"-smp", fmt.Sprintf("%d,sockets=%d,cores=%d,threads=1", o.CPUs, o.Nodes, cpus),
		"-m", fmt.Sprintf("%dM", perNode*uint64(o.Nodes)),
	}
	for n := range o.Nodes {
		a = append(a,
			"-object", fmt.Sprintf("memory-backend-ram,id=m%d,size=%dM", n, perNode),
			"-numa", fmt.Sprintf("node,nodeid=%d,memdev=m%d,cpus=%d-%d", n, n, n*cpus, (n+1)*cpus-1))
	}
	for n := range o.Nodes {
		for m := range n {
			a = append(a, "-numa", fmt.Sprintf("dist,src=%d,dst=%d,val=%d", m, n, o.Distance))
		}
	}
	a = append(a,
		"-kernel", inherited(fd.kernel),
		"-initrd", inherited(fd.initrd),
		"-append", strings.Join(kernelArguments(), " "),
		"-chardev", fmt.Sprintf("socket,id=console,fd=%d", fd.console),
		"-serial", "chardev:console",
		"-device", "virtio-serial-pci,max_ports=2",
		"-chardev", fmt.Sprintf("socket,id=port,fd=%d", fd.port),
		"-device", "virtserialport,chardev=port,nr=1,name="+portName,
		"-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
		"-device", "virtio-9p-pci,fsdev=root,mount_tag="+rootTag,
	)
	if o.Dir != "/" {
		a = append(a,
			"-fsdev", "local,id=dir,path="+quote(o.Dir)+",security_model=none,multidevs=remap",
			"-device", "virtio-9p-pci,fsdev=dir,mount_tag="+dirTag)
	}
	net := "user,id=net"
	for i, f := range o.Forwards {
		net += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-%s:%d", f.Host, labAddress, forwardBase+i)
	}
	return append(a, "-netdev", net, "-device", "virtio-net-pci,netdev=net,romfile=")
}

// inherited is the path of an open file in the process that opens it.
func inherited(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// quote doubles the commas of a value, as QEMU's option syntax wants.
func quote(s string) string { return strings.ReplaceAll(s, ",", ",,") }
