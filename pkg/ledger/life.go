// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// The states of an allocation are at v1alpha1.IPAllocation. A takeover leaves the UID as
// it is, so a UID alone does not say who holds the address: a release names the
// attachment, and a takeover the resource version.

// Holding is an allocation as one attachment of this node has claimed it.
type Holding struct {
	Name        string
	UID         types.UID
	ContainerID string
	Interface   string
	// Started is when its ADD began, in microseconds since 1970; 0 if that is unknown.
	Started int64
}

// ReleaseKept releases an allocation that outlives its attachment, in one write, if the
// attachment still holds it. It returns the released allocation, or nil if the attachment
// holds it no more, or if what a machine moves to has taken its place: see endMove.
func (l *Ledger) ReleaseKept(ctx context.Context, h Holding, at time.Time) (released *v1alpha1.IPAllocation, err error) {
	patch, err := json.Marshal(l.releasePatch(h, at))
	if err != nil {
		return nil, err
	}
	err = Retry(ctx, func(ctx context.Context) error {
		var err error
		released, err = l.Client.IPAllocations(l.Namespace).Patch(ctx, h.Name, types.JSONPatchType, patch, metav1.PatchOptions{})
		if err == nil {
			return nil
		}
		released = nil
		switch {
		case NotFound(err):
			return nil
		case apierrors.IsInvalid(err), apierrors.IsBadRequest(err), apierrors.IsConflict(err): // somebody has changed it
			now, failed := Existing(l.Client.IPAllocations(l.Namespace).Get(ctx, h.Name, metav1.GetOptions{}))
			switch {
			case failed != nil:
				return errors.Join(err, failed)
			case now == nil:
				return nil
			case now.Spec.Next != nil:
				return l.endMove(ctx, h, now)
			case !l.isLast(h, now):
				return nil
			case now.Spec.Held():
				return err
			}
			released = now
			return nil
		}
		return err
	})
	return released, err
}

type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value"`
}

// releasePatch tests who holds the allocation. If it is known when the ADD began, that
// tells more than the UID.
func (l *Ledger) releasePatch(h Holding, at time.Time) []operation {
	ops := []operation{
		{"test", "/spec/nodeName", l.Node}, {"test", "/spec/containerID", h.ContainerID}, {"test", "/spec/interfaceName", h.Interface},
	}
	if h.Started != 0 {
		ops = append(ops, operation{"test", "/spec/addStartedAt", metav1.NewMicroTime(time.UnixMicro(h.Started).UTC())})
	} else if h.UID != "" {
		ops = append(ops, operation{"test", "/metadata/uid", h.UID})
	}
	return append(ops,
		operation{"add", "/spec/releasedAt", metav1.NewTime(at.UTC())},
		operation{"add", "/metadata/labels/" + strings.ReplaceAll(v1alpha1.LabelReleased, "/", "~1"), "true"})
}

// isLast reports whether a claim is the last attachment of an allocation.
func (l *Ledger) isLast(h Holding, a *v1alpha1.IPAllocation) bool {
	switch {
	case !Same(&a.Spec, &v1alpha1.IPAllocationSpec{NodeName: l.Node, ContainerID: h.ContainerID, InterfaceName: h.Interface}):
		return false
	case h.Started != 0:
		return a.Spec.AddStartedAt != nil && a.Spec.AddStartedAt.UnixMicro() == h.Started
	}
	return h.UID == "" || a.UID == h.UID
}

// TakeOver makes alloc's attachment the holder of an allocation that is released or
// reserved, as it was read. The pool that the address was taken from stays, and so does
// its owner. If somebody has changed the allocation since, it returns an InUseError with
// the allocation as it is now; without a holder if it is gone. The error is ErrUnanswered
// if the takeover may still be carried out.
func (l *Ledger) TakeOver(ctx context.Context, holder, alloc *v1alpha1.IPAllocation) (held *v1alpha1.IPAllocation, err error) {
	patch, err := TakeoverPatch(holder, alloc)
	if err != nil {
		return nil, err
	}
	return l.claimBy(ctx, patch, alloc)
}

