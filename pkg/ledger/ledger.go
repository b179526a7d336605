// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ledger is the record of who holds which address: the IPAllocations of one
// namespace in the API server. A node's requests about one are made here, those about
// the pools of the namespace as well (Pools), and what an answer proves is decided here.
//
//	Create      claims an address: the API server lets one create of a name win
//	Delete      gives it back, if it is still the allocation that is meant
//	ReleaseKept gives back one that outlives its container
//	TakeOver    claims one whose holder yields
//	Join        claims one that moves to this node
//	Get         reads one
//	OfNode      lists those that name a node
//	Held        lists which addresses of a domain have one
//
// The methods of Ledger repeat a request until it succeeds, fails for good, or its time is over
// (Retry); those of Pools make one, since the controller has queues.
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

// Ledger makes the requests of one node.
type Ledger struct {
	// Client of the API server. It should neither throttle nor retry.
	Client clientv1alpha1.NvIpamV1alpha1Interface
	// Namespace of the pools and their allocations.
	Namespace string
	// Node is the name of this node's Node object.
	Node string
}

// RequestTime bounds one request about one object: if it hangs, there is time left to
// repeat it on another connection. A list may take all the time of its call.
const RequestTime = 5 * time.Second

// pageSize bounds what one answer of a list holds in memory.
const pageSize = 500

// Same reports whether two allocations belong to one attachment: one interface of one
// container on one node. The container ID alone proves nothing: two nodes may have the
// same, since cnitool derives it from a path, and every node can read another's.
func Same(a, b *v1alpha1.IPAllocationSpec) bool {
	return a.NodeName == b.NodeName && a.ContainerID == b.ContainerID && a.InterfaceName == b.InterfaceName
}

// Create claims an address: it creates the IPAllocation, and returns it as the API server
// has it. created is false if the attachment already held the address, for example because
// an earlier answer was lost. The error is an InUseError if there is an allocation of the address
// that this attachment does not hold, and ErrUnanswered if the API server may still create the
// allocation later.
func (l *Ledger) Create(ctx context.Context, alloc *v1alpha1.IPAllocation) (held *v1alpha1.IPAllocation, created bool, err error) {
	return l.create(ctx, alloc, false)
}

// CreateIfFree is Create for an address that any other would do for. It does not ask who
// the holder is, and saves that request: the InUseError has no Holder. The attachment may
// be the holder only if an answer to this call was lost, and then it does ask.
func (l *Ledger) CreateIfFree(ctx context.Context, alloc *v1alpha1.IPAllocation) (held *v1alpha1.IPAllocation, created bool, err error) {
	return l.create(ctx, alloc, true)
}

// create is Create. With ifFree it reads who has the address only if an answer of this call was
// lost. unanswered: the API server may have created, or may still create, our object;
// AlreadyExists does not set it, since that is an answer (Refused).
func (l *Ledger) create(ctx context.Context, alloc *v1alpha1.IPAllocation, ifFree bool) (held *v1alpha1.IPAllocation, created bool, err error) {
	unanswered := false
	addr, _ := netip.ParseAddr(alloc.Spec.Address) // never fails: it was written from an address
	err = Retry(ctx, func(ctx context.Context) error {
		made, err := l.Client.IPAllocations(l.Namespace).Create(ctx, alloc, metav1.CreateOptions{})
		if err == nil {
			held, created = made, true
			return nil
		}
		if !Refused(err) {
			unanswered = true
		}
		if !apierrors.IsAlreadyExists(err) {
			return err
		}
		if ifFree && !unanswered {
			return &InUseError{Address: addr}
		}
		holder, err := l.Client.IPAllocations(l.Namespace).Get(ctx, alloc.Name, metav1.GetOptions{})
		switch {
		case NotFound(err): // released between the two requests: Retry creates again
			return tryAgain("create")
		case err != nil:
			unanswered = true // this attachment may be the holder
			return err
		case !Same(&holder.Spec, &alloc.Spec) || !holder.Spec.Held():
			return &InUseError{Address: addr, Holder: holder}
		}
		held = holder
		return nil
	})
	if unanswered && err != nil && !IsInUse(err) {
		err = fmt.Errorf("%w, %w", err, ErrUnanswered)
	}
	return held, created, err
}

