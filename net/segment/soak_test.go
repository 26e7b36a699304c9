package segment_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"disco/memory"
	"disco/memory/arena"
	"disco/net/frame"
	"disco/net/segment"
	"disco/virtio/virtiotest"
)

// soakEnv is how many frames the soak sends, in place of some seconds' worth.
const soakEnv = "DISCO_SOAK_FRAMES"

// Where things are in the memory of a guest of the soak, in pages.
const (
	soakData   = 4096 // what it sends, at first shared
	soakPages  = 512
	soakRoom   = 4096 + 1024 // receive buffers
	soakRooms  = 768
	soakOther  = soakRoom + soakRooms // what its other thread plays with: the same 2 MiB
	soakOthers = 128
	soakFlight = 60 // frames it has on their way at most
)

// soaker is a guest that sends, receives, and writes to everything meanwhile.
type soaker struct {
	*guest
	r     *rand.Rand
	a     *arena.Arena
	peer  *soaker
	frame uint32 // sent
	total uint32
	got   uint32

	seeds  [soakPages]uint32 // of what each page of data holds
	flying [soakPages]int
	chains map[int][]int // pages of each chain that is on its way
	heads  []memory.GPA
	used   map[int]memory.GPA

	free  []int          // rooms that are not posted
	posts map[int]int    // chain: room
	holds map[int]uint32 // seed of what a room that is not posted holds
	buf   [page]byte
	want  [page]byte
}

func (k *soaker) at(p int) memory.GPA { return memory.GPA(p) * page }

func (k *soaker) fatal(err error) {
	if err != nil {
		panic(err)
	}
}

// share makes page i of data the pool's.
func (k *soaker) share(i int) {
	j := k.r.IntN(soakPages)
	if err := k.space.Share(memory.PPN(soakData+i), memory.Run{Arena: k.a, Page: uint64(j), N: 1}); err != nil {
		return // it is as it was
	}
	k.seeds[i] = uint32(j)
}

// scribble writes to a page of data that is not on its way.
func (k *soaker) scribble() {
	i := k.r.IntN(soakPages)
	if k.flying[i] != 0 {
		return
	}
	if k.r.IntN(2) == 0 {
		k.share(i)
		return
	}
	seed := k.r.Uint32() | 1<<31
	fill(k.buf[:], seed)
	k.fatal(store(k.space, k.buf[:], k.at(soakData+i)))
	k.seeds[i] = seed
}

// send sends one frame: whole pages, their seeds in its head, and a tail.
func (k *soaker) send() {
	n, tail := 0, 0
	switch k.r.IntN(32) {
	case 0:
		n, tail = 14, k.r.IntN(3000)
	case 1:
		n, tail = 1+k.r.IntN(14), k.r.IntN(200)
	case 2, 3, 4, 5, 6:
		tail = k.r.IntN(3000)
	default:
		tail = k.r.IntN(200)
	}
	first := k.r.IntN(soakPages - n)
	payload := 4*n + 12 + n*page + tail
	head := append(make([]byte, frame.HeaderLen), tcp4(k.peer.mac, k.mac, payload)...)
	if n > 0 {
		tso.Put(head)
	}
	head = binary.LittleEndian.AppendUint32(head, k.frame)
	head = binary.LittleEndian.AppendUint32(head, uint32(n))
	head = binary.LittleEndian.AppendUint32(head, uint32(tail))
	at := k.heads[len(k.heads)-1]
	k.heads = k.heads[:len(k.heads)-1]
	ds := []virtiotest.Descriptor{{}}
	var flying []int
	for i := first; i < first+n; i++ {
		head = binary.LittleEndian.AppendUint32(head, k.seeds[i])
		k.flying[i]++
		flying = append(flying, i)
		if last := &ds[len(ds)-1]; i > first && k.r.IntN(3) > 0 {
			last.Len += page
		} else {
			ds = append(ds, virtiotest.Descriptor{Addr: k.at(soakData + i), Len: page})
		}
	}
	ds[0] = virtiotest.Descriptor{Addr: at, Len: uint32(len(head))}
	if tail > 0 {
		head = append(head, make([]byte, tail)...)
		fill(head[len(head)-tail:], k.frame)
		ds = append(ds, virtiotest.Descriptor{Addr: at + memory.GPA(len(head)-tail), Len: uint32(tail)})
	}
	k.fatal(k.space.WriteAt(head, at))
	id := k.tx.AddRaw(ds...)
	k.chains[id], k.used[id] = flying, at
	k.frame++
}