// claimBy claims an address by a patch of its allocation as that was read, and returns the
// allocation as that of alloc's attachment: see OfAttachment. The errors are those of TakeOver.
func (l *Ledger) claimBy(ctx context.Context, patch []byte, alloc *v1alpha1.IPAllocation) (mine *v1alpha1.IPAllocation, err error) {
	unanswered := false
	err = Retry(ctx, func(ctx context.Context) error {
		now, err := l.Client.IPAllocations(l.Namespace).Patch(ctx, alloc.Name, types.MergePatchType, patch, metav1.PatchOptions{})
		if err != nil {
			unanswered = unanswered || !Refused(err)
			if !apierrors.IsConflict(err) && !NotFound(err) {
				return err
			}
			now, err = Existing(l.Client.IPAllocations(l.Namespace).Get(ctx, alloc.Name, metav1.GetOptions{}))
		}
		if err != nil {
			unanswered = true // this attachment may be the holder
			return err
		}
		if mine = OfAttachment(now, &alloc.Spec); mine == nil {
			addr, _ := netip.ParseAddr(alloc.Spec.Address) // never fails: it was written from an address
			return &InUseError{Address: addr, Holder: now}
		}
		return nil
	})
	if unanswered && err != nil && !IsInUse(err) {
		err = fmt.Errorf("%w, %w", err, ErrUnanswered)
	}
	return mine, err
}

// TakeoverPatch returns the merge patch that makes of a holder, as it was read, what alloc
// is. The pool that the address was taken from stays, and so does the owner if alloc has none.
func TakeoverPatch(holder, alloc *v1alpha1.IPAllocation) ([]byte, error) {
	spec, before, err := instead(&holder.Spec, &alloc.Spec)
	if err != nil {
		return nil, err
	}
	for _, stays := range []string{"poolRef", "domain", "address"} {
		delete(spec, stays)
	}
	if alloc.Spec.Owner == nil {
		delete(spec, "owner")
	}
	switch {
	case alloc.Spec.PodRef == v1alpha1.PodReference{}:
		spec["podRef"] = nil
	case before["podRef"] != nil && alloc.Spec.PodRef.UID == "":
		spec["podRef"] = map[string]any{"namespace": alloc.Spec.PodRef.Namespace, "name": alloc.Spec.PodRef.Name, "uid": nil}
	}
	named := map[string]any{v1alpha1.LabelReleased: nil, v1alpha1.LabelNode: nil, v1alpha1.LabelContainer: nil}
	for key, value := range alloc.Labels {
		named[key] = value
	}
	delete(named, v1alpha1.LabelOwner) // stays with the owner
	named[v1alpha1.LabelPool] = v1alpha1.LabelValue(holder.Spec.PoolRef.Name)
	return json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": holder.ResourceVersion, "labels": named},
		"spec":     spec,
	})
}

// instead returns a JSON merge patch that turns object into now: now's fields, and null for those
// that only object has; and object's own fields. What is nested is merged, not replaced.
func instead(object, now any) (patch, before map[string]any, err error) {
	if before, err = fields(object); err != nil {
		return nil, nil, err
	}
	if patch, err = fields(now); err != nil {
		return nil, nil, err
	}
	for field := range before {
		if _, set := patch[field]; !set {
			patch[field] = nil
		}
	}
	return patch, before, nil
}

func fields(object any) (out map[string]any, err error) {
	data, err := json.Marshal(object)
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	return out, err
}

// Released lists the allocations of all pools that are released, without those that a workload
// keeps: there may be thousands.
func (l *Ledger) Released(ctx context.Context) ([]v1alpha1.IPAllocation, error) {
	all, err := l.list(ctx, v1alpha1.LabelReleased+"=true,!"+v1alpha1.LabelOwner, (*v1alpha1.IPAllocationSpec).Released)
	if err != nil {
		return nil, fmt.Errorf("listing the released addresses: %w", err)
	}
	return all, nil
}

// OfIdentity lists the allocations of the same sticky identity as one.
func (l *Ledger) OfIdentity(ctx context.Context, spec *v1alpha1.IPAllocationSpec) ([]v1alpha1.IPAllocation, error) {
	selector := labels.Set{v1alpha1.LabelOwner: v1alpha1.OwnerLabel(spec.Owner.UID)}
	all, err := l.list(ctx, selector.String(), spec.SameIdentity)
	if err != nil {
		return nil, fmt.Errorf("listing the addresses that %s %s/%s keeps: %w", spec.Owner.Kind, spec.Owner.Namespace, spec.Owner.Name, err)
	}
	return all, nil
}

// list lists the allocations with these labels that are meant: a label may be wrong.
func (l *Ledger) list(ctx context.Context, selector string, meant func(*v1alpha1.IPAllocationSpec) bool) (all []v1alpha1.IPAllocation, err error) {
	err = Retry(ctx, func(context.Context) error { // the list has all the time of ctx
		all = all[:0]
		opts := metav1.ListOptions{LabelSelector: selector, Limit: pageSize}
		for {
			page, err := l.Client.IPAllocations(l.Namespace).List(ctx, opts)
			if err != nil {
				return err
			}
			for _, a := range page.Items {
				if meant(&a.Spec) {
					all = append(all, a)
				}
			}
			if opts.Continue = page.Continue; opts.Continue == "" {
				return nil
			}
		}
	})
	return all, err
}
