package host

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

func (h Host) tap() Finding {
	f := Finding{Name: "tap networks"}
	fd, err := unix.Open(h.Tun, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		f.Status, f.Found = Warn, h.Tun+": "+cause(err)
		f.Mend = "modprobe tun; --net user does without"
		if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
			f.Mend = "run as root; --net user does without"
		}
		return f
	}
	unix.Close(fd)
	if !netAdmin() {
		f.Status, f.Found = Warn, "this process lacks CAP_NET_ADMIN"
		f.Mend = "run as root, or setcap cap_net_admin+ep on the program; --net user does without"
		return f
	}
	f.Status, f.Found = OK, h.Tun+" and CAP_NET_ADMIN"
	return f
}

// netAdmin says whether CAP_NET_ADMIN is in effect.
func netAdmin() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, (*unix.CapUserData)(unsafe.Pointer(&data[0]))); err != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_NET_ADMIN) != 0
}
