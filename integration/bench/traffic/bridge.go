package traffic

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/vishvananda/netlink"
)

// bridgePrefix begins the names of all links that are made here, which Linux has at
// most 15 characters for.
const bridgePrefix = "dbench-"

// bridge is one of the host's, with taps on it.
type bridge struct {
	link *netlink.Bridge
	taps []string
	made []netlink.Link // of the taps, those that were made here
}

// newBridge makes that of a program's guests.
func newBridge(p Program) (*bridge, error) {
	name := bridgePrefix + string(p)
	b := &bridge{link: &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}}
	// One that a run which was killed has left.
	if left, err := netlink.LinkByName(name); err == nil {
		if err := netlink.LinkDel(left); err != nil {
			return nil, fmt.Errorf("bridge %s: %w", name, err)
		}
	}
	if err := netlink.LinkAdd(b.link); err != nil {
		return nil, fmt.Errorf("bridge %s: %w: it takes root, and the kernel's module bridge", name, err)
	}
	if err := netlink.LinkSetUp(b.link); err != nil {
		return nil, errors.Join(fmt.Errorf("bridge %s: %w", name, err), b.close())
	}
	return b, nil
}

func (b *bridge) name() string { return b.link.Name }

// next is the name of another tap.
func (b *bridge) next() string {
	name := b.name() + "-" + strconv.Itoa(len(b.taps))
	b.taps = append(b.taps, name)
	return name
}

// tap makes one more, which is on the bridge and stays when nobody has it open.
func (b *bridge) tap() (string, error) {
	name := b.next()
	t := &netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: name},
		Mode:      netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR,
	}
	if left, err := netlink.LinkByName(name); err == nil {
		if err := netlink.LinkDel(left); err != nil {
			return "", fmt.Errorf("tap %s: %w", name, err)
		}
	}
	if err := netlink.LinkAdd(t); err != nil {
		return "", fmt.Errorf("tap %s: %w", name, err)
	}
	b.made = append(b.made, t)
	if err := errors.Join(netlink.LinkSetMaster(t, b.link), netlink.LinkSetUp(t)); err != nil {
		return "", fmt.Errorf("tap %s: %w", name, err)
	}
	return name, nil
}

// carried adds up the taps' bytes: what guests sent is copied once on its way in,
// what they got so often on its way out.
func (b *bridge) carried(out uint64) (carried, error) {
	var c carried
	for _, name := range b.taps {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return c, fmt.Errorf("tap %s: %w", name, err)
		}
		// The host's view: it has received what the guest sent.
		n := link.Attrs().Statistics
		if n == nil {
			return c, fmt.Errorf("tap %s: the kernel does not count its bytes", name)
		}
		c.Delivered += n.TxBytes
		c.Copied += n.RxBytes + out*n.TxBytes
	}
	return c, nil
}

func (b *bridge) close() error {
	var err error
	for _, t := range b.made {
		err = errors.Join(err, netlink.LinkDel(t))
	}
	return errors.Join(err, netlink.LinkDel(b.link))
}
