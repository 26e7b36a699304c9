package vcpu

// RelaySize is how much guest-physical address space a wide Set takes, and
// RelaySlot the first of the two memory slots of each VM that are its own.
const (
	RelaySize = 1 << 20
	RelaySlot = 500
)

type relay struct{}

func (v *VCPU) runOneOfMany(b *incarnation) End    { return v.loop(b) }
func (v *VCPU) interlude(b *incarnation) (ok bool) { return true }
func (v *VCPU) born(b *incarnation) error          { return nil }
