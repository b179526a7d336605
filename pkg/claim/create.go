// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// create claims one address. It succeeds, too, if this attachment already holds the
// address, from a call whose answer was lost. If another holds it and yields, its claim
// is deleted first; in a space that nodes share that is not asked, unless the address was
// requested, or may be this attachment's: the holder is hardly ever of this node, and another
// address will do.
func (c *Claimer) create(ctx context.Context, req Request, b *pool.Block, addr netip.Addr, requested bool) (hint.Entry, error) {
	e := hint.Entry{Attachment: req.Attachment, Domain: b.Domain, Address: addr}
	alloc := c.allocation(req, b, addr, requested)
	create := c.Create
	if b.Shared && !requested && !req.known.mayHold(b.Domain, addr) {
		create = c.CreateIfFree
	}
	held, created, err := create(ctx, alloc)
	var inUse *ledger.InUseError
	if errors.As(err, &inUse) && inUse.Holder != nil && c.yields(inUse.Holder, req) {
		if failed := c.deleteHolder(ctx, inUse.Holder); failed != nil {
			err = fmt.Errorf("%w; %w", err, failed)
		} else {
			held, created, err = c.Create(ctx, alloc)
		}
	}
	switch {
	case err == nil && created && req.known.setBackBefore(held):
		e.UID = held.UID
		return hint.Entry{}, c.undoAfterSetBack(ctx, e)
	case err == nil:
		e = entryOf(held)
		c.Hint.Claimed(e)
		return e, nil
	case errors.Is(err, ledger.ErrUnanswered):
		return hint.Entry{}, errors.Join(fmt.Errorf("claiming %s: %w", addr, err), c.rollBack(ctx, []hint.Entry{e}))
	default:
		c.Hint.NotClaimed(e)
		return hint.Entry{}, err
	}
}

// yields reports whether a claim may be deleted in favour of a request, because its
// holder is a container of this node that no longer runs:
//
//  1. The release of the claim is pending on this node.
//  2. The holder is an earlier sandbox of the same pod: its ADD began before this one.
//     A kubelet starts a new sandbox only after it has stopped the earlier one. If the
//     start of either ADD is unknown, the holder does not yield.
//
// Otherwise the address is in use.
func (c *Claimer) yields(holder *v1alpha1.IPAllocation, req Request) bool {
	s := &holder.Spec
	if s.NodeName != c.Node || s.ContainerID == "" {
		return false
	}
	if e := entryOf(holder); c.Hint.IsPending(e) || c.Hint.IsPending(e.Unanswered()) { // 1
		return true
	}
	return s.ContainerID != req.ContainerID && s.PodRef == req.Pod && req.Pod.Name != "" && // 2
		s.AddStartedAt != nil && !req.started.IsZero() && s.AddStartedAt.Time.Before(req.started) &&
		time.Since(holder.CreationTimestamp.Time) > sandboxAge
}

// deleteHolder deletes the claim of a holder that yields.
func (c *Claimer) deleteHolder(ctx context.Context, holder *v1alpha1.IPAllocation) error {
	e := entryOf(holder)
	if _, err := c.Delete(ctx, holder.Name, holder.UID); err != nil {
		return fmt.Errorf("releasing %s, which the earlier container %s holds: %w", e.Address, e.ContainerID, err)
	}
	c.Hint.Released(e)
	c.Hint.Released(e.Unanswered())
	c.Hint.NotClaimed(e)
	c.Log.Info("deleted the claim of an earlier container", "address", e.Address, "domain", e.Domain, "earlier", e.ContainerID)
	return nil
}

// allocation returns the IPAllocation that claims an address for a request. In a pool that
// an earlier version knows, too, it is as that version makes it, so that its policy for
// nodes allows it while a cluster is upgraded.
func (c *Claimer) allocation(req Request, b *pool.Block, addr netip.Addr, requested bool) *v1alpha1.IPAllocation {
	var started *metav1.MicroTime
	if !req.started.IsZero() {
		started = &metav1.MicroTime{Time: req.started.UTC()}
	}
	domain := b.Domain
	if domain == b.Pool.Name {
		domain = ""
	}
	a := c.named(v1alpha1.AllocationName(b.Domain, addr), v1alpha1.IPAllocationSpec{
		PoolRef:       b.Pool,
		Domain:        domain,
		Address:       addr.String(),
		NodeName:      c.Node,
		PodRef:        req.Pod,
		ContainerID:   req.ContainerID,
		InterfaceName: req.Interface,
		NetworkName:   req.Network,
		DeviceID:      req.DeviceID,
		Requested:     requested,
		AddStartedAt:  started,
	})
	if !b.Shared && len(b.Overflow) == 0 && domain == "" { // nobody lists its window
		delete(a.Labels, v1alpha1.LabelWindow)
	}
	return a
}

// named returns the IPAllocation of that name, with its labels.
func (c *Claimer) named(name string, spec v1alpha1.IPAllocationSpec) *v1alpha1.IPAllocation {
	return &v1alpha1.IPAllocation{
		ObjectMeta: metav1.ObjectMeta{
			Name:      name,
			Namespace: c.Namespace,
			Labels:    v1alpha1.AllocationLabels(&spec),
		},
		Spec: spec,
	}
}
