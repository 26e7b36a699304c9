package netdev

import (
	"encoding/binary"
	"errors"
	"fmt"

	"disco/virtio"
)

// Classes and commands of control requests (virtio 1.2 §5.1.6.5).
const (
	classRx  = 0
	classMAC = 1
	classMQ  = 4

	rxPromiscuous  = 0
	rxAllMulticast = 1

	macTableSet   = 0
	macAddressSet = 1

	mqPairsSet = 0
)

const (
	answerOK    = 0
	answerError = 1
)

// maxMACs bounds the addresses in a filter table.
const maxMACs = 4096

// controller answers requests on the control queue.
type controller struct {
	net   *Net
	queue *virtio.Queue
	pairs int // queue pairs that the driver may ask for
}

func (c *controller) run() { c.queue.Serve(c.handle) }

func (c *controller) handle(chain *virtio.Chain) uint32 {
	c.net.counters.control.Add(1)
	answer := [1]byte{answerOK}
	if err := c.request(chain); err != nil {
		c.net.log.Debug("network device: control request refused", "error", err)
		answer[0] = answerError
	}
	if chain.Write(answer[:]) == 0 {
		c.queue.Fail(errors.New("a control request without room for its answer"))
		return 0
	}
	return 1
}

// request does what a request asks for; every error is the driver's.
func (c *controller) request(chain *virtio.Chain) error {
	var head [2]byte
	if chain.Read(head[:]) < len(head) {
		return errors.New("it is too short")
	}
	switch class, command := head[0], head[1]; {
	case class == classRx && (command == rxPromiscuous || command == rxAllMulticast):
		var on [1]byte
		if chain.Read(on[:]) < len(on) || on[0] > 1 {
			return errors.New("a receive mode is neither on nor off")
		}
		return nil // every frame is delivered already
	case class == classMAC && command == macTableSet:
		return checkTables(chain)
	case class == classMAC && command == macAddressSet:
		var mac [6]byte
		if chain.Read(mac[:]) < len(mac) {
			return errors.New("the address is too short")
		}
		c.net.mu.Lock()
		c.net.config.mac = mac
		c.net.mu.Unlock()
		return nil
	case class == classMQ && command == mqPairsSet:
		var p [2]byte
		if chain.Read(p[:]) < len(p) {
			return errors.New("the number of queue pairs is too short")
		}
		n := int(binary.LittleEndian.Uint16(p[:]))
		if n < 1 || n > c.pairs {
			return fmt.Errorf("%d queue pairs of %d", n, c.pairs)
		}
		return c.net.setPairs(n)
	default:
		return fmt.Errorf("class %d, command %d is not offered", class, command)
	}
}

// checkTables reads the tables of unicast and of multicast addresses. They are
// not used: the driver is told that they are set, and gets more frames than it
// asked for, as it may (virtio 1.2 §5.1.6.5.2).
func checkTables(chain *virtio.Chain) error {
	for range 2 {
		var p [4]byte
		if chain.Read(p[:]) < len(p) {
			return errors.New("a table of addresses is too short")
		}
		n := binary.LittleEndian.Uint32(p[:])
		if n > maxMACs {
			return fmt.Errorf("a table of %d addresses: there can be %d", n, maxMACs)
		}
		for range n {
			var mac [6]byte
			if chain.Read(mac[:]) < len(mac) {
				return errors.New("a table of addresses is too short")
			}
		}
	}
	return nil
}
