// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// claimReleased claims an address whose allocation is believed to be released. holder is that
// allocation, or nil if it has to be read.
func (c *Claimer) claimReleased(ctx context.Context, req Request, b *pool.Block, addr netip.Addr, holder *v1alpha1.IPAllocation) (hint.Entry, error) {
	alloc := c.allocation(req, b, addr, false)
	return c.claimAndNote(ctx, req, alloc, func() (held *v1alpha1.IPAllocation, written bool, err error) {
		if holder == nil {
			holder, err = c.Ledger.Get(ctx, alloc.Name)
		}
		switch mine := c.of(holder, req.Attachment); {
		case err != nil:
			return nil, false, err
		case mine != nil:
			return mine, false, nil
		case holder == nil:
			held, written, err = c.Ledger.Create(ctx, alloc)
		default:
			err = &ledger.InUseError{Address: addr, Holder: holder}
		}
		if ledger.IsInUse(err) {
			return c.takeIfYields(ctx, req, alloc, err)
		}
		return held, written, err
	})
}

// maxTakeovers bounds how often a claim is tried again because others change the
// allocation at the same time.
const maxTakeovers = 4

// takeIfYields claims an address that has an allocation already, as err says, if that yields; else
// it returns err. written is also true if the address was taken over.
func (c *Claimer) takeIfYields(ctx context.Context, req Request, alloc *v1alpha1.IPAllocation, err error) (held *v1alpha1.IPAllocation, written bool, _ error) {
	for range maxTakeovers {
		var inUse *ledger.InUseError
		if !errors.As(err, &inUse) {
			break
		}
		why := c.yields(inUse.Holder, req)
		if why == none || why == nobody && alloc.Spec.IsSticky() { // which has to be reserved first: see claimSticky
			break
		}
		if why > endedHere && !alloc.Spec.Requested && req.known.isOfOther(entryOf(inUse.Holder), alloc.Spec.PoolRef) {
			break // a takeover leaves the pool as it is
		}
		var next error
		held, written, next = c.claimFrom(ctx, inUse.Holder, why, alloc)
		if next != nil && !ledger.IsInUse(next) {
			return held, written, fmt.Errorf("%w; %w", err, next)
		}
		err = next
	}
	return held, written, err
}

// claimFrom claims an address whose allocation, holder, yields.
func (c *Claimer) claimFrom(ctx context.Context, holder *v1alpha1.IPAllocation, why yielding, alloc *v1alpha1.IPAllocation) (held *v1alpha1.IPAllocation, written bool, err error) {
	switch why {
	case nobody:
		return c.Ledger.Create(ctx, alloc)
	case endedHere:
		return c.endEarlier(ctx, holder, alloc)
	case yieldsToMove:
		held, err = c.Ledger.Join(ctx, holder, alloc)
		return held, err == nil, err
	default:
		c.strikeNotes(entryOf(holder)) // before its UID is that of another's claim
		held, err = c.Ledger.TakeOver(ctx, holder, alloc)
		return held, err == nil, err
	}
}

// yielding says why an allocation yields to a request: the numbers are those at yields, where 1 is
// for ledger.Create.
type yielding int

const (
	none         yielding = -1 // it does not
	nobody       yielding = 0  // it is gone meanwhile
	endedHere    yielding = 2
	sameKeeper   yielding = 3
	rested       yielding = 4
	reservedFor  yielding = 5
	yieldsToMove yielding = 6
)

// yields reports whether, and why, the holder of an address yields to a request:
//
//  1. It is the request's own attachment: that is for ledger.Create, which does not ask here.
//  2. Held by a container of this node that no longer runs: the release is pending on this
//     node; or it is an earlier sandbox of the same pod, whose ADD began before this one.
//     A kubelet starts a new sandbox only after it has stopped the earlier one. If the
//     start of either ADD is unknown, the holder does not yield.
//  3. Released, and the pod is the same; if an owner keeps it, the pod's name. If it is a
//     StatefulSet or an IPAMClaim, the identity.
//  4. Released, without an owner, and its cooldown is over by this node's clock.
//  5. Reserved, for this pod, or for this identity.
//  6. Held by a pod on another node whose virtual machine moves to this pod: it holds the
//     address until it ends, and the request's attachment is next (see joins).
//
// Otherwise the address is in use, or kept for others. Only 2, and who waits in 6, rest on what
// this node knows. In 3 to 5 no container holds the address, as the record says, so a wrong clock
// gives nothing twice.
func (c *Claimer) yields(holder *v1alpha1.IPAllocation, req Request) yielding {
	if holder == nil {
		return nobody
	}
	s := &holder.Spec
	switch {
	case s.Held():
		if s.NodeName == c.Ledger.Node && (c.isReleasePending(holder) || isEarlierSandbox(holder, req)) {
			return endedHere
		}
		if c.joins(holder, req) {
			return yieldsToMove
		}
	case s.Released() && req.isFor(s):
		return sameKeeper
	case s.Released():
		if at := s.ReusableAt(); !at.IsZero() && !time.Now().Before(at) {
			return rested
		}
	case req.isFor(s) && (s.PodRef.UID == "" || s.PodRef.UID == req.Pod.UID):
		return reservedFor
	}
	return none
}

