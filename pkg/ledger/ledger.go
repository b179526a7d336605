// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ledger is the record of who holds which address: the IPAllocations of one
// namespace in the API server. A node's requests about one are made here, those about
// the pools of the namespace as well (Pools), and what an answer proves is decided here.
//
//	Create   claims an address: the API server lets one create of a name win
//	Delete   gives it back, if it is still the allocation that is meant
//	Get      reads one
//	OfNode   lists what a node holds
//
// A request is tried again until it succeeds, is refused for good, or the context
// ends (Retry).
package ledger

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
)

// Ledger is the record as one node uses it.
type Ledger struct {
	// Client of the API server. It should neither throttle nor retry.
	Client clientv1alpha1.NvIpamV1alpha1Interface
	// Namespace of the pools and their allocations.
	Namespace string
	// Node whose containers' addresses these are.
	Node string
}

// RequestTime bounds one request about one object, so that one that hangs leaves
// time to ask again on another connection. A list may take all the time of its call.
const RequestTime = 5 * time.Second

// pageSize bounds what one answer of a list holds in memory.
const pageSize = 500

// Same reports whether two allocations are of one attachment: one interface of one
// container on one node. Container IDs alone do not tell nodes apart: cnitool makes
// them from a path, and any node can read another's.
func Same(a, b *v1alpha1.IPAllocationSpec) bool {
	return a.NodeName == b.NodeName && a.ContainerID == b.ContainerID && a.InterfaceName == b.InterfaceName
}

// Create claims an address, and reports whether that made the allocation: it may
// have been the attachment's before. If another attachment has it, the error is an
// InUseError. It is ErrUnanswered if the allocation may be made later on.
func (l *Ledger) Create(ctx context.Context, alloc *v1alpha1.IPAllocation) (uid types.UID, created bool, err error) {
	unanswered := false
	err = Retry(ctx, func(ctx context.Context) error {
		made, err := l.Client.IPAllocations(l.Namespace).Create(ctx, alloc, metav1.CreateOptions{})
		if err == nil {
			uid, created = made.UID, true
			return nil
		}
		if !Refused(err) {
			unanswered = true
		}
		if !apierrors.IsAlreadyExists(err) {
			return err
		}
		holder, err := l.Client.IPAllocations(l.Namespace).Get(ctx, alloc.Name, metav1.GetOptions{})
		switch {
		case NotFound(err): // released between the two requests
			return apierrors.NewServerTimeout(v1alpha1.Resource("ipallocations"), "create", 0)
		case err != nil:
			unanswered = true // the holder may be this very attachment
			return err
		case !Same(&holder.Spec, &alloc.Spec):
			addr, _ := netip.ParseAddr(alloc.Spec.Address) // made from one
			return &InUseError{Address: addr, Holder: holder}
		}
		uid = holder.UID
		return nil
	})
	if unanswered && err != nil && !IsInUse(err) {
		err = fmt.Errorf("%w, %w", err, ErrUnanswered)
	}
	return uid, created, err
}

// Get reads an allocation; nil without an error if there is none.
func (l *Ledger) Get(ctx context.Context, name string) (*v1alpha1.IPAllocation, error) {
	var alloc *v1alpha1.IPAllocation
	err := Retry(ctx, func(ctx context.Context) (err error) {
		alloc, err = l.Client.IPAllocations(l.Namespace).Get(ctx, name, metav1.GetOptions{})
		return err
	})
	switch {
	case NotFound(err):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return alloc, nil
}

// Delete deletes the allocation if it is still the one with that UID, so that a late
// release never frees what somebody else has claimed since. That it is gone already
// is no error.
func (l *Ledger) Delete(ctx context.Context, name string, uid types.UID) error {
	return Retry(ctx, func(ctx context.Context) error {
		err := l.Client.IPAllocations(l.Namespace).Delete(ctx, name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
		if NotFound(err) || apierrors.IsConflict(err) && !apierrors.IsUnexpectedServerError(err) {
			return nil
		}
		return err
	})
}

// OfNode lists what this node holds, and returns since when nothing may be missing.
// It is the most expensive request there is: the API server looks at every
// allocation of the namespace.
func (l *Ledger) OfNode(ctx context.Context) (all []v1alpha1.IPAllocation, at time.Time, err error) {
	selector := labels.Set{v1alpha1.LabelNode: v1alpha1.LabelValue(l.Node)}.String()
	err = retry(ctx, 0, func(ctx context.Context) error {
		all, at = all[:0], time.Now()
		opts := metav1.ListOptions{LabelSelector: selector, Limit: pageSize}
		for {
			page, err := l.Client.IPAllocations(l.Namespace).List(ctx, opts)
			if err != nil {
				return err
			}
			for _, a := range page.Items {
				if a.Spec.NodeName == l.Node { // a label can say anything
					all = append(all, a)
				}
			}
			if opts.Continue = page.Continue; opts.Continue == "" {
				return nil
			}
		}
	})
	if err != nil {
		return nil, at, fmt.Errorf("listing the allocations of node %s: %w", l.Node, err)
	}
	return all, at, nil
}
