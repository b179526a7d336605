// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"

	"github.com/crd-ipam/crd-ipam/pkg/reclaim"
)

// The workqueues' names.
const (
	queuePools       = "pools"
	queueAllocations = "allocations"

	queueReservations = "reservations"
	queueClaims       = "ipamclaims"
	queueNodes        = "nodes"
)

// metricsPrefix begins the name of every metric of this project.
const metricsPrefix = "crd_ipam_"

// What is known from the caches is counted when it is asked for (Collect), and
// costs nothing in between.
var (
	poolLabels = []string{"kind", "pool"}

	descLeader   = desc("leader", "1 if this replica leads, else 0.")
	descReady    = desc("pool_ready", "1 if the pool's Ready condition is true, else 0, with its reason.", append(poolLabels, "reason")...)
	descCapacity = desc("pool_capacity", "Usable addresses in the blocks of all nodes, or in the whole subnet if any node may use it.", poolLabels...)
	descUsed     = desc("pool_used", "Addresses of the pool that are held.", poolLabels...)
	descTopNode  = desc("pool_top_node_used", "Addresses that a node holds, for the five nodes that hold most, if any node may use the whole subnet.", append(poolLabels, "node")...)
	descCooling  = desc("pool_cooling", "Addresses of the pool that rest after their release.", poolLabels...)
	descBlocks   = desc("pool_blocks", "Nodes that have a block.", poolLabels...)
	descFull     = desc("pool_blocks_full", "Nodes without a free address in their block.", poolLabels...)
	descUnserved = desc("pool_nodes_without_block", "Nodes without a block, for lack of room in the pool.", poolLabels...)
	descOverlaps = desc("pool_overlaps", "Other pools that have addresses in common with this one.", poolLabels...)
	descOutside  = desc("pool_addresses_outside_block", "Addresses that nodes hold outside of their blocks and that were not requested.", poolLabels...)
	descForeign  = desc("pool_foreign_addresses", "Addresses that are held in the pool's name and lie outside of its subnet.", poolLabels...)
	descOrphans  = desc("allocations_without_pool", "Allocations whose domain no pool has.")
	descHeld     = desc("held", "Allocations that may be leaked and are not reclaimed, by reason.", "reason")
	descLeaks    = desc("leak_candidates", "Leak candidates, which are reclaimed when their grace is over, by reason.", "reason")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(metricsPrefix+name, help, labels, nil)
}

// metrics are counted as things happen.
type metrics struct {
	all       []prometheus.Collector
	reclaimed *prometheus.CounterVec
	ended     *prometheus.CounterVec
	spared    prometheus.Counter
	errors    *prometheus.CounterVec
	failed    *prometheus.CounterVec

	// Of workqueues, by name.
	depth, unfinished, longest *prometheus.GaugeVec
	adds, retries              *prometheus.CounterVec
	latency, duration          *prometheus.HistogramVec
}

func newMetrics() *metrics {
	m := &metrics{}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return add(m, prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: metricsPrefix + name, Help: help}, []string{"name"}))
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return add(m, prometheus.NewCounterVec(prometheus.CounterOpts{Name: metricsPrefix + name, Help: help}, labels))
	}
	histogram := func(name, help string) *prometheus.HistogramVec {
		opts := prometheus.HistogramOpts{Name: metricsPrefix + name, Help: help, Buckets: prometheus.ExponentialBuckets(0.001, 4, 9)}
		return add(m, prometheus.NewHistogramVec(opts, []string{"name"}))
	}
	m.reclaimed = counter("reclaimed_total", "Reclaimed allocations, by reason.", "reason")
	m.ended = counter("released_deleted_total", "Released allocations that were deleted, since nothing keeps them any more, by reason.", "reason")
	m.spared = counter("leak_candidates_spared_total", "Leak candidates that were not reclaimed, since the API server said otherwise than the cache.").WithLabelValues()
	m.errors = counter("errors_total", "Failed examinations and reconciliations, which are retried, by workqueue.", "queue")
	m.failed = counter("failed_adds_total", "ADDs of pods that failed, at least: the kubelets' events of them, by pool and reason.", append(poolLabels, "reason")...)

	m.depth = gauge("workqueue_depth", "Items that are waiting.")
	m.adds = counter("workqueue_adds_total", "Items that were added.", "name")
	m.latency = histogram("workqueue_queue_duration_seconds", "How long items waited.")
	m.duration = histogram("workqueue_work_duration_seconds", "How long items took.")
	m.unfinished = gauge("workqueue_unfinished_work_seconds", "How long the items in work have taken so far, summed up.")
	m.longest = gauge("workqueue_longest_running_processor_seconds", "How long the longest item in work has taken so far.")
	m.retries = counter("workqueue_retries_total", "Items that were added again after a failure.", "name")

	for _, reason := range reclaim.DeleteReasons {
		m.ended.WithLabelValues(reason)
	}
	for _, reason := range reclaim.CandidateReasons {
		m.reclaimed.WithLabelValues(reason)
	}
	for _, f := range failureReasons {
		m.failed.WithLabelValues("", "", f.reason)
	}
	return m
}

