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

// claimAddress claims one address. If the attachment holds it already, from a call whose answer
// was lost, that is success; if there is another allocation of it that yields, it is deleted or
// taken over. Where any other address would do, and the holder is hardly ever of this node (shared
// space, not requested, not known to be ours), nobody asks who has it: CreateIfFree.
func (c *Claimer) claimAddress(ctx context.Context, req Request, b *pool.Block, addr netip.Addr, requested bool) (hint.Entry, error) {
	alloc := c.allocation(req, b, addr, requested)
	if b.Shared && !requested && !req.known.mayHold(b.Domain, addr) {
		return c.claimAndNote(ctx, req, alloc, func() (*v1alpha1.IPAllocation, bool, error) { return c.Ledger.CreateIfFree(ctx, alloc) })
	}
	return c.claimAndNote(ctx, req, alloc, func() (*v1alpha1.IPAllocation, bool, error) {
		held, written, err := c.Ledger.Create(ctx, alloc)
		if ledger.IsInUse(err) {
			return c.takeIfYields(ctx, req, alloc, err)
		}
		return held, written, err
	})
}

// claimAndNote sends a claim, and enters in the hint what became of it. If it was not answered, or
// if the answer proves that etcd was set back, it releases what was claimed. written is false if
// the attachment held the address before.
func (c *Claimer) claimAndNote(ctx context.Context, req Request, alloc *v1alpha1.IPAllocation, send func() (held *v1alpha1.IPAllocation, written bool, err error)) (hint.Entry, error) {
	e := entryOf(alloc)
	e.Record = nil // nothing is on record before the answer
	held, written, err := send()
	switch {
	case err == nil && written && req.known.provesSetBack(held):
		return hint.Entry{}, c.undoAfterSetBack(ctx, entryOf(held))
	case err == nil:
		e = entryOf(held)
		c.Hint.Claimed(e)
		return e, nil
	case errors.Is(err, ledger.ErrUnanswered):
		return hint.Entry{}, errors.Join(fmt.Errorf("claiming %s: %w", e.Address, err), c.rollBack(ctx, []hint.Entry{e}))
	default:
		c.Hint.NotClaimed(e)
		return hint.Entry{}, err
	}
}

// allocation returns the IPAllocation that claims an address for a request. In a pool without the
// fields that came later (domain, owner, releaseCooldown, the window label) it has exactly the
// fields and labels that the policy for nodes of an earlier version allows: while a cluster is
// upgraded that may still be in force.
func (c *Claimer) allocation(req Request, b *pool.Block, addr netip.Addr, requested bool) *v1alpha1.IPAllocation {
	var started *metav1.MicroTime
	if !req.started.IsZero() {
		started = &metav1.MicroTime{Time: req.started.UTC()}
	}
	var owner *v1alpha1.AllocationOwner
	if req.hasOwnAddressIn(b) && !requested {
		owner = req.owner
	}
	domain := b.Domain
	if domain == b.Pool.Name {
		domain = ""
	}
	var cooldown *metav1.Duration
	if d := c.cooldownOf(b); d > 0 {
		cooldown = &metav1.Duration{Duration: d}
	}
	a := c.newAllocation(v1alpha1.AllocationName(b.Domain, addr), v1alpha1.IPAllocationSpec{
		PoolRef:       b.Pool,
		Domain:        domain,
		Address:       addr.String(),
		NodeName:      c.Ledger.Node,
		PodRef:        req.Pod,
		ContainerID:   req.ContainerID,
		InterfaceName: req.Interface,
		NetworkName:   req.Network,
		DeviceID:      req.DeviceID,
		Requested:     requested,
		AddStartedAt:  started,
		Owner:         owner,

		ReleaseCooldown: cooldown,
	})
	if listsWindows := b.Shared || len(b.Overflow) > 0 || domain != "" || b.Sticky; !listsWindows {
		delete(a.Labels, v1alpha1.LabelWindow)
	}
	return a
}

// cooldownOf returns how long addresses of a pool rest after their release: what the pool
// says, or else this node.
func (c *Claimer) cooldownOf(b *pool.Block) time.Duration {
	if b.ReleaseCooldown != nil {
		return b.ReleaseCooldown.Duration
	}
	return c.ReleaseCooldown
}

// newAllocation returns an IPAllocation of that name, with its labels.
func (c *Claimer) newAllocation(name string, spec v1alpha1.IPAllocationSpec) *v1alpha1.IPAllocation {
	return &v1alpha1.IPAllocation{
		ObjectMeta: metav1.ObjectMeta{
			Name:      name,
			Namespace: c.Ledger.Namespace,
			Labels:    v1alpha1.AllocationLabels(&spec),
		},
		Spec: spec,
	}
}
