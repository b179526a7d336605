// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package reclaim

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// Evidence is what a verdict on an allocation rests on.
type Evidence struct {
	// Pod has the name in podRef; nil if there is none in the API.
	Pod *Pod
	// Node has the name in nodeName; nil if there is none in the API.
	Node *Node
	// Others are the allocations that name a pod of the same name and namespace.
	// The allocation itself may be among them.
	Others []*v1alpha1.IPAllocation
	// OptOut is the pool's annotation that disables reclaim, "" if it has none.
	OptOut string
	// Rested is true if the cooldown of a released allocation is over.
	Rested bool
	// OwnerGone is true if the owner of an allocation does not exist, or keeps the address
	// no more.
	OwnerGone bool
	// Untaken is true if a workload has reserved an address so long ago that the ADD which
	// was to take it has ended.
	Untaken bool
}

// Instead returns the address that a workload keeps for a pod instead of one that no container
// holds, nil if there is none: one that a container of the pod has.
func (e *Evidence) Instead(a *v1alpha1.IPAllocation) *v1alpha1.IPAllocation {
	for _, o := range e.Others {
		if o.Name != a.Name && !a.Spec.Held() && o.Spec.SameIdentity(&a.Spec) && o.Spec.Held() {
			return o
		}
	}
	return nil
}

// Pod is what the API has of a pod.
type Pod struct {
	UID     types.UID
	Created metav1.Time
	// Deleting is set if somebody has asked to delete it.
	Deleting bool
	// Mirrors is the UID of the static pod that this pod stands for, "" if it is
	// no mirror. Whoever may create pods can make one up; a kubelet deletes from
	// its own node what is not the mirror of a static pod there.
	Mirrors types.UID

	// Placed is set if it is known where the pod is.
	Placed bool
	// Node is the node that the pod is bound to, "" before that.
	Node string
	// Ended is set if its containers have ended for good (Succeeded, Failed).
	Ended bool
}

// Node is what the API has of a node.
type Node struct {
	Created metav1.Time
	State   NodeState
}

// NodeState is what is known of the containers on a node.
type NodeState int

// The states of a node.
const (
	// Answers: its kubelet stops what the API no longer has.
	Answers NodeState = iota
	// NotReady: its kubelet answers, and cannot do its work: the runtime may be
	// away while containers go on.
	NotReady
	// Unreachable: it is not known what runs there.
	Unreachable
	// OutOfService: an operator says that nothing runs there.
	OutOfService
)

// dead reports whether nothing can run on a node, or an operator says so.
func (n *Node) dead() bool { return n == nil || n.State == OutOfService }

func (n *Node) state() string {
	if n == nil {
		return "gone"
	}
	return "out of service"
}

// youngerThan reports whether the Node object of an allocation's time was deleted
// since: this one was made after the allocation.
func (n *Node) youngerThan(a *v1alpha1.IPAllocation) bool {
	return a.CreationTimestamp.Before(&n.Created)
}

// own says in what way p is the pod that an allocation is for, "" if it is not.
func (p *Pod) own(a *v1alpha1.IPAllocation) string {
	uid := a.Spec.PodRef.UID
	switch {
	case p == nil:
		return ""
	case uid == "" && !a.CreationTimestamp.Before(&p.Created):
		return "pod of the name exists"
	case uid == "":
		return ""
	case p.UID == uid:
		return "pod exists"
	case p.Mirrors == uid && !p.Deleting: // its kubelet makes it again if it is real
		return "mirror of the static pod exists"
	}
	return ""
}

// elsewhere reports whether p is known not to be on an allocation's node.
func (p *Pod) elsewhere(a *v1alpha1.IPAllocation) bool { return p.Placed && p.Node != a.Spec.NodeName }

// Holds reports whether p, which has the name in an allocation's podRef, is the pod that the
// allocation is for, and not another one of its name.
func (p *Pod) Holds(a *v1alpha1.IPAllocation) bool { return p.own(a) != "" && !p.elsewhere(a) }

// Unplaced reports whether the evidence rests on a pod whose place is not known yet:
// whether it is on the allocation's node, or, if nothing runs there any more, whether
// it has ended.
func (e *Evidence) Unplaced(a *v1alpha1.IPAllocation) bool {
	if !a.Spec.Held() || e.Pod.own(a) == "" {
		return false
	}
	return !e.Pod.Placed || e.Pod.Node == "" || e.Pod.Node == a.Spec.NodeName && e.Node.dead() && !e.Pod.Ended
}

// Possible reports whether a pod in the API can have this name and namespace.
func Possible(ref v1alpha1.PodReference) bool {
	return len(validation.IsDNS1123Subdomain(ref.Name)) == 0 && len(validation.IsDNS1123Label(ref.Namespace)) == 0
}

// fromAPI reports whether the API server may have given a UID: 36 characters, of
// which four are dashes and the others are hexadecimal digits in lower case.
func fromAPI(uid types.UID) bool {
	if len(uid) != 36 {
		return false
	}
	for i, c := range []byte(uid) {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		if dash != (c == '-') || !dash && !hexDigit(c) {
			return false
		}
	}
	return true
}

// static reports whether a kubelet may have given a UID to a static pod: an MD5
// sum of its manifest.
func static(uid types.UID) bool {
	if len(uid) != 32 {
		return false
	}
	for _, c := range []byte(uid) {
		if !hexDigit(c) {
			return false
		}
	}
	return true
}

func hexDigit(c byte) bool { return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' }
