// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
)

// Releasable is an allocation that may be released, and what speaks for and against it.
type Releasable struct {
	Holder

	// Refusal says why it must not be; "" if it may.
	Refusal string `json:"refusal,omitempty"`
	// Doubt says why it may be wrong to release it, and when it is right; "" if nothing is known.
	Doubt string `json:"doubt,omitempty"`

	version string
}

// Releasable looks an allocation up, by its name or its address, and asks whether somebody
// uses it.
func (c *Cluster) Releasable(ctx context.Context, text string) (*Releasable, error) {
	pools, err := c.pools(ctx)
	if err != nil {
		return nil, err
	}
	found, err := c.named(ctx, text)
	only := c.Limited()
	_, noAddress := parseAddress(text)
	switch {
	case err != nil:
		return nil, err
	case only != "" && noAddress == nil:
		return nil, fmt.Errorf("%s may be held in another namespace than %s: name the one that is meant with -n", text, only)
	case len(found) == 0:
		return nil, fmt.Errorf("no allocation has the name or the address %q: it is free, or of another namespace", text)
	case len(found) > 1:
		var names []string
		for _, a := range found {
			names = append(names, a.Namespace+"/"+a.Name)
		}
		slices.Sort(names)
		return nil, fmt.Errorf("%s is held %d times, in different domains or namespaces: name one of %q", text, len(found), names)
	}
	a := found[0]
	l := c.live(pools)
	v, err := l.verdict(ctx, a)
	if err != nil {
		return nil, fmt.Errorf("cannot say whether a pod uses it: %w", err)
	}
	out := &Releasable{Holder: holderOf(a, v), version: a.ResourceVersion}
	moves := false
	if next := a.Spec.Next; next != nil {
		p, err := l.pod(ctx, next.PodRef)
		if err != nil {
			return nil, fmt.Errorf("cannot say whether a pod uses it: %w", err)
		}
		moves = p != nil && p.UID == next.PodRef.UID && !p.Ended
	}
	used, err := l.instead(ctx, a)
	if err != nil {
		return nil, err
	}
	unseen := l.wornBy(ctx, a, &v)
	if unseen != nil && !refused(unseen) {
		return nil, unseen
	}
	out.judge(a, v, moves, used, unseen)
	return out, nil
}

// judge sets Refusal or Doubt. used is what the pod has in the place of the allocation, unseen why
// it may not be looked at who has the allocation's address.
func (out *Releasable) judge(a *v1alpha1.IPAllocation, v judgement, moves bool, used *v1alpha1.IPAllocation, unseen error) {
	switch {
	case moves:
		out.Refusal = fmt.Sprintf("a machine moves to pod %s with it: wait until it has moved", podKey(a.Spec.Next.PodRef))
	case v.State == stateInUse && used != nil:
		out.Doubt = fmt.Sprintf("pod %s exists, and has %s in its place by its network-status. If you know that no container has it", podKey(a.Spec.PodRef), used.Spec.Address)
	case v.State == stateInUse:
		out.Refusal = fmt.Sprintf("pod %s uses it (%s): if it were free, it would be given to another pod as well; end the pod: %s", podKey(a.Spec.PodRef), v.Message, deletePod(podKey(a.Spec.PodRef)))
	case reservationOf(a) != "" && (v.State == stateReserved || v.State == stateKept):
		out.Refusal = fmt.Sprintf("%s, and the controller would reserve it again: take it out of the reservation: kubectl edit ipr -n %s %s", v.Message, a.Namespace, reservationOf(a))
	case v.State == stateKept, v.State == stateReserved && a.Spec.IsSticky():
		out.Doubt = v.Message + ", and its next container would get another address. If that may be"
	case v.wornBy != nil:
		out.Doubt = v.Reason + ": " + v.Message + ", and " + v.wornBy.says() + ": start that pod again: " + v.wornBy.end() + ". If you know that it does not use it"
	case v.State == stateHeld:
		out.Doubt = v.Reason + ": " + v.Message + "; a container may still use it. If you know that the container is gone"
	case unseen != nil:
		out.Doubt = v.Reason + ": " + v.Message + "; which pods have the address by their network-status may not be looked at (" + unseen.Error() + "). If you know that none has it"
	}
}

// instead returns what the pod of an allocation's name has by its network-status in the place of
// the allocation: another one of the same attachment; nil if that is none.
func (l *live) instead(ctx context.Context, a *v1alpha1.IPAllocation) (*v1alpha1.IPAllocation, error) {
	p, err := l.pod(ctx, a.Spec.PodRef)
	if p == nil || err != nil || !a.Spec.Held() {
		return nil, err
	}
	all, err := l.ofPod(ctx, a.Spec.PodRef)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(slices.Clone(all), func(o *v1alpha1.IPAllocation) bool {
		return o.Namespace != a.Namespace || !o.Spec.Held() || attachmentOf(o) != attachmentOf(a)
	})
	if used := p.used(all); used != nil && used.UID != a.UID {
		return used, nil
	}
	return nil, nil
}

// named returns the allocations of a name, which may have a namespace before it, or of an address.
func (c *Cluster) named(ctx context.Context, text string) (found []*v1alpha1.IPAllocation, err error) {
	where := fields.Set{}
	if a, err := parseAddress(text); err == nil {
		where[fieldAddress] = a.String()
	} else {
		of, name, has := strings.Cut(text, "/")
		switch {
		case !has:
			name = text
		case !isResource(of):
			where[fieldNamespace] = of
		}
		if _, _, err := v1alpha1.ParseAllocationName(name); err != nil {
			return nil, err
		}
		where[fieldName] = name
	}
	err = c.allocations(ctx, where, func(a *v1alpha1.IPAllocation) { found = append(found, a) })
	return found, err
}

// Release deletes the allocation, if nobody has changed it since it was looked up.
func (c *Cluster) Release(ctx context.Context, r *Releasable) error {
	if r.Refusal != "" {
		return errors.New(r.Refusal)
	}
	err := c.ipam.IPAllocations(r.Namespace).Delete(ctx, r.Allocation, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &r.AllocationID, ResourceVersion: &r.version},
	})
	if ledger.NotFound(err) {
		return nil // somebody else has released it
	}
	return err
}
