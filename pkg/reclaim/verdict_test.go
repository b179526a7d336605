// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package reclaim

import (
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

var claimed = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// podUID is one that the API server could have given, staticUID and nextUID are of
// the kubelet's kind.
const (
	podUID    = "7d0c9a3e-1111-4222-8333-444455556666"
	staticUID = "0123456789abcdef0123456789abcdef"
	nextUID   = "fedcba9876543210fedcba9876543210"
)

type change func(*v1alpha1.IPAllocation)

// allocation was created, and its ADD began, when claimed.
func allocation(changes ...change) *v1alpha1.IPAllocation {
	a := &v1alpha1.IPAllocation{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "pool1.192.168.0.11"},
		Spec: v1alpha1.IPAllocationSpec{
			PoolRef: v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "pool1"}, Address: "192.168.0.11", NodeName: "node",
			PodRef:      v1alpha1.PodReference{Namespace: "default", Name: "pod", UID: podUID},
			ContainerID: "first", InterfaceName: "net1",
		},
	}
	at(claimed, claimed)(a)
	for _, f := range changes {
		f(a)
	}
	return a
}

func at(created, started time.Time) change {
	return func(a *v1alpha1.IPAllocation) {
		a.CreationTimestamp, a.Spec.AddStartedAt = metav1.NewTime(created), &metav1.MicroTime{Time: started}
	}
}

func in(container string) change {
	return func(a *v1alpha1.IPAllocation) { a.Spec.ContainerID = container }
}

func uid(uid types.UID) change {
	return func(a *v1alpha1.IPAllocation) { a.Spec.PodRef.UID = uid }
}

func named(namespace, name string) change {
	return func(a *v1alpha1.IPAllocation) { a.Spec.PodRef.Namespace, a.Spec.PodRef.Name = namespace, name }
}

// restsFor is an allocation that was released.
func restsFor(d time.Duration) change {
	return func(a *v1alpha1.IPAllocation) {
		a.Spec.ReleaseCooldown, a.Spec.ReleasedAt = &metav1.Duration{Duration: d}, &metav1.Time{Time: after}
	}
}

func owned(a *v1alpha1.IPAllocation) {
	a.Spec.Owner = &v1alpha1.AllocationOwner{APIGroup: "apps", Kind: "StatefulSet", Namespace: "ns", Name: "web", UID: "u"}
}

var (
	before, after   = claimed.Add(-time.Hour), claimed.Add(time.Hour)
	later, earlier  = at(after, after), at(before, before)
	other           = in("other")
	noUID, isStatic = uid(""), uid(staticUID)
)

func pod(uid types.UID, created time.Time, changes ...func(*Pod)) *Pod {
	p := &Pod{UID: uid, Created: metav1.NewTime(created)}
	for _, f := range changes {
		f(p)
	}
	return p
}

func mirroring(uid types.UID) func(*Pod) { return func(p *Pod) { p.Mirrors = uid } }
func on(node string) func(*Pod)          { return func(p *Pod) { p.Placed, p.Node = true, node } }
func deleting(p *Pod)                    { p.Deleting = true }
func ended(p *Pod)                       { p.Ended = true }

func node(state NodeState) *Node { return &Node{Created: metav1.NewTime(before), State: state} }

// evidence that names other allocations of the pod's name.
// sticky is an allocation that a StatefulSet keeps for a pod of its.
func sticky(a *v1alpha1.IPAllocation) {
	a.Spec.Owner = &v1alpha1.AllocationOwner{APIGroup: "apps", Kind: "StatefulSet", Namespace: "default", Name: "web", UID: "s"}
}

func reservedOnly(a *v1alpha1.IPAllocation) { a.Spec.ContainerID = "" }

// another is the allocation of another address.
func another(addr string) change {
	return func(a *v1alpha1.IPAllocation) { a.Name, a.Spec.Address = "pool1."+addr, addr }
}

func (e Evidence) with(others ...*v1alpha1.IPAllocation) Evidence {
	e.Others = others
	return e
}

