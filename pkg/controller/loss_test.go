// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"go4.org/netipx"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// Blocks that a pool has lost are remembered, by whichever way it has lost them.
func TestFormerBlocks(t *testing.T) {
	block := func(node, first string) pool.Assignment {
		return pool.Assignment{Node: node, Range: netipx.IPRangeFrom(netip.MustParseAddr(first), netip.MustParseAddr(first).Next())}
	}
	a, b, moved := block("a", "10.0.0.3"), block("b", "10.0.0.1"), block("a", "10.0.0.5")
	p := func(name string, uid types.UID, version string, blocks ...pool.Assignment) *pool.Object {
		obj := pool.ObjectOf(&v1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{Name: name, UID: uid, ResourceVersion: version}})
		return pool.ObjectOf(&v1alpha1.IPPool{ObjectMeta: *obj.Meta, Status: v1alpha1.IPPoolStatus{Allocations: obj.AllocationsFor(blocks).([]v1alpha1.Allocation)}})
	}
	f := &formerBlocks{}
	f.remember(p("p", "u1", "100", a, b))
	for _, tc := range []struct {
		what string
		is   *pool.Object
		want []pool.Assignment
	}{
		{"as it was", p("p", "u1", "100", a), []pool.Assignment{a}},
		{"later", p("p", "u1", "101", a), []pool.Assignment{a}},
		{"made again", p("p", "u2", "200"), []pool.Assignment{a, b}},
		{"etcd set back to before b", p("p", "u1", "99", a), []pool.Assignment{a, b}},
		{"made again, with a block", p("p", "u2", "200", moved), []pool.Assignment{moved, b}},
		{"another pool", p("q", "u3", "1"), nil},
	} {
		if got := f.recall(tc.is); fmt.Sprint(got) != fmt.Sprint(tc.want) {
			t.Errorf("%s: %v, want %v", tc.what, got, tc.want)
		}
	}
	f.remember(p("p", "u2", "200")) // invalid at first
	f.remember(p("p", "u2", "201"))
	if got := f.recall(p("p", "u2", "202")); fmt.Sprint(got) != fmt.Sprint([]pool.Assignment{a, b}) {
		t.Errorf("made again without blocks, twice: %v", got)
	}
	f.remember(p("p", "u2", "203", moved))
	f.remember(p("p", "u2", "204"))
	if got := f.recall(p("p", "u2", "205")); len(got) > 0 {
		t.Errorf("its nodes are gone, and it has %v", got)
	}
}

// A new pool waits for its blocks only while nodes write lost allocations again.
func TestNewPoolWaitsAfterALoss(t *testing.T) {
	now, grace := time.Now(), time.Minute
	allocation := func(age time.Duration, restored bool) func() []*v1alpha1.IPAllocation {
		return func() []*v1alpha1.IPAllocation {
			return []*v1alpha1.IPAllocation{{
				ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.Time{Time: now.Add(-age)}},
				Spec:       v1alpha1.IPAllocationSpec{Restored: restored},
			}}
		}
	}
	young := &metav1.ObjectMeta{CreationTimestamp: metav1.Time{Time: now.Add(-grace / 4)}}
	old := &metav1.ObjectMeta{CreationTimestamp: metav1.Time{Time: now.Add(-grace)}}
	some := []pool.Assignment{{Node: "a"}}
	for _, tc := range []struct {
		what        string
		meta        *metav1.ObjectMeta
		blocks      []pool.Assignment
		allocations func() []*v1alpha1.IPAllocation
		want        time.Duration
	}{
		{"after a loss", young, nil, allocation(time.Second, true), grace * 3 / 4},
		{"it has blocks", young, some, allocation(time.Second, true), 0},
		{"it is old enough", old, nil, allocation(time.Second, true), 0},
		{"the loss was long ago", young, nil, allocation(time.Hour, true), 0},
		{"nothing was lost", young, nil, allocation(time.Second, false), 0},
	} {
		if got := tooEarly(tc.meta, tc.blocks, tc.allocations, now, grace); got != tc.want {
			t.Errorf("%s: waits for %s, want %s", tc.what, got, tc.want)
		}
	}
}
