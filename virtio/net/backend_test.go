package netdev_test

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"net"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"disco/net/frame"
	"disco/net/tap"
	"disco/net/user"
	netdev "disco/virtio/net"
	"disco/virtio/virtiotest"
)

var (
	_ netdev.Backend = (*tap.Tap)(nil)
	_ netdev.Backend = (*user.Net)(nil)
)

// TestUserNetwork asks for an address through the device's queues.
func TestUserNetwork(t *testing.T) {
	far, err := user.New(user.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	mac := [6]byte{2, 0, 0, 0, 0, 1}
	n, err := netdev.New(netdev.Config{Backend: far, MAC: mac, Pairs: 4})
	if err != nil {
		t.Fatal(err)
	}
	d := virtiotest.Start(t, n, virtiotest.Options{})
	if len(d.Rings) != 3 {
		t.Errorf("%d queues, want 3", len(d.Rings))
	}
	for range 2 { // a guest that reboots
		d.Rings[0].Add(nil, []int{1536})
		d.Rings[0].Kick()
		d.Rings[1].Do([][]byte{make([]byte, frame.HeaderLen), discover(t, mac)}, nil)
		u := d.Rings[0].Wait()
		got := u.Data[0][:u.Written]
		const payload = frame.HeaderLen + frame.MinLen + 20 + 8
		if len(got) < payload {
			t.Fatalf("%d bytes came", len(got))
		}
		offer, err := dhcpv4.FromBytes(got[payload:])
		if err != nil || !offer.YourIPAddr.Equal(net.IP(user.Guest.AsSlice())) {
			t.Errorf("offer: %v, %v", offer, err)
		}
		d.Stop()
		d.Restart(n, virtiotest.Options{})
	}
}

// discover is a frame that asks for an address.
func discover(t *testing.T, mac [6]byte) []byte {
	t.Helper()
	m, err := dhcpv4.NewDiscovery(mac[:])
	if err != nil {
		t.Fatal(err)
	}
	body := m.ToBytes()
	eth := append(bytes.Repeat([]byte{0xff}, 6), mac[:]...)
	eth = append(eth, 8, 0)
	ip := make([]byte, 20)
	ip[0], ip[8], ip[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(ip[2:], uint16(28+len(body)))
	copy(ip[16:], []byte{255, 255, 255, 255})
	var sum uint32
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	udp := []byte{0, 68, 0, 67, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(udp[4:], uint16(8+len(body)))
	return bytes.Join([][]byte{eth, ip, udp, body}, nil)
}