// The numbers are those of the type Action.
func TestDecide(t *testing.T) {
	up, down, notReady, dead := node(Answers), node(Unreachable), node(NotReady), node(OutOfService)
	again := &Node{Created: metav1.NewTime(after)}
	same := pod(podUID, before, on("node"))
	alive := Evidence{Pod: same, Node: up}
	mirror := pod("mirror", before, mirroring(staticUID), on("node"))
	const off = "nv-ipam.nvidia.com/reclaim=disabled"

	for _, tc := range []struct {
		name   string
		alloc  *v1alpha1.IPAllocation
		e      Evidence
		want   Action
		reason string
		prompt bool
	}{
		{"1 no attachment", allocation(in("")), Evidence{Node: up}, Keep, inUse, false},
		{"1 no attachment, no pod", allocation(in(""), named("", "")), Evidence{}, Keep, inUse, false},

		{"9 rests", allocation(restsFor(time.Hour)), Evidence{Node: up}, Keep, rests, false},
		{"9 rests, its node is gone", allocation(restsFor(time.Hour)), Evidence{}, Keep, rests, false},
		{"9 has rested", allocation(restsFor(time.Hour)), Evidence{Pod: same, Node: up, Rested: true}, Delete, cooldownOver, false},
		{"9 has rested, reclaim is disabled", allocation(restsFor(time.Hour)), Evidence{Rested: true, OptOut: off}, Delete, cooldownOver, false},
		{"9 kept for an owner", allocation(restsFor(time.Hour), owned), Evidence{Node: up, Rested: true}, Keep, kept, false},
		{"9 its owner is gone", allocation(restsFor(time.Hour), owned), Evidence{Node: up, OwnerGone: true}, Delete, ownerGone, false},
		{"1 a workload reserved it", allocation(sticky, reservedOnly), Evidence{Node: up}, Keep, inUse, false},
		{"1 a workload reserved it, and keeps another one", allocation(sticky, reservedOnly), Evidence{Node: up}.with(allocation(sticky, another("10.0.0.2"), restsFor(time.Hour))), Keep, inUse, false},
		{"1 a workload reserved it, and nobody took it", allocation(sticky, reservedOnly), Evidence{Node: up, Untaken: true}, Delete, untaken, false},
		{"9 a workload keeps what was taken", allocation(sticky, restsFor(time.Hour)), Evidence{Node: up, Untaken: true}, Keep, kept, false},
		{"1 a workload reserved it, and holds another one", allocation(sticky, reservedOnly), Evidence{Node: up}.with(allocation(sticky, another("10.0.0.2"))), Delete, superseded, false},
		{"1 a workload reserved two", allocation(sticky, reservedOnly), Evidence{Node: up}.with(allocation(sticky, another("10.0.0.2"), reservedOnly)), Keep, inUse, false},
		{"1 it keeps another one for another interface", allocation(sticky, reservedOnly), Evidence{Node: up}.with(allocation(sticky, another("10.0.0.2"), func(a *v1alpha1.IPAllocation) { a.Spec.InterfaceName = "net2" })), Keep, inUse, false},
		{"9 a workload keeps it, and holds another one", allocation(sticky, restsFor(time.Hour)), Evidence{Node: up}.with(allocation(sticky, another("10.0.0.2"))), Delete, superseded, false},
		{"9 a workload keeps two", allocation(sticky, restsFor(time.Hour)), Evidence{Node: up}.with(allocation(sticky, another("10.0.0.2"), restsFor(time.Hour))), Keep, kept, false},
		{"9 a workload keeps it, and holds another one of another pool", allocation(sticky, restsFor(time.Hour)), Evidence{Node: up}.with(allocation(sticky, another("10.0.0.2"), func(a *v1alpha1.IPAllocation) { a.Spec.PoolRef.Name = "q" })), Keep, kept, false},
		{"3 held by a workload's pod", allocation(sticky), alive, Keep, inUse, false},
		{"2 held with a cooldown, a sandbox that was released is no later one", allocation(), alive.with(allocation(other, later, restsFor(time.Hour))), Keep, inUse, false},
		{"7 held with a cooldown and an owner that is gone", allocation(owned), Evidence{Node: up, OwnerGone: true}, Candidate, podGone, false},

		{"2 another sandbox came later", allocation(), alive.with(allocation(other, later)), Candidate, sandboxReplaced, true},
		{"2 on another network, interface and pool", allocation(), alive.with(allocation(other, later, func(a *v1alpha1.IPAllocation) {
			a.Spec.NetworkName, a.Spec.InterfaceName, a.Spec.PoolRef = "new", "net2", v1alpha1.PoolReference{Kind: v1alpha1.PoolKindCIDRPool, Name: "new"}
		})), Candidate, sandboxReplaced, true},
		{"2 its node does not answer", allocation(), Evidence{Pod: same, Node: down}.with(allocation(other, later)), Candidate, sandboxReplaced, true},
		{"2 its pod is gone by now", allocation(), Evidence{Node: up}.with(allocation(other, later)), Candidate, sandboxReplaced, true},
		{"2 of a static pod", allocation(isStatic), Evidence{Pod: mirror, Node: up}.with(allocation(isStatic, other, later)), Candidate, sandboxReplaced, true},
		{"2 of a static pod without a mirror", allocation(isStatic), Evidence{Node: up}.with(allocation(isStatic, other, later)), Candidate, sandboxReplaced, true},
		{"2 no UID", allocation(noUID), alive.with(allocation(noUID, other, later)), Candidate, sandboxReplaced, false},
		{"2 only the later one has a UID", allocation(noUID), alive.with(allocation(other, later)), Candidate, sandboxReplaced, false},
		{"2 only the earlier one has a UID", allocation(), alive.with(allocation(noUID, other, later)), Candidate, sandboxReplaced, false},
		{"2 a second interface's create came late", allocation(), alive.with(allocation(func(a *v1alpha1.IPAllocation) { a.Spec.InterfaceName = "net2" }, at(after.Add(time.Minute), claimed)), allocation(other, later)), Hold, sandboxUnclear, false},
		{"2 a third is later than both", allocation(), alive.with(allocation(other, at(claimed, after)), allocation(in("third"), later)), Candidate, sandboxReplaced, true},

		{"3 pod exists", allocation(), alive, Keep, inUse, false},
		{"3 nobody has asked yet where it is", allocation(), Evidence{Pod: pod(podUID, before), Node: up}, Keep, inUse, false},
		{"3 its node does not answer", allocation(), Evidence{Pod: same, Node: down}, Keep, inUse, false},
		{"3 its node is gone", allocation(), Evidence{Pod: same}, Keep, inUse, false},
		{"3 its node is out of service", allocation(), Evidence{Pod: same, Node: dead}, Keep, inUse, false},
		{"3 its node was made again", allocation(), Evidence{Pod: same, Node: again}, Keep, inUse, false},
		{"3 being deleted", allocation(), Evidence{Pod: pod(podUID, before, deleting), Node: up}, Keep, inUse, false},
		{"3 mirror of the static pod", allocation(isStatic), Evidence{Pod: mirror, Node: up}, Keep, inUse, false},
		{"3 no UID, pod is older", allocation(noUID), Evidence{Pod: pod("other", before), Node: up}, Keep, inUse, false},
		{"3 no UID, pod of the same second", allocation(noUID), Evidence{Pod: pod("other", claimed), Node: up}, Keep, inUse, false},
		{"3 another interface of the sandbox", allocation(), alive.with(allocation(later)), Keep, inUse, false},
		{"3 another sandbox came earlier", allocation(), alive.with(allocation(other, earlier)), Keep, inUse, false},
		{"3 on another node", allocation(), alive.with(allocation(other, later, func(a *v1alpha1.IPAllocation) { a.Spec.NodeName = "other" })), Keep, inUse, false},
		{"3 another sandbox of another UID", allocation(), alive.with(allocation(other, later, uid("8d0c9a3e-1111-4222-8333-444455556666"))), Keep, inUse, false},
		{"3 a later reservation", allocation(), alive.with(allocation(in(""), later)), Keep, inUse, false},
		{"3 another sandbox in the same second", allocation(), alive.with(allocation(other, at(claimed, after))), Hold, sandboxUnclear, false},
		{"3 its ADD began at once", allocation(), alive.with(allocation(other, at(after, claimed))), Hold, sandboxUnclear, false},
		{"3 the create of an earlier sandbox came late", allocation(), alive.with(allocation(other, at(after, before))), Hold, sandboxUnclear, false},
		{"3 the clock was set back between them", allocation(), alive.with(allocation(other, at(before, after))), Hold, sandboxUnclear, false},
		{"3 when its ADD began is not known", allocation(), alive.with(allocation(other, later, func(a *v1alpha1.IPAllocation) { a.Spec.AddStartedAt = nil })), Hold, sandboxUnclear, false},
		{"3 ended, and its node is out of service", allocation(), Evidence{Pod: pod(podUID, before, on("node"), ended), Node: dead}, Candidate, podEnded, true},
		{"3 ended, and its node is gone", allocation(), Evidence{Pod: pod(podUID, before, on("node"), ended)}, Candidate, podEnded, true},
		{"3 ended, and a machine moves from it", allocation(moves), Evidence{Pod: pod(podUID, before, on("node"), ended), Node: up}, Candidate, podEnded, false},
		{"3 runs, and a machine moves from it", allocation(moves), alive, Keep, inUse, false},
		{"3 ended, and its node answers", allocation(), Evidence{Pod: pod(podUID, before, on("node"), ended), Node: up}, Keep, inUse, false},
		{"3 ended, and its node does not answer", allocation(), Evidence{Pod: pod(podUID, before, on("node"), ended), Node: down}, Keep, inUse, false},

		{"4 pod gone, node gone", allocation(), Evidence{}, Candidate, podGone, true},
		{"4 pod gone, node out of service", allocation(), Evidence{Node: dead}, Candidate, podGone, true},
		{"4 no UID, node gone", allocation(noUID), Evidence{}, Candidate, podGone, true},
		{"4 static pod, node gone", allocation(isStatic), Evidence{}, Candidate, podGone, true},
		{"4 static pod, node out of service", allocation(isStatic), Evidence{Node: dead}, Candidate, podGone, true},
		{"4 static pod, node gone, a mirror of old that somebody keeps", allocation(isStatic), Evidence{Pod: pod("mirror", before, mirroring(staticUID), deleting)}, Candidate, podReplaced, true},

		{"5 pod gone, node does not answer", allocation(), Evidence{Node: down}, Hold, nodeUnreachable, false},
		{"5 another UID, node does not answer", allocation(), Evidence{Pod: pod("other", claimed), Node: down}, Hold, nodeUnreachable, false},
		{"5 no UID, pod is younger, node does not answer", allocation(noUID), Evidence{Pod: pod("other", after), Node: down}, Hold, nodeUnreachable, false},
		{"5 an impossible pod, node does not answer", allocation(named("default", "%zz")), Evidence{Node: down}, Hold, nodeUnreachable, false},
		{"5 pod gone, node made again does not answer", allocation(), Evidence{Node: &Node{Created: metav1.NewTime(after), State: Unreachable}}, Hold, nodeUnreachable, false},
		{"5 pod gone, node is not ready", allocation(), Evidence{Node: notReady}, Hold, nodeNotReady, false},

		{"6 static pod without a mirror", allocation(isStatic), Evidence{Node: up}, Hold, podUnknown, false},
		{"6 mirror of another static pod, later", allocation(isStatic), Evidence{Pod: pod("other", after, mirroring(nextUID), on("node")), Node: up}, Hold, podUnknown, false},
		{"6 mirror on another node", allocation(isStatic), Evidence{Pod: pod("mirror", before, mirroring(staticUID), on("other")), Node: up}, Hold, podUnknown, false},
		{"6 mirror that no kubelet has bound", allocation(isStatic), Evidence{Pod: pod("mirror", before, mirroring(staticUID), on("")), Node: up}, Hold, podUnknown, false},
		{"6 mirror that its kubelet deletes, and a finalizer keeps", allocation(isStatic), Evidence{Pod: pod("mirror", before, mirroring(staticUID), on("node"), deleting), Node: up}, Hold, podUnknown, false},
		{"6 a pod of the API has a later sandbox under the name", allocation(isStatic), Evidence{Node: up}.with(allocation(other, later)), Hold, podUnknown, false},
		{"6 another static pod has an earlier sandbox", allocation(isStatic), Evidence{Node: up}.with(allocation(uid(nextUID), other, earlier)), Hold, podUnknown, false},
		{"6 another static pod has a later sandbox", allocation(isStatic), Evidence{Node: up}.with(allocation(uid(nextUID), other, later)), Candidate, podReplaced, false},
		{"6 another static pod has a later sandbox, but the mirror of this one is there", allocation(isStatic), Evidence{Pod: mirror, Node: up}.with(allocation(uid(nextUID), other, later)), Keep, inUse, false},

		{"7 pod gone", allocation(), Evidence{Node: up}, Candidate, podGone, false},
		{"7 another UID", allocation(), Evidence{Pod: pod("other", claimed), Node: up}, Candidate, podReplaced, false},
		{"7 pod gone, node made again", allocation(), Evidence{Node: again}, Candidate, podGone, false},
		{"7 static pod, node made again", allocation(isStatic), Evidence{Node: again}, Candidate, podGone, false},
		{"7 no UID, pod gone", allocation(noUID), Evidence{Node: up}, Candidate, podGone, false},
		{"7 no UID, pod is younger", allocation(noUID), Evidence{Pod: pod("other", after), Node: up}, Candidate, podReplaced, false},
		{"7 no UID, pod is younger, later sandbox", allocation(noUID), Evidence{Pod: pod("other", after), Node: up}.with(allocation(noUID, other, later)), Candidate, podReplaced, false},
		{"7 pod is on another node", allocation(), Evidence{Pod: pod(podUID, before, on("other")), Node: up}, Candidate, podElsewhere, false},
		{"7 pod is on no node", allocation(), Evidence{Pod: pod(podUID, before, on("")), Node: up}, Candidate, podElsewhere, false},
		{"7 no UID, pod is on another node", allocation(noUID), Evidence{Pod: pod(podUID, before, on("other")), Node: up}, Candidate, podElsewhere, false},
		{"7 a name of no pod", allocation(named("default", "%zz")), Evidence{Node: up}, Candidate, podInvalid, false},
		{"7 a namespace of no pod", allocation(named("Default", "pod")), Evidence{Node: up}, Candidate, podInvalid, false},
		{"7 no name", allocation(named("default", "")), Evidence{Node: up}, Candidate, podInvalid, false},
		{"7 no namespace", allocation(named("", "pod"), noUID), Evidence{Node: up}, Candidate, podInvalid, false},
		{"7 a static pod's UID, a name of no pod", allocation(isStatic, named("default", "a_b")), Evidence{Node: up}, Candidate, podInvalid, false},
		{"7 a UID of nobody's", allocation(uid("x")), Evidence{Node: up}, Candidate, podInvalid, false},
		{"7 a UID in brackets", allocation(uid("{" + podUID + "}")), Evidence{Node: up}, Candidate, podInvalid, false},
		{"7 a UID in capitals", allocation(uid("7D0C9A3E-1111-4222-8333-444455556666")), Evidence{Node: up}, Candidate, podInvalid, false},
		{"7 36 characters, no UID", allocation(uid("7d0c9a3e-1111-4222-8333-44445555666x")), Evidence{Node: up}, Candidate, podInvalid, false},
		{"7 32 characters, no UID", allocation(uid("0123456789abcdef0123456789abcdeg")), Evidence{Node: up}, Candidate, podInvalid, false},

		{"8 disabled, pod gone", allocation(), Evidence{Node: up, OptOut: off}, Hold, reclaimDisabled, false},
		{"8 disabled, node gone", allocation(), Evidence{OptOut: off}, Hold, reclaimDisabled, false},
		{"8 disabled, another sandbox came later", allocation(), Evidence{Pod: same, Node: up, OptOut: off}.with(allocation(other, later)), Hold, reclaimDisabled, false},
		{"8 disabled, pod exists", allocation(), Evidence{Pod: same, Node: up, OptOut: off}, Keep, inUse, false},
		{"8 disabled, node does not answer", allocation(), Evidence{Node: down, OptOut: off}, Hold, nodeUnreachable, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := Decide(tc.alloc, tc.e)
			if v.Action != tc.want || v.Reason != tc.reason || v.Prompt != tc.prompt || v.Message == "" {
				t.Errorf("got %+v, want %v, %s, prompt %v", v, tc.want, tc.reason, tc.prompt)
			}
			// Reason and action go together, and an operator can end each hold.
			if held := slices.Contains(HoldReasons, v.Reason); held != (v.Action == Hold) || held != (Until(tc.alloc, v.Reason) != "") {
				t.Errorf("action %v, reason %s, until %q", v.Action, v.Reason, Until(tc.alloc, v.Reason))
			}
			if slices.Contains(CandidateReasons, v.Reason) != (v.Action == Candidate) {
				t.Errorf("action %v, reason %s", v.Action, v.Reason)
			}
			// The allocation is among those of its pod.
			tc.e.Others = append(slices.Clone(tc.e.Others), tc.alloc)
			if again := Decide(tc.alloc, tc.e); again.Action != v.Action || again.Reason != v.Reason {
				t.Errorf("got %+v with itself among the others", again)
			}
		})
	}
}

