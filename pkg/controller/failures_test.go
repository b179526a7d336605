// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// How often an event has happened is counted once, however often it is seen.
func TestFailuresAreCountedOnce(t *testing.T) {
	m := newMetrics()
	known := v1alpha1.PoolReference{Kind: pool.Kinds()[0], Name: "p"}
	f := &failures{total: m.failed, exists: func(ref v1alpha1.PoolReference) bool { return ref == known }}
	full := func(name string) string {
		return fmt.Sprintf("Failed to create pod sandbox: ...: no free addresses in the pool %q, poolType %q: block is full", name, pool.Type(known.Kind))
	}
	event := func(uid string, count int32, message string) *corev1.Event {
		return &corev1.Event{ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid)}, Count: count, Message: message}
	}
	series := event("s", 0, full("p"))
	series.Series = &corev1.EventSeries{Count: 4}
	for _, step := range []struct {
		what string
		do   func() error
		want float64 // in the pool
		rest float64 // in no pool
	}{
		{"before the first list", func() error { return f.Replace([]any{event("old", 5, full("p"))}, "") }, 0, 0},
		{"again", func() error { return f.Update(event("old", 7, full("p"))) }, 2, 0},
		{"nothing new", func() error { return f.Update(event("old", 7, full("p"))) }, 2, 0},
		{"a new one", func() error { return f.Add(event("new", 1, full("p"))) }, 3, 0},
		{"without a count", func() error { return f.Add(event("none", 0, full("p"))) }, 4, 0},
		{"a series", func() error { return f.Add(series) }, 8, 0},
		{"a count that goes back", func() error { return f.Update(event("old", -3, full("p"))) }, 8, 0},
		{"a pool that nobody has", func() error { return f.Add(event("made up", 1, full("q"))) }, 8, 1},
		{"somebody else's", func() error { return f.Add(event("else", 1, "failed to find plugin \"macvlan\"")) }, 8, 1},
		{"of which ours is the last", func() error { return f.Update(event("else", 3, "(combined from similar events): "+full("p"))) }, 10, 1},
		{"a list after a gap", func() error {
			return f.Replace([]any{event("new", 4, full("p")), event("missed", 2, full("p"))}, "")
		}, 15, 1},
		{"one that is over", func() error { return f.Delete(event("new", 4, full("p"))) }, 15, 1},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if got, none := countedIn(t, m, known.Name), countedIn(t, m, ""); got != step.want || none != step.rest {
			t.Errorf("%s: %v in the pool and %v in none, want %v and %v", step.what, got, none, step.want, step.rest)
		}
	}
	if len(f.counted) != 1 {
		t.Errorf("it remembers %v", f.counted)
	}
}

// countedIn is how many failures were counted in a pool, whatever the reason.
func countedIn(t *testing.T, m *metrics, poolName string) (sum float64) {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(m.failed)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, series := range f.GetMetric() {
			for _, l := range series.GetLabel() {
				if l.GetName() == "pool" && l.GetValue() == poolName {
					sum += series.GetCounter().GetValue()
				}
			}
		}
	}
	return sum
}
