package main

import (
	"regexp"
	"strings"
)

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./-]+$`)

// quote makes one shell command line of words.
func quote(words []string) string {
	q := make([]string, len(words))
	for i, w := range words {
		q[i] = w
		if !plainWord.MatchString(w) {
			q[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(q, " ")
}
