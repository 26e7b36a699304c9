package memory

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"disco/numa"
)

const childEnv = "DISCO_TEST_TO_BE_KILLED"

// TestHostKilledInTheMiddle kills a process that copies and moves pages under
// guests that store to them: it is gone at once, whatever waits for a fault or a
// move, and its memory with it.
func TestHostKilledInTheMiddle(t *testing.T) {
	for i := range 5 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"=1")
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "acting\n" {
			t.Errorf("the child says %q, %v", line, err)
		}
		time.Sleep(time.Duration(10+20*i) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Fatal("a killed process does not end")
		}
		if s := cmd.ProcessState.Sys().(syscall.WaitStatus); s.Signal() != syscall.SIGKILL {
			t.Errorf("the child ended with %v", cmd.ProcessState)
		}
	}
}

// beKilled is the child's main.
func beKilled() {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "child:", err)
			os.Exit(1)
		}
	}
	real, err := numa.Read(os.DirFS("/"))
	fail(err)
	topology, err := real.Fake(2)
	fail(err)
	s, err := Open(Options{Name: "killed", RAM: []Range{{0, 4 * mib}}, Topology: topology, Nodes: topology.Nodes(), Tracked: true})
	fail(err)
	fail(s.WriteAt(make([]byte, 4*mib), 0))
	for k := range 2 {
		go func() {
			for i := 0; ; i++ {
				fail(guestStore(s.View(k), []byte("x"), GPA(i%1024)*page))
			}
		}()
	}
	for k := range 2 {
		go func() {
			for {
				_, err := s.Replicate(0, 1024, numa.Node(k))
				fail(err)
				_, err = s.Migrate(0, 1024, numa.Node(k))
				fail(err)
			}
		}()
	}
	fmt.Println("acting")
	select {}
}
