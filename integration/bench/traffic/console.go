package traffic

import "disco/integration/bench/said"

// event is a line that a guest said, whole under the key "text".
type event = said.Words

// console reads what a guest prints.
type console struct {
	*said.Console
	events chan event // what it says that is for us
}

// manyEvents is more than a guest of ours says.
const manyEvents = 4096

func newConsole() *console {
	c := &console{events: make(chan event, manyEvents)}
	c.Console = said.New(func(text string, e said.Words) {
		e["text"] = text
		select {
		case c.events <- e:
		default: // a guest that says so much is not ours
		}
	})
	return c
}
