// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package hint

import (
	"net/netip"
	"os"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

func restingSpec(pod v1alpha1.PodReference, releasedAt time.Time, cooldown time.Duration) *v1alpha1.IPAllocationSpec {
	return &v1alpha1.IPAllocationSpec{
		ContainerID: "c1", InterfaceName: "net1", PodRef: pod,
		ReleaseCooldown: &metav1.Duration{Duration: cooldown}, ReleasedAt: &metav1.Time{Time: releasedAt},
	}
}

// An address that rests is no candidate, until its time is over by any reading of the clock.
func TestRest(t *testing.T) {
	pod, other := v1alpha1.PodReference{Namespace: "ns", Name: "p", UID: "u"}, v1alpha1.PodReference{Namespace: "ns", Name: "p", UID: "v"}
	now := time.Now()
	for _, tc := range []struct {
		name  string
		spec  *v1alpha1.IPAllocationSpec
		taken bool // for others
		mine  bool // the pod finds it
	}{
		{"rests", restingSpec(pod, now, time.Minute), true, true},
		{"over", restingSpec(pod, now.Add(-time.Hour), time.Minute), false, false},
		{"clock was set back by years", restingSpec(pod, now.Add(1e5*time.Hour), time.Minute), false, false},
		{"of no pod", restingSpec(v1alpha1.PodReference{}, now, time.Minute), true, false},
		{"kept for an owner", func() *v1alpha1.IPAllocationSpec {
			s := restingSpec(pod, now.Add(-time.Hour), time.Minute)
			s.Owner = &v1alpha1.AllocationOwner{Kind: "StatefulSet", Name: "x"}
			return s
		}(), true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHint(t)
			e := Entry{Attachment: Attachment{"c1", "net1"}, Domain: "p", Address: netip.MustParseAddr("10.0.0.1"), UID: "u1", Kept: true, Started: 5}
			h.Claimed(e)
			if !h.Releasing(e) || !h.ReleasedToRest(e, tc.spec) {
				t.Fatal("not noted")
			}
			if releases, _ := h.Pending(); len(releases) != 0 {
				t.Errorf("pending %v", releases)
			}
			for of, want := range map[v1alpha1.PodReference]bool{pod: tc.mine, other: false, {}: false} {
				if k := h.Known("p", e.Attachment, of); len(k.Holding) != 0 || (len(k.Resting) == 1) != want {
					t.Errorf("pod %v: %+v", of, k)
				}
			}
			if entered := h.Known("p", Attachment{}, v1alpha1.PodReference{}).Entered[e.Address]; entered != tc.taken {
				t.Errorf("entered %v", entered)
			}
			if taken := h.Claiming(Entry{Attachment: Attachment{"c2", "net1"}, Domain: "p", Address: e.Address}); taken != tc.taken {
				t.Errorf("taken %v", taken)
			}
		})
	}
}

// An entry that an earlier process has left over is removed when its time is over.
func TestRestIsForgotten(t *testing.T) {
	h := newHint(t)
	e := Entry{Domain: "p", Address: netip.MustParseAddr("10.0.0.1")}
	if err := h.link(coolingText(time.Now().Add(-time.Second), v1alpha1.PodReference{Name: "p"}), "claims", e.fileName()); err != nil {
		t.Fatal(err)
	}
	h.Known("p", Attachment{}, v1alpha1.PodReference{})
	if text, err := os.Readlink(h.path("claims", e.fileName())); err == nil {
		t.Errorf("still there: %s", text)
	}
}

// A note says whether the allocation outlives the attachment, and since when it was held.
func TestKeptRelease(t *testing.T) {
	h := newHint(t)
	started := metav1.NewMicroTime(time.UnixMicro(1234567))
	e := Entry{Attachment: Attachment{"c1", "net1"}, Domain: "p", Address: netip.MustParseAddr("10.0.0.1"), UID: "u1"}
	e.Record = NewRecord(&v1alpha1.IPAllocation{Spec: v1alpha1.IPAllocationSpec{ReleaseCooldown: &metav1.Duration{Duration: time.Minute}, AddStartedAt: &started}})
	h.Claimed(e)
	entries, _ := h.Holding(e.Attachment)
	if len(entries) != 1 || !entries[0].Kept || entries[0].Started != 1234567 {
		t.Fatalf("holding %+v", entries)
	}
	if !h.Releasing(entries[0]) {
		t.Fatal("not noted")
	}
	releases, _ := h.Pending()
	if len(releases) != 1 || !releases[0].Kept || releases[0].Started != 1234567 || releases[0].UID != "u1" || !h.IsPending(entries[0]) {
		t.Errorf("pending %+v", releases)
	}
	// A rebuild that lists what the node holds now leaves the address that rests alone.
	h.ReleasedToRest(entries[0], restingSpec(v1alpha1.PodReference{Name: "p"}, time.Now(), time.Minute))
	if releases, _ = h.Pending(); len(releases) != 0 {
		t.Errorf("pending %+v", releases)
	}
}
