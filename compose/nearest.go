package compose

// nearest is the known word that a misspelt one most likely means; "" if it is
// not near any.
func nearest(word string, known []string) string {
	const most = 64 // characters that are looked at
	if len(word) > most {
		return ""
	}
	best, least := "", max(1, len(word)/3)+1
	for _, k := range known {
		if d := distance(word, k); d < least {
			best, least = k, d
		}
	}
	return best
}

// distance is how many bytes to put in, take out or change to make b of a
// (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0] // of the row above, one to the left
		row[0] = i + 1
		for j := range len(b) {
			d := before
			if a[i] != b[j] {
				d++
			}
			before = row[j+1]
			row[j+1] = min(d, before+1, row[j]+1)
		}
	}
	return row[len(b)]
}
