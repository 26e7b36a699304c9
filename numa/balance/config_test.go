package balance

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestPolicyWords(t *testing.T) {
	for _, p := range []Policy{Off, Migrate, Replicate, Full} {
		word, err := p.MarshalText()
		if err != nil || string(word) != p.String() {
			t.Errorf("%v: %s, %v", p, word, err)
		}
		var q Policy
		if err := q.UnmarshalText(word); err != nil || q != p {
			t.Errorf("%s is %v, %v", word, q, err)
		}
	}
	if _, err := ParsePolicy("on"); err == nil || !strings.Contains(err.Error(), "off, migrate, replicate, full") {
		t.Errorf("on: %v", err)
	}
	if _, err := Policy(9).MarshalText(); err == nil {
		t.Error("policy 9 has a word")
	}
}

func TestConfigJSON(t *testing.T) {
	b, err := json.Marshal(Default())
	if err != nil {
		t.Fatal(err)
	}
	var c Config
	if err := json.Unmarshal(b, &c); err != nil || c != Default() {
		t.Errorf("%s: %+v, %v", b, c, err)
	}
	if !strings.Contains(string(b), `"policy":"full"`) {
		t.Errorf("%s", b)
	}
}

func TestConfigValidate(t *testing.T) {
	if err := (Config{}).Validate(); err != nil {
		t.Errorf("thresholds that are zero: %v", err)
	}
	bad := Config{Policy: 7, Tick: time.Millisecond, Window: time.Hour, MaxWindow: time.Second, GuardWindow: -1, Hold: time.Hour, MaxHold: time.Second,
		MaxMoves: -1, Decay: -1, FaultRate: -1, SampleShare: 2, MoveShare: -1, MoveRate: -1, MinFree: 1}
	err := bad.Validate()
	if err == nil {
		t.Fatal("all wrong, no error")
	}
	for _, word := range []string{"policy", "tick", "window of", "guard window", "hold", "moves", "decay", "fault rate", "sample share", "move share", "move rate", "free memory"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("nothing of %s in %v", word, err)
		}
	}
	// A window that is longer than the longest one by default is a choice, too.
	if err := (Config{Window: 10 * time.Second, Hold: time.Minute}).Validate(); err != nil {
		t.Error(err)
	}
}