// joins reports whether the request's attachment may be the next one of an address that the
// identity holds on another node: a migration has made its pod, and no other attachment
// waits there. One of this pod that no longer runs does not count.
func (c *Claimer) joins(holder *v1alpha1.IPAllocation, req Request) bool {
	s := &holder.Spec
	if !req.migrates || !req.owner.IsIPAMClaim() || !req.owns(s) || s.NodeName == c.Ledger.Node || req.Pod.UID == "" || req.started.IsZero() {
		return false
	}
	waiting := holder.Promoted()
	return waiting == nil || waiting.Spec.NodeName == c.Ledger.Node && (c.isReleasePending(waiting) || isEarlierSandbox(waiting, req))
}

// isFor reports whether an address that no container holds is kept for the request: by a
// StatefulSet or an IPAMClaim for its identity, by another owner or without a container for the
// pod's name, and after a release without an owner for the pod itself.
func (r *Request) isFor(s *v1alpha1.IPAllocationSpec) bool {
	switch {
	case s.IsSticky():
		return r.owns(s)
	case s.Rests():
		return s.PodRef == r.Pod && r.Pod.Name != ""
	}
	return sameName(s.PodRef, r.Pod)
}

func sameName(a, b v1alpha1.PodReference) bool {
	return a.Name != "" && a.Name == b.Name && a.Namespace == b.Namespace
}

// isReleasePending reports whether the release of a held allocation is pending on this node.
func (c *Claimer) isReleasePending(holder *v1alpha1.IPAllocation) bool {
	e := entryOf(holder)
	return c.Hint.IsPending(e) || c.Hint.IsPending(e.WithoutUID())
}

// isEarlierSandbox reports whether an earlier sandbox of the request's pod holds the
// address. A takeover leaves the creation time as it is, so the start of the ADD must be
// old enough as well then.
func isEarlierSandbox(holder *v1alpha1.IPAllocation, req Request) bool {
	s := &holder.Spec
	return s.ContainerID != req.ContainerID && s.PodRef == req.Pod && req.Pod.Name != "" &&
		s.AddStartedAt != nil && !req.started.IsZero() && s.AddStartedAt.Time.Before(req.started) &&
		time.Since(holder.CreationTimestamp.Time) > sandboxAge && (!s.IsKept() || time.Since(s.AddStartedAt.Time) > sandboxAge)
}

// endEarlier deletes the claim of an earlier container of this node and claims the address.
// If the allocation outlives its container, it only releases it, and returns an InUseError
// with what is released: whether that yields is asked again.
func (c *Claimer) endEarlier(ctx context.Context, holder, alloc *v1alpha1.IPAllocation) (held *v1alpha1.IPAllocation, written bool, err error) {
	e := entryOf(holder)
	if !e.Kept {
		if _, err := c.Ledger.Delete(ctx, holder.Name, holder.UID); err != nil {
			return nil, false, fmt.Errorf("releasing %s, which the earlier container %s holds: %w", e.Address, e.ContainerID, err)
		}
		c.strikeNotes(e)
		c.Hint.NotClaimed(e)
		c.Log.Info("deleted the claim of an earlier container", "address", e.Address, "domain", e.Domain, "earlier", e.ContainerID)
		return c.Ledger.Create(ctx, alloc)
	}
	released, err := c.Ledger.ReleaseKept(ctx, holdingOf(e), time.Now())
	if err != nil {
		return nil, false, fmt.Errorf("releasing %s, which the earlier container %s holds: %w", e.Address, e.ContainerID, err)
	}
	c.Hint.NotClaimed(e)
	c.Log.Info("released the claim of an earlier container", "address", e.Address, "domain", e.Domain, "earlier", e.ContainerID)
	if released == nil { // somebody else has it now, or a machine has moved from it
		if released, err = c.Ledger.Get(ctx, e.Name()); err != nil {
			return nil, false, err
		}
	}
	return nil, false, &ledger.InUseError{Address: e.Address, Holder: released}
}

// strikeNotes removes the notes that a claim is to be released.
func (c *Claimer) strikeNotes(e hint.Entry) {
	c.Hint.TakenOver(e)
	c.Hint.TakenOver(e.WithoutUID())
}

// holdingOf returns the claim of an entry as a release names it.
func holdingOf(e hint.Entry) ledger.Holding {
	return ledger.Holding{Name: e.Name(), UID: e.UID, ContainerID: e.ContainerID, Interface: e.Interface, Started: e.Started}
}
