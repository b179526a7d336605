// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// An allocation is its reservation's by the name, and one whose reservation is not there goes,
// unless it may be an import under way.
func TestWithoutOwner(t *testing.T) {
	reservation := func(uid types.UID, address string) *v1alpha1.IPReservation {
		return &v1alpha1.IPReservation{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "r", UID: uid}, Spec: v1alpha1.IPReservationSpec{
			PoolRef: v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "pool1"}, Addresses: []string{address},
		}}
	}
	pool := func(name, domain string) *v1alpha1.IPPool {
		return &v1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Spec: v1alpha1.IPPoolSpec{
			Subnet: "192.168.0.0/24", PerNodeBlockSize: 16, PoolAccess: v1alpha1.PoolAccess{Domain: domain},
		}}
	}
	for name, tc := range map[string]struct {
		reservation *v1alpha1.IPReservation
		pool        *v1alpha1.IPPool
		age         time.Duration
		seen        bool // that its reservation went
		want        bool
	}{
		"its reservation is there":                {reservation("u", "192.168.0.11"), pool("pool1", ""), time.Hour, false, false},
		"it was imported, and so has another UID": {reservation("new", "192.168.0.11"), pool("pool1", ""), 0, false, false},
		"it names the address no more":            {reservation("u", "192.168.0.12"), pool("pool1", ""), time.Hour, false, true},
		"it is gone":                              {nil, pool("pool1", ""), time.Second, false, true},
		"it is gone, and so is the pool":          {nil, nil, importAge + time.Second, false, true},
		"it and the pool are still to come":       {nil, nil, time.Second, false, false},
		"another pool gives the address":          {nil, pool("other", "pool1"), time.Second, false, true},
		"it was deleted, and then the pool":       {nil, nil, time.Second, true, true},
		"it was deleted, and is made again":       {reservation("new", "192.168.0.11"), nil, time.Second, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			indexer := func(indexers cache.Indexers) cache.Indexer {
				return cache.NewIndexer(cache.MetaNamespaceKeyFunc, indexers)
			}
			c := &caches{
				namespace: "ns", pools: map[v1alpha1.PoolKind]index[metav1.Object]{v1alpha1.PoolKindIPPool: {indexer(poolIndexers)}},
				reservations: index[*v1alpha1.IPReservation]{indexer(nil)}, reservationsSynced: func() bool { return true },
			}
			c.allocations.Indexer = indexer(allocationIndexers)
			if tc.reservation != nil {
				_ = c.reservations.Add(tc.reservation)
			}
			if tc.pool != nil {
				_ = c.pools[v1alpha1.PoolKindIPPool].Add(tc.pool)
			}
			a := allocation(func(a *v1alpha1.IPAllocation) {
				a.CreationTimestamp = metav1.NewTime(time.Now().Add(-tc.age))
				a.Spec.ContainerID, a.Spec.Owner = "", ownerOf(reservation("u", ""))
			})
			if tc.seen {
				_ = c.allocations.Add(a)
				(&triggers{caches: c, queues: &queues{allocations: newQueue[string](queueAllocations, newMetrics())}}).onReservation().OnDelete(reservation("u", ""))
			}
			if got := c.withoutOwner(a); got != tc.want {
				t.Errorf("%v, want %v", got, tc.want)
			}
		})
	}
}

// Which reservations name an address is asked at each event of an allocation. It costs no parsing
// of what they name, and an edit counts at once, as does another reservation of the name.
func TestConcernedReservations(t *testing.T) {
	c := &caches{namespace: "ns", reservations: index[*v1alpha1.IPReservation]{cache.NewIndexer(cache.MetaNamespaceKeyFunc, nil)}}
	apply := func(name string, uid types.UID, generation int64, addresses ...string) {
		_ = c.reservations.Add(&v1alpha1.IPReservation{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: uid, Generation: generation},
			Spec:       v1alpha1.IPReservationSpec{PoolRef: v1alpha1.PoolReference{Name: "gone"}, Addresses: addresses},
		})
	}
	concerned := func(address string) []string {
		names := c.concernedReservations(allocation(func(a *v1alpha1.IPAllocation) { a.Spec.Address = address }))
		slices.Sort(names)
		return names
	}
	want := func(address string, names ...string) {
		t.Helper()
		if got := concerned(address); !slices.Equal(got, names) {
			t.Errorf("%s: %q, want %q", address, got, names)
		}
	}
	apply("a", "1", 1, "10.0.0.1-10.0.0.9")
	apply("b", "2", 1, "10.0.0.9", "fd00::1")
	want("10.0.0.9", "a", "b")
	want("fd00::1", "b")
	apply("a", "1", 2, "10.0.0.1-10.0.0.8")
	want("10.0.0.9", "b")
	want("10.0.0.1", "a")
	apply("b", "3", 1, "10.0.0.1")
	want("10.0.0.1", "a", "b")
	want("fd00::1")

	for i := range 50 {
		var single []string
		for addr := netip.AddrFrom4([4]byte{10, byte(i), 1, 1}); len(single) < 1024; addr = addr.Next().Next() {
			single = append(single, addr.String())
		}
		apply(fmt.Sprint("r", i), "1", 1, single...)
	}
	concerned("192.168.0.1") // parses them
	if allocs := testing.AllocsPerRun(10, func() { concerned("192.168.0.1") }); allocs > 100 {
		t.Errorf("%v allocations of memory for an event", allocs)
	}
}

// What is remembered of a reservation goes with it.
func TestReservationIsForgotten(t *testing.T) {
	c := &caches{}
	res := &v1alpha1.IPReservation{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "r"}, Spec: v1alpha1.IPReservationSpec{Addresses: []string{"10.0.0.1"}}}
	c.allocations.Indexer = cache.NewIndexer(cache.MetaNamespaceKeyFunc, allocationIndexers)
	c.reservedIn(res)
	(&triggers{caches: c}).onReservation().OnDelete(cache.DeletedFinalStateUnknown{Key: "ns/r", Obj: res})
	if n := c.reserved.len(); n != 0 {
		t.Errorf("%d are remembered", n)
	}
}
