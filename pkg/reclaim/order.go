// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package reclaim

import (
	"cmp"
	"maps"
	"slices"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// order is how one sandbox of a pod stands to another.
type order int

const (
	latest   order = iota // there is no later one
	replaced              // the other is later
	unclear               // nobody can tell
)

// LaterSandbox returns an allocation whose sandbox is a reason to free a's address,
// nil if there is none.
func (e *Evidence) LaterSandbox(a *v1alpha1.IPAllocation) *v1alpha1.IPAllocation {
	if other, order := e.otherSandbox(a); order == replaced {
		return other
	}
	return e.nextStatic(a)
}

// otherSandbox finds out whether another sandbox of a's pod on its node has
// replaced that of a, whatever the network, the interface and the pool: a sandbox
// is one container with all of its interfaces. It returns an allocation that
// shows it, and a replaced sandbox before one that is unclear.
func (e *Evidence) otherSandbox(a *v1alpha1.IPAllocation) (*v1alpha1.IPAllocation, order) {
	others := func(o *v1alpha1.IPAllocation) bool { return o.Spec.ContainerID != a.Spec.ContainerID }
	if !slices.ContainsFunc(e.Others, others) {
		return nil, latest // of nearly all pods, and quick for one with hundreds of addresses
	}
	sandboxes := e.sandboxes(a, e.samePod)
	mine := slices.Concat(sandboxes[a.Spec.ContainerID], []*v1alpha1.IPAllocation{a})
	delete(sandboxes, a.Spec.ContainerID)
	var doubt *v1alpha1.IPAllocation
	for _, id := range slices.Sorted(maps.Keys(sandboxes)) { // so that one question has one answer
		switch shows, how := compare(mine, sandboxes[id]); how {
		case replaced:
			return shows, replaced
		case unclear:
			doubt = sandboxes[id][0]
		}
	}
	if doubt != nil {
		return doubt, unclear
	}
	return nil, latest
}

// nextStatic returns an allocation of a later static pod of a's name on its node,
// nil if there is none. A kubelet runs one static pod of a name at a time; only
// after its own restart it may start the next while the first still ends.
func (e *Evidence) nextStatic(a *v1alpha1.IPAllocation) *v1alpha1.IPAllocation {
	if !static(a.Spec.PodRef.UID) {
		return nil
	}
	sandboxes := e.sandboxes(a, otherStatic)
	for _, id := range slices.Sorted(maps.Keys(sandboxes)) {
		if shows, how := compare([]*v1alpha1.IPAllocation{a}, sandboxes[id]); how == replaced {
			return shows
		}
	}
	return nil
}

// sandboxes are the allocations on a's node for pods of its name that are in some
// relation to a, by container.
func (e *Evidence) sandboxes(a *v1alpha1.IPAllocation, related func(a, o *v1alpha1.IPAllocation) bool) map[string][]*v1alpha1.IPAllocation {
	out := map[string][]*v1alpha1.IPAllocation{}
	mine := a.Spec.PodRef
	if !Possible(mine) {
		return out
	}
	for _, o := range e.Others {
		id, ref := o.Spec.ContainerID, o.Spec.PodRef
		if o.Spec.Held() && o.Spec.NodeName == a.Spec.NodeName && ref.Name == mine.Name && ref.Namespace == mine.Namespace && related(a, o) {
			out[id] = append(out[id], o)
		}
	}
	return out
}

// samePod reports whether two allocations for pods of one name are for one pod. If
// the runtime gave no UID, a pod of the name that was there before both has to be
// there: a later one of the name may run beside what is left of the first.
func (e *Evidence) samePod(a, o *v1alpha1.IPAllocation) bool {
	x, y := a.Spec.PodRef.UID, o.Spec.PodRef.UID
	if x != "" && y != "" {
		return x == y
	}
	return e.Pod.own(a) != "" && e.Pod.own(o) != "" && !e.Pod.elsewhere(a)
}

// otherStatic reports whether o is for another static pod than a, which is for one.
func otherStatic(a, o *v1alpha1.IPAllocation) bool {
	x, y := a.Spec.PodRef.UID, o.Spec.PodRef.UID
	return x != y && static(y)
}

// compare compares two sandboxes on one node, of which the second may be later,
// by all pairs of their allocations. Two clocks tell: the node's, addStartedAt, and
// the API server's, creationTimestamp, which no later write changes. Neither is
// enough: the node's may be set back between two ADDs, and a create may be carried
// out long after its ADD has failed. So one pair has to be in order by both, and
// none may say the opposite by either. It returns the later one of such a pair.
func compare(mine, theirs []*v1alpha1.IPAllocation) (shows *v1alpha1.IPAllocation, how order) {
	var after, before bool // any pair says that theirs is later, or earlier
	var earlier bool       // a pair says so by both clocks
	for _, m := range mine {
		for _, t := range theirs {
			started, created := startedAfter(t, m), t.CreationTimestamp.Compare(m.CreationTimestamp.Time)
			after, before = after || started > 0 || created > 0, before || started < 0 || created < 0
			switch {
			case started > 0 && created > 0:
				shows = t
			case started < 0 && created < 0:
				earlier = true
			}
		}
	}
	switch {
	case shows != nil && !before:
		return shows, replaced
	case earlier && !after:
		return nil, latest
	}
	return nil, unclear
}

// startedAfter compares when two ADDs began: positive if a's was later, 0 if they
// began at once or if one of the two is not known.
func startedAfter(a, b *v1alpha1.IPAllocation) int {
	x, y := a.Spec.AddStartedAt, b.Spec.AddStartedAt
	if x == nil || y == nil {
		return 0
	}
	return cmp.Compare(x.UnixMicro(), y.UnixMicro())
}
