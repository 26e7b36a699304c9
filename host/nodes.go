package host

import "disco/numa"

func (h Host) numa() Finding {
	f := Finding{Name: "NUMA"}
	t, err := numa.Read(h.Root)
	switch {
	case err != nil:
		f.Status, f.Found = Warn, err.Error()
		f.Mend = "mount sysfs at /sys and procfs at /proc, as this machine's kernel shows them"
	case !t.Real():
		f.Status, f.Found = Warn, t.String()
		f.Mend = "use a kernel with CONFIG_NUMA if this machine has several sockets"
	default:
		f.Status, f.Found = OK, t.String()
	}
	return f
}
