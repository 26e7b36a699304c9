package folder

import (
	"container/list"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// key identifies a file of the host: where the time of its birth is known, also
// from one that gets the same number later.
type key struct {
	dev, ino uint64
	born     int64 // ns, or 0
}

// identify says which file fd is, and what kind (S_IFMT).
func identify(fd int) (k key, kind uint32, err error) {
	var st unix.Statx_t
	err = unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE|unix.STATX_INO|unix.STATX_BTIME, &st)
	if err != nil {
		return key{}, 0, err
	}
	k = key{dev: unix.Mkdev(st.Dev_major, st.Dev_minor), ino: st.Ino}
	if st.Mask&unix.STATX_BTIME != 0 {
		k.born = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	return k, uint32(st.Mode) & unix.S_IFMT, nil
}

// rootID is the node that a guest has from the beginning (FUSE_ROOT_ID).
const rootID = 1

// node is a file that a guest knows of.
type node struct {
	id  uint64
	key key

	// Under nodes.mu.
	lookups  uint64 // that the guest has not forgotten
	children int    // nodes whose parent this is
	users    int    // of fd, at this moment
	fd       int    // O_PATH, or -1
	held     bool   // fd stays open: the file's name is gone
	elem     *list.Element
	parent   *node // with name, where it was last found; nil for the root
	name     string
}

// place is a name in a directory.
type place struct {
	parent *node
	name   string
}

// nodes are what a guest knows of. mu is held for the table alone, never while the
// kernel is asked for a file.
type nodes struct {
	mu      sync.Mutex
	root    *node
	byID    map[uint64]*node
	byKey   map[key]*node
	byPlace map[place]*node
	next    uint64
	most    int
	keep    int        // descriptors in cached
	held    int        // nodes that are held
	cached  *list.List // of *node with a descriptor, the one used last in front
}

func (t *nodes) open(fd int, k key, most, keep int) {
	t.root = &node{id: rootID, key: k, fd: fd, held: true}
	t.most, t.keep, t.next = most, keep, rootID+1
	t.empty()
}

func (t *nodes) empty() {
	t.byID = map[uint64]*node{rootID: t.root}
	t.byKey = map[key]*node{t.root.key: t.root}
	t.byPlace = map[place]*node{}
	t.cached = list.New()
	t.held = 0
	t.root.lookups, t.root.children = 1, 0
}

// reset forgets all but the root. Ids are not used again.
func (t *nodes) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range t.byKey {
		if n != t.root && n.fd >= 0 {
			_ = unix.Close(n.fd)
		}
	}
	t.empty()
}

// checkName refuses what is not the name of something in a directory.
func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == ".." || strings.IndexByte(name, '/') >= 0 || strings.IndexByte(name, 0) >= 0:
		return unix.EINVAL
	case len(name) > unix.NAME_MAX:
		return unix.ENAMETOOLONG
	}
	return nil
}

// use gives the O_PATH descriptor of the node id, until done is called with the
// node. ESTALE is for a file that is not where it was.
func (t *nodes) use(id uint64) (*node, int, error) {
	t.mu.Lock()
	n := t.byID[id]
	if n == nil {
		t.mu.Unlock()
		return nil, -1, unix.ESTALE
	}
	return t.useLocked(n)
}

// useLocked begins with mu held and ends without.
func (t *nodes) useLocked(n *node) (*node, int, error) {
	n.users++ // it stays in the table's reach from now on
	if n.fd >= 0 {
		if n.elem != nil {
			t.cached.MoveToFront(n.elem)
		}
		t.mu.Unlock()
		return n, n.fd, nil
	}
	parent, name := n.parent, n.name
	if parent == nil {
		n.users--
		t.mu.Unlock()
		return nil, -1, unix.ESTALE
	}
	fd, err := t.find(n, parent, name)
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case n.fd >= 0: // by somebody else, meanwhile
		if err == nil {
			_ = unix.Close(fd)
		}
	case err != nil:
		t.leave(n)
		return nil, -1, err
	default:
		t.keepOpen(n, fd)
	}
	return n, n.fd, nil
}

// find opens a node where it was last. It begins with mu held and ends without.
func (t *nodes) find(n, parent *node, name string) (int, error) {
	_, dir, err := t.useLocked(parent)
	if err != nil {
		return -1, err
	}
	defer t.done(parent)
	fd, err := openBeneath(dir, name, unix.O_PATH, 0)
	if err != nil {
		return -1, unix.ESTALE
	}
	if k, _, err := identify(fd); err != nil || k != n.key {
		_ = unix.Close(fd)
		return -1, unix.ESTALE
	}
	return fd, nil
}

// done ends what use began.
func (t *nodes) done(n *node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.leave(n)
}

