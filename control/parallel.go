package control

// TLP is thread-level parallelism: how many vCPUs ran on average while any did,
// Σ i·cᵢ / (1 − c₀), where cᵢ is the part of time in which exactly i ran (Flautner
// et al., "Thread-level Parallelism and Interactive Performance of Desktop
// Applications", ASPLOS 2000). parallel[i] is that time, in any unit. It is 0 where
// none ever ran.
func TLP(parallel []uint64) float64 {
	var busy, sum float64
	for i, t := range parallel {
		if i > 0 {
			busy += float64(t)
			sum += float64(i) * float64(t)
		}
	}
	if busy == 0 {
		return 0
	}
	return sum / busy
}
