package scheduler

import (
	"math/big"
	"math/rand/v2"
	"strings"
	"testing"
)

func must[T any](t *testing.T) func(x T, err error) T {
	return func(x T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
}

// TestLedger is the example of OSDI'94, figure 3: alice and bob hold 1000 and 2000
// base tickets, and divide them by currencies of their own.
func TestLedger(t *testing.T) {
	l := NewLedger()
	ticket := must[*Ticket](t)
	alice, bob := l.NewCurrency("alice"), l.NewCurrency("bob")
	ticket(l.Base().Back(alice, 1000))
	ticket(l.Base().Back(bob, 2000))
	task1, task2, task3 := l.NewCurrency("task1"), l.NewCurrency("task2"), l.NewCurrency("task3")
	ticket(alice.Back(task1, 100))
	ticket(alice.Back(task2, 200))
	ticket(bob.Back(task3, 100))
	var threads []*Holder
	for _, x := range []struct {
		in     *Currency
		amount int64
		active bool
	}{{task1, 100, false}, {task2, 200, true}, {task2, 300, true}, {task3, 100, true}} {
		h := l.NewHolder(x.in.Name())
		ticket(x.in.Issue(h, x.amount))
		h.Activate(x.active)
		threads = append(threads, h)
	}
	values := func(want ...string) {
		t.Helper()
		for i, w := range want {
			if got := threads[i].Value().RatString(); got != w {
				t.Errorf("thread %d is worth %s, want %s", i, got, w)
			}
		}
	}
	// task1 has nothing active, so task2 has all of alice's; were it active it
	// would have a third.
	values("1000/3", "400", "600", "2000")
	threads[0].Activate(true)
	values("1000/3", "800/3", "400", "2000")
	threads[1].Activate(false)
	values("1000/3", "800/3", "2000/3", "2000")
	threads[2].Activate(false)
	values("1000", "2000/3", "2000/3", "2000")
}

// TestInsulation: what is issued in one currency moves nothing in another.
func TestInsulation(t *testing.T) {
	l := NewLedger()
	ticket := must[*Ticket](t)
	a, b := l.NewCurrency("a"), l.NewCurrency("b")
	ticket(l.Base().Back(a, 100))
	ticket(l.Base().Back(b, 100))
	hold := func(c *Currency, n int64) (*Holder, *Ticket) {
		h := l.NewHolder(c.Name())
		x := ticket(c.Issue(h, n))
		h.Activate(true)
		return h, x
	}
	a1, _ := hold(a, 100)
	a2, inflated := hold(a, 100)
	b1, _ := hold(b, 100)
	b2, _ := hold(b, 300)
	if err := inflated.Set(1000); err != nil {
		t.Fatal(err)
	}
	hold(a, 900)
	for _, x := range []struct {
		h    *Holder
		want string
	}{{a1, "5"}, {a2, "50"}, {b1, "25"}, {b2, "75"}} {
		if got := x.h.Value().RatString(); got != x.want {
			t.Errorf("%s: worth %s, want %s", x.h.Name(), got, x.want)
		}
	}
}

// TestLend: a client that waits for a server lends it its tickets.
func TestLend(t *testing.T) {
	l := NewLedger()
	c := l.NewCurrency("guests")
	must[*Ticket](t)(l.Base().Back(c, 8))
	client, server, other := l.NewHolder("client"), l.NewHolder("server"), l.NewHolder("other")
	lent := must[*Ticket](t)(c.Issue(client, 3))
	must[*Ticket](t)(c.Issue(server, 1))
	must[*Ticket](t)(c.Issue(other, 4))
	for _, h := range []*Holder{client, server, other} {
		h.Activate(true)
	}
	if err := lent.Lend(server); err != nil {
		t.Fatal(err)
	}
	client.Activate(false)
	if got := server.Weight(); got != 4*One {
		t.Errorf("the server is worth %d, want 4 tickets", got)
	}
	if got := client.Weight(); got != 0 {
		t.Errorf("the client is worth %d with its ticket lent", got)
	}
	client.Activate(true)
	if err := lent.Lend(client); err != nil {
		t.Fatal(err)
	}
	if a, b := client.Weight(), server.Weight(); a != 3*One || b != One {
		t.Errorf("afterwards they are worth %d and %d, want 3 and 1 tickets", a, b)
	}
}

func TestLedgerRefuses(t *testing.T) {
	l := NewLedger()
	a, b, c := l.NewCurrency("a"), l.NewCurrency("b"), l.NewCurrency("c")
	ticket := must[*Ticket](t)
	backing := ticket(l.Base().Back(a, 1))
	ticket(a.Back(b, 1))
	ticket(b.Back(c, 1))
	h := l.NewHolder("h")
	held := ticket(c.Issue(h, 1))
	stranger := NewLedger().NewHolder("stranger")
	fails := func(what, want string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
	second := func(_ *Ticket, err error) error { return err }
	fails("a cycle", "currency a cannot be backed by c", second(c.Back(a, 1)))
	fails("itself", "cycle", second(a.Back(a, 1)))
	fails("the base", "backed by nothing", second(a.Back(l.Base(), 1)))
	fails("zero", "h: 0 tickets would never be served", second(a.Issue(h, 0)))
	fails("negative", "currency c: -1 tickets", second(a.Back(c, -1)))
	fails("huge", "at most 1048576", held.Set(MaxTickets+1))
	fails("another ledger", "another ledger", second(a.Issue(stranger, 1)))
	fails("lent to another ledger", "another ledger", held.Lend(stranger))
	fails("backing lent", "cannot be lent", backing.Lend(h))
	fails("closed in use", "1 of its tickets are held", c.Close())
	held.Destroy()
	for _, x := range []*Currency{c, b, a} {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	}
	if l.Base().issued != 0 || l.Base().active != 0 {
		t.Errorf("the base currency is left with %d tickets, %d active", l.Base().issued, l.Base().active)
	}
}

// TestLedgerStorm does random things to a graph of currencies: what all active
// holders are worth is what is active in the base currency, always, and weights
// are their values rounded down.
func TestLedgerStorm(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	l := NewLedger()
	cs := []*Currency{l.Base()}
	for range 8 {
		c := l.NewCurrency("c")
		for range 1 + r.IntN(2) {
			must[*Ticket](t)(cs[r.IntN(len(cs))].Back(c, 1+r.Int64N(1000)))
		}
		cs = append(cs, c)
	}
	var hs []*Holder
	for range 20 {
		hs = append(hs, l.NewHolder("h"))
	}
	var tickets []*Ticket
	for step := range 5000 {
		h := hs[r.IntN(len(hs))]
		switch r.IntN(6) {
		case 0:
			tickets = append(tickets, must[*Ticket](t)(cs[r.IntN(len(cs))].Issue(h, 1+r.Int64N(1000))))
		case 1, 2:
			h.Activate(r.IntN(2) == 0)
		default:
			if len(tickets) == 0 {
				continue
			}
			i := r.IntN(len(tickets))
			switch r.IntN(3) {
			case 0:
				if err := tickets[i].Set(1 + r.Int64N(1000)); err != nil {
					t.Fatal(err)
				}
			case 1:
				if err := tickets[i].Lend(h); err != nil {
					t.Fatal(err)
				}
			case 2:
				tickets[i].Destroy()
				tickets[i] = tickets[len(tickets)-1]
				tickets = tickets[:len(tickets)-1]
			}
		}
		if step%10 != 0 {
			continue
		}
		sum := new(big.Rat)
		for _, h := range hs {
			v := h.Value()
			if h.Active() {
				sum.Add(sum, v)
			}
			exact := new(big.Int).Mul(v.Num(), big.NewInt(One))
			exact.Quo(exact, v.Denom())
			if d := exact.Int64() - int64(h.Weight()); d < 0 || d > int64(len(cs)*len(h.held)*4) {
				t.Fatalf("step %d: a weight is %d, its value %v", step, h.Weight(), v)
			}
		}
		if want := new(big.Rat).SetInt64(int64(l.Base().active)); sum.Cmp(want) != 0 {
			t.Fatalf("step %d: all are worth %v, %v is active", step, sum, want)
		}
	}
}

func TestWeightDoesNotAllocate(t *testing.T) {
	l := NewLedger()
	c := l.NewCurrency("c")
	must[*Ticket](t)(l.Base().Back(c, 10))
	h := l.NewHolder("h")
	x := must[*Ticket](t)(c.Issue(h, 10))
	if n := testing.AllocsPerRun(100, func() {
		h.Activate(!h.Active())
		_ = x.Set(x.Amount()%100 + 1)
		_ = h.Weight()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
