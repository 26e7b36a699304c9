// Package metrics tells Prometheus of a monitor's guests. Nothing is counted for
// it: a scrape reads the totals that a [control.Source] has.
//
// Names follow https://prometheus.io/docs/practices/naming: base units, and _total
// for what only grows until the guest restarts.
//
// Not done here: sockets and addresses (cmd/disco).
package metrics

import (
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"disco/control"
)

// maxScrapes bounds how many are answered at once.
const maxScrapes = 4

// Handler answers scrapes about s, and about this process.
func Handler(s control.Source) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(collector{s}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes})
}

type collector struct{ control.Source }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("disco_"+name, help, labels, nil)
}

var (
	monitorInfo = desc("monitor_info", "The monitor; its value is 1.", "program", "scheduler")
	monitorCPUs = desc("monitor_cpus", "CPUs of the host that guests run on.")

	running  = desc("guest_running", "1 while the guest runs, and 0 before, between and after.", "guest")
	memory   = desc("guest_memory_bytes", "Memory that the guest was given.", "guest")
	resident = desc("guest_resident_bytes", "Memory of the guest's own that exists.", "guest")
	shared   = desc("guest_shared_bytes", "Memory that the guest has in common with the cache or with others.", "guest")
	local    = desc("guest_local_ratio", "Part of what the guest uses that is local to its users, by samples.", "guest")
	tickets  = desc("guest_tickets", "Tickets that the guest has.", "guest", "group")
	asked    = desc("guest_asked_cpus", "CPUs that the tickets entitle to while all guests compete.", "guest")
	limit    = desc("guest_limit_cpus", "The most CPUs that the guest may use.", "guest")
	workers  = desc("guest_workers_cpu_seconds_total", "CPU time of the monitor's workers that the guest pays for.", "guest")
	parallel = desc("guest_parallel_seconds_total", "Time in which exactly so many vCPUs ran at once.", "guest", "vcpus")
	exits    = desc("guest_exits_total", "Exits to the monitor.", "guest", "reason")
	kvmExits = desc("guest_kvm_exits_total", "Exits of all kinds, by KVM's names; exits is all of them.", "guest", "kind")
	relayed  = desc("guest_relayed_interrupts_total", "Interrupts between vCPUs of different nodes.", "guest")
	cpu      = desc("vcpu_cpu_seconds_total", "CPU time that the vCPU got.", "guest", "vcpu")
	waiting  = desc("vcpu_waiting_seconds_total", "Time in which the vCPU wanted to run and did not.", "guest", "vcpu")
	steal    = desc("vcpu_steal_seconds_total", "Steal time that the guest sees.", "guest", "vcpu")
	node     = desc("vcpu_node", "NUMA node that the vCPU is on.", "guest", "vcpu")

	portSent      = desc("port_sent_bytes_total", "Bytes that the guest sent on the segment.", "segment", "port")
	portSentN     = desc("port_sent_frames_total", "Frames that the guest sent on the segment.", "segment", "port")
	portReceived  = desc("port_received_bytes_total", "Bytes that the guest was given.", "segment", "port")
	portReceivedN = desc("port_received_frames_total", "Frames that the guest was given.", "segment", "port")
	portEligible  = desc("port_eligible_bytes_total", "Bytes of these that could have been mapped as far as the sender was concerned.", "segment", "port")
	portMapped    = desc("port_mapped_bytes_total", "Bytes of these that were mapped.", "segment", "port")
	portCopied    = desc("port_copied_bytes_total", "Bytes that the monitor copied to the guest, by the reason why.", "segment", "port", "reason")
	portDropped   = desc("port_dropped_frames_total", "Frames from or for the guest that went nowhere.", "segment", "port", "reason")
)

// Describe makes collector a prometheus.Collector.
func (c collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		monitorInfo, monitorCPUs, running, memory, resident, shared, local, tickets, asked, limit, workers,
		parallel, exits, kvmExits, relayed, cpu, waiting, steal, node,
		portSent, portSentN, portReceived, portReceivedN, portEligible, portMapped, portCopied, portDropped,
	} {
		to <- d
	}
}

// Collect makes collector a prometheus.Collector.
func (c collector) Collect(to chan<- prometheus.Metric) {
	put := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		m, err := prometheus.NewConstMetric(d, kind, v, labels...)
		if err != nil {
			m = prometheus.NewInvalidMetric(d, err) // a label that is no UTF-8
		}
		to <- m
	}
	const gauge, counter = prometheus.GaugeValue, prometheus.CounterValue
	m := c.Monitor()
	put(monitorInfo, gauge, 1, m.Program, m.Scheduler)
	put(monitorCPUs, gauge, float64(m.CPUs))
	named := map[string]bool{}
	for _, g := range c.Guests() {
		if named[g.Name] {
			continue // a scrape with a series twice is refused whole
		}
		named[g.Name] = true
		up := 0.
		if g.State == control.Running {
			up = 1
		}
		put(running, gauge, up, g.Name)
		put(memory, gauge, float64(g.Memory), g.Name)
		put(resident, gauge, float64(g.Resident), g.Name)
		put(shared, gauge, float64(g.Shared), g.Name)
		if g.LocalShare != nil {
			put(local, gauge, *g.LocalShare, g.Name)
		}
		if g.Tickets > 0 {
			put(tickets, gauge, float64(g.Tickets), g.Name, g.Group)
			put(asked, gauge, g.Asked, g.Name)
			put(workers, counter, seconds(g.Workers), g.Name)
		}
		if g.Limit > 0 {
			put(limit, gauge, g.Limit, g.Name)
		}
		for i, t := range g.Parallel {
			put(parallel, counter, seconds(t), g.Name, strconv.Itoa(i))
		}
		byReason, byKind := map[string]uint64{}, map[string]uint64{}
		var relays uint64
		for _, v := range g.VCPUs {
			id := strconv.Itoa(v.ID)
			put(cpu, counter, seconds(v.CPU), g.Name, id)
			put(waiting, counter, seconds(v.Waited), g.Name, id)
			put(steal, counter, seconds(v.Stolen), g.Name, id)
			put(node, gauge, float64(v.Node), g.Name, id)
			relays += v.Relayed
			for reason, n := range v.Exits {
				byReason[reason] += n
			}
			for kind, n := range v.KVM {
				byKind[kind] += n
			}
		}
		put(relayed, counter, float64(relays), g.Name)
		for reason, n := range byReason {
			put(exits, counter, float64(n), g.Name, reason)
		}
		for kind, n := range byKind {
			put(kvmExits, counter, float64(n), g.Name, kind)
		}
	}
	for _, s := range c.Segments() {
		named := map[string]bool{}
		for _, p := range s.Ports {
			if named[p.Name] {
				continue
			}
			named[p.Name] = true
			for d, n := range map[*prometheus.Desc]uint64{
				portSent: p.Sent.Bytes, portSentN: p.Sent.Frames, portReceived: p.Received.Bytes, portReceivedN: p.Received.Frames,
				portEligible: p.Eligible.Bytes, portMapped: p.Mapped.Bytes,
			} {
				put(d, counter, float64(n), s.Name, p.Name)
			}
			for reason, n := range p.CopiedBy {
				put(portCopied, counter, float64(n), s.Name, p.Name, reason)
			}
			for reason, n := range p.Dropped {
				put(portDropped, counter, float64(n), s.Name, p.Name, reason)
			}
		}
	}
}

func seconds(ns uint64) float64 { return float64(ns) / 1e9 }