// leave is done with mu held.
func (t *nodes) leave(n *node) {
	n.users--
	t.release(n)
	t.trim()
}

// keepOpen gives a node its descriptor, and closes others that were not used for
// longest.
func (t *nodes) keepOpen(n *node, fd int) {
	n.fd = fd
	n.elem = t.cached.PushFront(n)
	t.trim()
}

func (t *nodes) trim() {
	for e := t.cached.Back(); e != nil && t.cached.Len() > t.keep; {
		n, before := e.Value.(*node), e.Prev()
		if n.users == 0 {
			t.drop(n)
		}
		e = before
	}
}

// drop closes a node's descriptor.
func (t *nodes) drop(n *node) {
	_ = unix.Close(n.fd)
	n.fd = -1
	if n.elem != nil {
		t.cached.Remove(n.elem)
		n.elem = nil
	}
	if n.held {
		n.held = false
		t.held--
	}
}

// add makes the file behind fd, found as name in parent, known to the guest once
// more. It takes fd, error or not.
func (t *nodes) add(parent *node, name string, fd int, k key) (*node, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byKey[k]
	if n == nil {
		if len(t.byKey) >= t.most {
			_ = unix.Close(fd)
			return nil, unix.ENFILE
		}
		n = &node{id: t.next, key: k, fd: -1}
		t.next++
		t.byID[n.id], t.byKey[k] = n, n
	} else if n.lookups == 0 && n != t.root {
		// Known as somebody's parent only, under an id that the guest gave up.
		n.id = t.next
		t.next++
		t.byID[n.id] = n
	}
	n.lookups++
	if n.fd >= 0 {
		_ = unix.Close(fd)
	} else {
		t.keepOpen(n, fd)
	}
	if n != t.root && !above(n, parent) {
		t.put(n, parent, name)
	}
	return n, nil
}

// above says whether n is parent or an ancestor of it: something was renamed by
// the host meanwhile, or mounted.
func above(n, parent *node) bool {
	for p := parent; p != nil; p = p.parent {
		if p == n {
			return true
		}
	}
	return false
}

// put says where a node is. It is called with mu held.
func (t *nodes) put(n, parent *node, name string) {
	at := place{parent, name}
	if t.byPlace[at] == n {
		return
	}
	t.lift(n)
	if other := t.byPlace[at]; other != nil {
		t.lift(other)
		t.release(other)
	}
	n.parent, n.name = parent, name
	t.byPlace[at] = n
	parent.children++
}

// lift takes a node from its place; it has none then. The parent may go with it.
func (t *nodes) lift(n *node) {
	p := n.parent
	if p == nil {
		return
	}
	delete(t.byPlace, place{p, n.name})
	n.parent, n.name = nil, ""
	p.children--
	t.release(p)
}

// release forgets a node that nobody needs any more.
func (t *nodes) release(n *node) {
	for n != nil && n != t.root && n.lookups == 0 && n.children == 0 && n.users == 0 {
		if n.fd >= 0 {
			t.drop(n)
		}
		if t.byKey[n.key] == n {
			delete(t.byKey, n.key)
		}
		p := n.parent
		if p == nil {
			return
		}
		delete(t.byPlace, place{p, n.name})
		n.parent = nil
		p.children--
		n = p
	}
}

// forget takes back so many of a guest's lookups.
func (t *nodes) forget(id, count uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[id]
	if n == nil || n == t.root {
		return
	}
	n.lookups -= min(count, n.lookups)
	if n.lookups == 0 {
		delete(t.byID, id)
		t.release(n)
	}
}

// at is the node that was last found as name in parent, used; nil if there is none.
func (t *nodes) at(parent *node, name string) *node {
	t.mu.Lock()
	n := t.byPlace[place{parent, name}]
	if n == nil {
		t.mu.Unlock()
		return nil
	}
	n, _, err := t.useLocked(n)
	if err != nil {
		return nil
	}
	return n
}

// removed says that the place of n is gone, and holds the file by its descriptor
// if it may be needed: a file without a name cannot be found again. There are at
// most as many of these as descriptors in the cache, and what comes later is lost
// once it leaves that. It ends at's use.
func (t *nodes) removed(n *node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lift(n)
	t.hold(n)
	t.leave(n)
}

// hold keeps a node's descriptor if there is room, and says whether it is kept. It is
// called with mu held.
func (t *nodes) hold(n *node) bool {
	if n.fd >= 0 && !n.held && n.lookups > 0 && t.held < t.keep {
		n.held = true
		t.held++
		if n.elem != nil {
			t.cached.Remove(n.elem)
			n.elem = nil
		}
	}
	return n.held
}

// moved says that n is at another place now. It ends at's use.
func (t *nodes) moved(n, parent *node, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !above(n, parent) {
		t.put(n, parent, name)
	}
	t.leave(n)
}