func (k *soaker) reap() (some bool) {
	for {
		u, ok := k.tx.Take()
		if !ok {
			return some
		}
		for _, i := range k.chains[u.ID] {
			k.flying[i]--
		}
		k.heads = append(k.heads, k.used[u.ID])
		delete(k.chains, u.ID)
		delete(k.used, u.ID)
		some = true
	}
}

// post posts buffers, after a look at what they hold.
func (k *soaker) post() {
	for k.rx.Free() > 0 && len(k.free) > 0 {
		i := k.r.IntN(len(k.free))
		room := k.free[i]
		k.free[i] = k.free[len(k.free)-1]
		k.free = k.free[:len(k.free)-1]
		if seed, ok := k.holds[room]; ok {
			k.check(k.at(soakRoom+room), page, seed)
			delete(k.holds, room)
		}
		id := k.rx.AddRaw(virtiotest.Descriptor{Addr: k.at(soakRoom + room), Len: page, Flags: virtiotest.Write})
		k.posts[id] = room
	}
	k.rx.Kick()
}

// check fails the test unless n bytes are those of a seed.
func (k *soaker) check(a memory.GPA, n int, seed uint32) {
	k.fatal(load(k.space, k.buf[:n], a))
	fill(k.want[:n], seed)
	if m := n &^ 3; !bytes.Equal(k.buf[:m], k.want[:m]) {
		k.t.Errorf("other bytes at %#x than those of seed %#x", uint64(a), seed)
	}
}

// receive takes the frames that came and looks at every byte.
func (k *soaker) receive() (some bool) {
	for {
		u, ok := k.rx.Take()
		if !ok {
			return some
		}
		some = true
		type piece struct {
			room, n int
		}
		rooms := []piece{{k.posts[u.ID], int(u.Written)}}
		k.fatal(load(k.space, k.buf[:u.Written], k.at(soakRoom+rooms[0].room)))
		h := frame.Parse(k.buf[:])
		for range int(h.NumBuffers) - 1 {
			u := k.rx.Wait()
			rooms = append(rooms, piece{k.posts[u.ID], int(u.Written)})
		}
		var all []byte
		for _, p := range rooms {
			k.fatal(load(k.space, k.buf[:p.n], k.at(soakRoom+p.room)))
			all = append(all, k.buf[:p.n]...)
		}
		all = all[frame.HeaderLen+66:]
		number, n, tail := binary.LittleEndian.Uint32(all), int(binary.LittleEndian.Uint32(all[4:])), int(binary.LittleEndian.Uint32(all[8:]))
		if number < k.got {
			k.t.Errorf("frame %d came, not %d", number, k.got)
		}
		k.got = number + 1
		if len(all) != 12+4*n+n*page+tail {
			k.t.Errorf("frame %d: %d bytes", number, len(all))
			return
		}
		at := all[12+4*n:]
		for i := range n {
			seed := binary.LittleEndian.Uint32(all[12+4*i:])
			fill(k.want[:], seed)
			if !bytes.Equal(at[:page], k.want[:]) {
				k.t.Errorf("frame %d: other bytes in page %d", number, i)
			}
			at = at[page:]
		}
		fill(k.want[:tail], number)
		if m := tail &^ 3; !bytes.Equal(at[:m], k.want[:m]) {
			k.t.Errorf("frame %d: other bytes at the end", number)
		}
		for i, p := range rooms {
			k.free = append(k.free, p.room)
			switch k.r.IntN(32) {
			case 0: // the guest makes use of it
				seed := k.r.Uint32()
				fill(k.buf[:], seed)
				k.fatal(store(k.space, k.buf[:], k.at(soakRoom+p.room)))
				k.holds[p.room] = seed
			case 1: // or of a part, which brings no harm to the rest
				if i > 0 && p.n == page {
					var before, after [8]byte
					a := k.at(soakRoom+p.room) + page - 8
					k.fatal(load(k.space, before[:], a))
					k.fatal(store(k.space, []byte("mine"), a-8))
					k.fatal(load(k.space, after[:], a))
					if before != after {
						k.t.Errorf("frame %d: a store nearby changed a page", number)
					}
				}
			}
		}
	}
}

// awaits says whether there is more to come. On a machine with much else to do a
// thread may stand still so long that frames for it are dropped.
func (k *soaker) awaits() bool {
	if k.got == k.total {
		return false
	}
	st := k.port.Stats()
	return st.Received.Frames+st.Dropped["late"]+st.Dropped["full"] < uint64(k.total)
}

// run is the thread that drives the device.
func (k *soaker) run() {
	for k.frame < k.total || len(k.chains) > 0 || k.awaits() {
		some := k.receive()
		k.post()
		some = k.reap() || some
		for k.frame < k.total && len(k.heads) > 0 && k.tx.Free() > 20 {
			k.send()
			if k.r.IntN(32) == 0 {
				k.scribble()
			}
			some = true
		}
		k.tx.Kick()
		if !some {
			time.Sleep(20 * time.Microsecond)
		}
		if k.t.Failed() {
			return
		}
	}
}