// Get reads an allocation. It returns nil and no error if there is none.
func (l *Ledger) Get(ctx context.Context, name string) (*v1alpha1.IPAllocation, error) {
	var alloc *v1alpha1.IPAllocation
	err := Retry(ctx, func(ctx context.Context) (err error) {
		alloc, err = l.Client.IPAllocations(l.Namespace).Get(ctx, name, metav1.GetOptions{})
		return err
	})
	return Existing(alloc, err)
}

// Delete deletes the allocation if it still has that UID: a late release never frees
// what somebody else has claimed since. It succeeds if the allocation is already gone;
// replaced is true if there is another one of that name.
func (l *Ledger) Delete(ctx context.Context, name string, uid types.UID) (replaced bool, err error) {
	return l.delete(ctx, name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
}

// DeleteUnchanged deletes an allocation if nobody has changed it since it was read. gone is
// false if somebody has, and true if it does not exist any more.
func (l *Ledger) DeleteUnchanged(ctx context.Context, a *v1alpha1.IPAllocation) (gone bool, err error) {
	changed, err := l.delete(ctx, a.Name, IfUnchanged(a))
	return err == nil && !changed, err
}

// IfUnchanged are the options of a delete that fails with a conflict if somebody has changed
// the allocation since it was read.
func IfUnchanged(a *v1alpha1.IPAllocation) metav1.DeleteOptions {
	return metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &a.UID, ResourceVersion: &a.ResourceVersion}}
}

// delete deletes an allocation unless its preconditions fail. It succeeds if they do, and if
// it is already gone.
func (l *Ledger) delete(ctx context.Context, name string, opts metav1.DeleteOptions) (failed bool, err error) {
	err = Retry(ctx, func(ctx context.Context) error {
		err := l.Client.IPAllocations(l.Namespace).Delete(ctx, name, opts)
		failed = apierrors.IsConflict(err) && !apierrors.IsUnexpectedServerError(err)
		if failed || NotFound(err) {
			return nil
		}
		return err
	})
	return failed, err
}

// OfNode lists what this node holds. What was created before `at` is in the list, if
// it has not been deleted. version is the resource version of the list, 0 if it is not a
// number. This is the most expensive request: the API server looks at
// every allocation of the namespace.
func (l *Ledger) OfNode(ctx context.Context) (all []v1alpha1.IPAllocation, at time.Time, version uint64, err error) {
	selector := labels.Set{v1alpha1.LabelNode: v1alpha1.LabelValue(l.Node)}.String()
	err = Retry(ctx, func(context.Context) error { // the list has all the time of ctx
		all, at = all[:0], time.Now()
		opts := metav1.ListOptions{LabelSelector: selector, Limit: pageSize}
		for {
			page, err := l.Client.IPAllocations(l.Namespace).List(ctx, opts)
			if err != nil {
				return err
			}
			if opts.Continue == "" {
				version = v1alpha1.VersionNumber(page.ResourceVersion)
			}
			for _, a := range page.Items {
				if a.Spec.NodeName == l.Node { // the label may be wrong
					all = append(all, a)
				}
			}
			if opts.Continue = page.Continue; opts.Continue == "" {
				return nil
			}
		}
	})
	if err != nil {
		return nil, at, 0, fmt.Errorf("listing the allocations of node %s: %w", l.Node, err)
	}
	return all, at, version, nil
}

// Version returns the resource version that the allocations are at now, 0 if it is not a
// number. It reads at most one of them.
func (l *Ledger) Version(ctx context.Context) (version uint64, err error) {
	err = Retry(ctx, func(ctx context.Context) error {
		page, err := l.Client.IPAllocations(l.Namespace).List(ctx, metav1.ListOptions{Limit: 1})
		if err == nil {
			version = v1alpha1.VersionNumber(page.ResourceVersion)
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("listing one allocation: %w", err)
	}
	return version, nil
}