// What an allocation rests on that has yet to be asked.
func TestUnplaced(t *testing.T) {
	up, dead := node(Answers), node(OutOfService)
	for name, tc := range map[string]struct {
		alloc *v1alpha1.IPAllocation
		e     Evidence
		want  bool
	}{
		"never asked":                  {allocation(), Evidence{Pod: pod(podUID, before), Node: up}, true},
		"not bound when asked":         {allocation(), Evidence{Pod: pod(podUID, before, on("")), Node: up}, true},
		"on its node":                  {allocation(), Evidence{Pod: pod(podUID, before, on("node")), Node: up}, false},
		"on another":                   {allocation(), Evidence{Pod: pod(podUID, before, on("other")), Node: up}, false},
		"on its node, out of service":  {allocation(), Evidence{Pod: pod(podUID, before, on("node")), Node: dead}, true},
		"on its node, gone":            {allocation(), Evidence{Pod: pod(podUID, before, on("node"))}, true},
		"ended on its node":            {allocation(), Evidence{Pod: pod(podUID, before, on("node"), ended), Node: dead}, false},
		"another pod of the name":      {allocation(), Evidence{Pod: pod("other", before), Node: up}, false},
		"no pod":                       {allocation(), Evidence{Node: up}, false},
		"released":                     {allocation(restsFor(time.Hour)), Evidence{Pod: pod(podUID, before), Node: up}, false},
		"reservation for a pod":        {allocation(in("")), Evidence{Pod: pod(podUID, before), Node: up}, false},
		"mirror of a static pod":       {allocation(isStatic), Evidence{Pod: pod("m", before, mirroring(staticUID)), Node: up}, true},
		"no UID, pod of the name":      {allocation(noUID), Evidence{Pod: pod(podUID, before), Node: up}, true},
		"no UID, later pod of a name":  {allocation(noUID), Evidence{Pod: pod(podUID, after), Node: up}, false},
		"on another, node out of work": {allocation(), Evidence{Pod: pod(podUID, before, on("other")), Node: dead}, false},
	} {
		if got := tc.e.Unplaced(tc.alloc); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestReasonsAreSorted(t *testing.T) {
	if !slices.IsSorted(HoldReasons) || !slices.IsSorted(CandidateReasons) {
		t.Error(HoldReasons, CandidateReasons)
	}
}

const targetUID = "8d0c9a3e-1111-4222-8333-444455556666"

// moves is an allocation of a machine that moves to another pod.
func moves(a *v1alpha1.IPAllocation) {
	a.Spec.Next = &v1alpha1.NextAttachment{
		NodeName: "node2", ContainerID: "c2", InterfaceName: "net1", PodRef: v1alpha1.PodReference{Namespace: "default", Name: "target", UID: targetUID},
	}
}

// The numbers are those at Action.
func TestDecideNext(t *testing.T) {
	a := allocation(moves)
	up, down := node(Answers), node(Unreachable)
	lives := Evidence{Pod: pod(podUID, before, on("node")), Node: up}
	target := func(n *Node, changes ...func(*Pod)) Evidence {
		return Evidence{Pod: pod(targetUID, before, append([]func(*Pod){on("node2")}, changes...)...), Node: n}
	}
	gone := func(n *Node) Evidence { return Evidence{Node: n} }
	for _, tc := range []struct {
		name         string
		holder, next Evidence
		want         Action
		reason       string
		prompt       bool
	}{
		{"both run", lives, target(up), Keep, inUse, false},
		{"the holder's node does not answer", Evidence{Pod: lives.Pod, Node: down}, gone(up), Candidate, podGone, false},
		{"10 the holder is gone", gone(up), gone(up), Keep, inUse, false},
		{"10 the holder is gone, and its node does not answer", gone(down), gone(down), Keep, inUse, false},
		{"10 the holder ends", Evidence{Pod: pod(podUID, before, on("node"), deleting), Node: up}, gone(up), Keep, inUse, false},
		{"10 the holder has ended", Evidence{Pod: pod(podUID, before, on("node"), ended), Node: up}, gone(up), Keep, inUse, false},
		{"10 another pod has the holder's name", Evidence{Pod: pod("other", after), Node: up}, gone(up), Keep, inUse, false},
		{"10 the holder's pod is elsewhere", Evidence{Pod: pod(podUID, before, on("other")), Node: up}, gone(up), Keep, inUse, false},
		{"11 next is gone", lives, gone(up), Candidate, podGone, false},
		{"11 another pod has the next one's name", lives, Evidence{Pod: pod("other", after, on("node2")), Node: up}, Candidate, podReplaced, false},
		{"11 next is elsewhere", lives, Evidence{Pod: pod(targetUID, before, on("other")), Node: up}, Candidate, podElsewhere, false},
		{"11 next is gone with its node", lives, gone(nil), Candidate, podGone, true},
		{"11 next is gone, and its node does not answer", lives, gone(down), Candidate, podGone, false},
		{"11 next is gone, and its node is not ready", lives, gone(node(NotReady)), Candidate, podGone, false},
		{"11 next ends, and its node does not answer", lives, target(down, deleting), Candidate, podEnded, false},
		{"11 next has ended", lives, target(up, ended), Candidate, podEnded, false},
		{"8 next is gone, and reclaim is disabled", lives, Evidence{Node: up, OptOut: "annotation"}, Hold, reclaimDisabled, false},
		{"11 next has ended, and its node is out of service", lives, target(node(OutOfService), ended), Candidate, podEnded, true},
		{"next ends, and its node answers", lives, target(up, deleting), Keep, inUse, false},
		{"next runs, and its node does not answer", lives, target(down), Keep, inUse, false},
		{"nobody has asked yet where next is", lives, Evidence{Pod: pod(targetUID, before), Node: up}, Keep, inUse, false},
	} {
		if v := DecideNext(a, tc.holder, tc.next); v.Action != tc.want || v.Reason != tc.reason || v.Prompt != tc.prompt || v.Message == "" {
			t.Errorf("%s: %+v, want %v, %s, prompt %v", tc.name, v, tc.want, tc.reason, tc.prompt)
		}
	}
}
