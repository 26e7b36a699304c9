// Command disco boots Linux guests on KVM, and has what it takes to do so on a
// machine whose KVM cannot: a lab, which emulates one that can.
//
// Here are the command line, the terminal, signals and exit codes: a command
// makes a vmm.Config of its flags and runs it, here or in the lab. What the
// guest sees is package vmm's, and nothing here knows of KVM or pages.
package main

import (
	"os"

	"disco/integration/lab"
)

func main() {
	lab.Init() // returns at once, except in the first process of a lab
	os.Exit(execute(here(), os.Args[1:]))
}