// failed counts the work of a queue that failed.
type failed struct {
	errors  prometheus.Counter
	retries prometheus.Counter // of these, and where only a cache was behind
}

func (m *metrics) of(queue string) failed {
	return failed{m.errors.WithLabelValues(queue), m.retries.WithLabelValues(queue)}
}

func add[T prometheus.Collector](m *metrics, c T) T {
	m.all = append(m.all, c)
	return c
}

// The methods of workqueue.MetricsProvider.

func (m *metrics) NewDepthMetric(name string) workqueue.GaugeMetric {
	return m.depth.WithLabelValues(name)
}

func (m *metrics) NewAddsMetric(name string) workqueue.CounterMetric {
	return m.adds.WithLabelValues(name)
}

func (m *metrics) NewLatencyMetric(name string) workqueue.HistogramMetric {
	return m.latency.WithLabelValues(name)
}

func (m *metrics) NewWorkDurationMetric(name string) workqueue.HistogramMetric {
	return m.duration.WithLabelValues(name)
}

func (m *metrics) NewUnfinishedWorkSecondsMetric(name string) workqueue.SettableGaugeMetric {
	return m.unfinished.WithLabelValues(name)
}

func (m *metrics) NewLongestRunningProcessorSecondsMetric(name string) workqueue.SettableGaugeMetric {
	return m.longest.WithLabelValues(name)
}

// NewRetriesMetric counts nothing: a queue takes every delay for a retry, and most are looks
// that are not due yet. work counts the retries.
func (m *metrics) NewRetriesMetric(string) workqueue.CounterMetric { return ignored{} }

// ignored is a counter that does not count.
type ignored struct{}

func (ignored) Inc() {}

// counts are the metrics that are counted from the caches when they are asked for.
type counts struct {
	state        *state
	caches       *caches
	memories     *memories
	observations *observations
}

// Describe is part of prometheus.Collector.
func (c *counts) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descLeader, descReady, descCapacity, descUsed, descCooling, descTopNode, descBlocks, descFull, descUnserved, descOverlaps, descOutside, descForeign, descOrphans, descHeld, descLeaks,
	} {
		ch <- d
	}
}

// Collect counts what the caches hold. A replica that does not lead has none, and says
// only that.
func (c *counts) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(value), labels...)
	}
	gauge(descLeader, oneIf(c.state.leading.Load()))
	if !c.state.synced.Load() {
		return
	}
	var orphans int64
	domains := c.caches.domains()
	for _, domain := range c.caches.allocations.ListIndexFuncValues(byDomain) {
		if !domains[domain] {
			orphans += int64(len(c.caches.allocations.keysBy(byDomain, domain)))
		}
	}
	gauge(descOrphans, orphans)
	for ref, known := range c.memories.copy() {
		sum, kind, pool := known.summary, string(ref.Kind), ref.Name
		gauge(descReady, oneIf(sum.ready.Status == metav1.ConditionTrue), kind, pool, sum.ready.Reason)
		var held, resting int64
		if obj := c.caches.pool(ref); obj != nil {
			for h := range c.caches.heldIn(obj) {
				if h.Rests {
					resting++
				} else {
					held++
				}
			}
		}
		gauge(descUsed, held, kind, pool)
		gauge(descCooling, resting, kind, pool)
		for _, n := range sum.topNodes {
			gauge(descTopNode, n.Used, kind, pool, n.NodeName)
		}
		gauge(descUnserved, int64(sum.unserved), kind, pool)
		gauge(descOverlaps, int64(sum.overlaps), kind, pool)
		gauge(descOutside, int64(sum.outside), kind, pool)
		gauge(descForeign, int64(sum.foreign), kind, pool)
		if sum.blocks != nil {
			gauge(descCapacity, sum.blocks.capacity, kind, pool)
			gauge(descBlocks, int64(sum.blocks.nodes), kind, pool)
			gauge(descFull, int64(sum.blocks.full), kind, pool)
		}
	}
	found := c.observations.count()
	for _, reason := range reclaim.HoldReasons {
		gauge(descHeld, int64(found[finding{reclaim.Hold, reason}]), reason)
	}
	for _, reason := range reclaim.CandidateReasons {
		gauge(descLeaks, int64(found[finding{reclaim.Candidate, reason}]), reason)
	}
}

func oneIf(is bool) int64 {
	if is {
		return 1
	}
	return 0
}