// play is another thread of the guest: it shares, writes and reads elsewhere, in
// the same 2 MiB.
func (k *soaker) play(stop chan struct{}) {
	r := rand.New(rand.NewPCG(3, uint64(k.mac[5])))
	var seeds [soakOthers]uint32
	var b, want [page]byte
	known := make([]bool, soakOthers)
	for {
		select {
		case <-stop:
			return
		default:
		}
		i := r.IntN(soakOthers)
		a := k.at(soakOther + i)
		switch r.IntN(3) {
		case 0:
			j := r.IntN(soakPages)
			if k.space.Share(memory.PPN(soakOther+i), memory.Run{Arena: k.a, Page: uint64(j), N: 1}) == nil {
				seeds[i], known[i] = uint32(j), true
			}
		case 1:
			seeds[i], known[i] = r.Uint32(), true
			fill(b[:], seeds[i])
			k.fatal(store(k.space, b[:], a))
		default:
			if !known[i] {
				continue
			}
			k.fatal(load(k.space, b[:], a))
			if fill(want[:], seeds[i]); b != want {
				k.t.Errorf("other bytes at %#x", uint64(a))
				return
			}
		}
		time.Sleep(500 * time.Microsecond)
	}
}

// TestHostSoak sends frames of all sizes both ways between two guests that write
// to what they send and to what they are given all the time.
func TestHostSoak(t *testing.T) {
	total := 20000
	if v := os.Getenv(soakEnv); v != "" {
		var err error
		if total, err = strconv.Atoi(v); err != nil {
			t.Fatalf("%s: %v", soakEnv, err)
		}
	}
	a := pool(t, soakPages)
	s := newSegment(t, segment.Config{})
	base, vmas := mappings(t), arena.VMAs.Used()
	k := [2]*soaker{}
	for i := range k {
		g := plug(t, s, i+1, segment.PortConfig{Map: segment.MapAlways}, virtiotest.Options{})
		k[i] = &soaker{
			guest: g, a: a, r: rand.New(rand.NewPCG(uint64(i), 1)), total: uint32(total / 2),
			chains: map[int][]int{}, used: map[int]memory.GPA{}, posts: map[int]int{}, holds: map[int]uint32{},
		}
		for p := range soakPages {
			k[i].share(p)
		}
		for range soakFlight {
			k[i].heads = append(k[i].heads, g.drv.Alloc(page))
		}
		for room := range soakRooms {
			k[i].free = append(k[i].free, room)
		}
	}
	k[0].peer, k[1].peer = k[1], k[0]
	var drivers, players sync.WaitGroup
	stop := make(chan struct{})
	for _, k := range k {
		drivers.Go(k.run)
		players.Go(func() { k.play(stop) })
	}
	drivers.Wait()
	close(stop)
	players.Wait()
	for i, k := range k {
		st := k.port.Stats()
		if lost := st.Dropped["late"] + st.Dropped["full"]; st.Received.Frames+lost != uint64(total/2) || lost > uint64(total/100) {
			t.Errorf("guest %d: %+v", i, st)
		}
		if st.Mapped.Bytes == 0 || st.CopiedBy["written"] == 0 || st.CopiedBy["private"] == 0 {
			t.Errorf("guest %d: %+v", i, st)
		}
		if st.Mapped.Bytes+st.Copied-st.CopiedBy["written"] != st.Received.Bytes {
			t.Errorf("guest %d: the counts do not add up: %+v", i, st)
		}
		t.Logf("guest %d: %d frames, %d MB, %d MB mapped, %d MB copied", i, st.Received.Frames, st.Received.Bytes>>20, st.Mapped.Bytes>>20, st.Copied>>20)
		if _, err := k.space.Collapse(0, int(k.space.Size()/page)); err != nil {
			t.Error(err)
		}
	}
	if n := arena.VMAs.Used(); n != vmas {
		t.Errorf("%d mappings counted, %d at first", n, vmas)
	}
	for i := range uint64(soakPages) {
		if n := a.Users(i); n != 0 {
			t.Errorf("page %d of the pool has %d users", i, n)
		}
		fill(k[0].want[:], uint32(i))
		if !bytes.Equal(a.Bytes()[i*page:(i+1)*page], k[0].want[:]) {
			t.Errorf("page %d of the pool has changed", i)
		}
	}
	for _, k := range k {
		k.unplug()
	}
	if n := mappings(t); n != base {
		t.Errorf("%d mappings, %d at first", n, base)
	}
}
