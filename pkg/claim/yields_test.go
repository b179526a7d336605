// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"log/slog"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
)

// The rows have the numbers of the cases at yields.
func TestYields(t *testing.T) {
	now := time.Now()
	me, another := v1alpha1.PodReference{Namespace: "ns", Name: "me", UID: "u1"}, v1alpha1.PodReference{Namespace: "ns", Name: "other", UID: "u2"}
	again := v1alpha1.PodReference{Namespace: "ns", Name: "me", UID: "u3"} // a later pod of my name
	owner := &v1alpha1.AllocationOwner{APIGroup: v1alpha1.GroupName, Kind: v1alpha1.KindIPReservation, Namespace: "ns", Name: "me", UID: "r"}
	set := &v1alpha1.AllocationOwner{APIGroup: "apps", Kind: "StatefulSet", Namespace: "ns", Name: "set", UID: "s"}
	namesake := &v1alpha1.AllocationOwner{APIGroup: "apps", Kind: "StatefulSet", Namespace: "ns", Name: "set", UID: "s2"}
	elsewhere := func(s v1alpha1.IPAllocationSpec, network, ifName string) v1alpha1.IPAllocationSpec {
		s.NetworkName, s.InterfaceName = network, ifName
		return s
	}
	proposed := v1alpha1.IPAllocationSpec{PodRef: v1alpha1.PodReference{Namespace: "ns", Name: "me"}, InterfaceName: "net1", Owner: set}
	minute := &metav1.Duration{Duration: time.Minute}
	held := func(node, container string, pod v1alpha1.PodReference, began time.Time) v1alpha1.IPAllocationSpec {
		return v1alpha1.IPAllocationSpec{NodeName: node, ContainerID: container, InterfaceName: "net1", PodRef: pod, AddStartedAt: &metav1.MicroTime{Time: began}}
	}
	released := func(pod v1alpha1.PodReference, at time.Time, o *v1alpha1.AllocationOwner) v1alpha1.IPAllocationSpec {
		s := held("b", "c9", pod, at.Add(-time.Hour))
		s.Owner, s.ReleaseCooldown, s.ReleasedAt = o, minute, &metav1.Time{Time: at}
		return s
	}
	cooling := func(s v1alpha1.IPAllocationSpec) v1alpha1.IPAllocationSpec {
		s.ReleaseCooldown = minute
		return s
	}
	long := now.Add(-time.Hour)
	for _, tc := range []struct {
		name string
		spec v1alpha1.IPAllocationSpec
		want yielding
	}{
		{"2 an earlier sandbox of the pod", held("a", "c0", me, long), endedHere},
		{"2 an earlier sandbox of the pod, with a cooldown", cooling(held("a", "c0", me, long)), endedHere},
		{"2 its release is pending", held("a", "pending", another, long), endedHere},
		{"a sandbox on another node", held("b", "c0", me, long), none},
		{"a later sandbox of the pod", held("a", "c2", me, now.Add(time.Hour)), none},
		{"a sandbox whose ADD may be running, in an old allocation", cooling(held("a", "c0", me, now.Add(-time.Second))), none},
		{"another pod", held("a", "c0", another, long), none},
		{"another pod, with an owner", func() v1alpha1.IPAllocationSpec { s := held("a", "c0", again, long); s.Owner = owner; return s }(), none},
		{"3 released by the pod", released(me, now, nil), sameKeeper},
		{"3 kept for the pod's name", released(again, now, owner), sameKeeper},
		{"3 kept by my StatefulSet for the pod's name", released(again, now, set), sameKeeper},
		{"kept by another StatefulSet of the name", released(again, now, namesake), none},
		{"kept by my StatefulSet for another pod", released(another, now, set), none},
		{"kept by my StatefulSet for another interface", elsewhere(released(again, now, set), "", "net2"), none},
		{"kept by my StatefulSet for another network", elsewhere(released(again, now, set), "other", "net1"), none},
		{"released by a pod of the name", released(again, now, nil), none},
		{"released by another pod", released(another, now, nil), none},
		{"released in the future", released(another, now.Add(time.Hour), nil), none},
		{"kept for another pod", released(another, long, owner), none},
		{"4 has rested", released(another, long, nil), rested},
		{"5 reserved for the pod", v1alpha1.IPAllocationSpec{PodRef: me}, reservedFor},
		{"5 reserved for the pod's name", v1alpha1.IPAllocationSpec{PodRef: v1alpha1.PodReference{Namespace: "ns", Name: "me"}}, reservedFor},
		{"5 reserved by my StatefulSet", proposed, reservedFor},
		{"reserved by my StatefulSet for another interface", elsewhere(proposed, "", "net2"), none},
		{"reserved for a pod of the name", v1alpha1.IPAllocationSpec{PodRef: again}, none},
		{"reserved for another pod", v1alpha1.IPAllocationSpec{PodRef: another}, none},
		{"reserved for nobody", v1alpha1.IPAllocationSpec{}, none},
		{"reserved for an owner", v1alpha1.IPAllocationSpec{Owner: owner}, none},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := &Claimer{Ledger: ledger.Ledger{Node: "a"}, Hint: hint.Open(t.TempDir(), "site", "ns", slog.New(slog.DiscardHandler)), Log: slog.New(slog.DiscardHandler)}
			holder := &v1alpha1.IPAllocation{Spec: tc.spec}
			holder.Name, holder.UID, holder.CreationTimestamp = "p.10.0.0.1", "u", metav1.NewTime(long)
			if tc.spec.ContainerID == "pending" {
				c.Hint.Releasing(entryOf(holder))
			}
			req := Request{Attachment: hint.Attachment{ContainerID: "c1", Interface: "net1"}, Pod: me, started: now, owner: set}
			if got := c.yields(holder, req); got != tc.want {
				t.Errorf("yields %d, want %d", got, tc.want)
			}
			if got := c.yields(holder, Request{Attachment: req.Attachment}); got != none && got != rested && tc.spec.ContainerID != "pending" {
				t.Errorf("yields %d to a request without a pod", got)
			}
		})
	}
}
