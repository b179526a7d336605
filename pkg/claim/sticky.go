// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// The pod of a StatefulSet in a sticky pool keeps its address, and so does a pod that names an
// IPAMClaim. Who keeps it is an identity (v1alpha1.IPAllocationSpec.SameIdentity): the claim, or
// the StatefulSet, the name of the pod, the network and the interface. An identity never holds
// two addresses of a pool, whoever starts containers of it on whichever nodes at once. No
// node's hint says which address it is, so
//
//  1. the search begins at the same address on every node: what the claim's status has, or
//     pool.Block.Home. That is read by its name. Most identities have that one.
//  2. If it is not the identity's, a list says what the owner keeps.
//  3. If the identity has none, one is reserved for it, and the list is read again.
//
// Only then a container takes the address over. While it is reserved, it is a proposal, and
// several nodes may have made one. Who takes one of them over has listed them after its own
// was made, and deletes all the others first, as it has read them. So of two nodes that take
// over different ones, the later one to list has seen, and deleted, what the earlier one is
// about to take over: at most one of the two succeeds. What was taken over once is the
// identity's address, as the first step assumes. A proposal that is left over is no one's: a
// later ADD takes it, or the controller deletes it.
//
// The pod to which a virtual machine moves proposes nothing: it joins the pod that has the
// address (6 at yields).

// ErrKept means that the pod's own address cannot be had yet, and no other will do.
var ErrKept = errors.New("the address that the pod keeps is in use")

// claimSticky claims the address that the request's identity keeps.
func (c *Claimer) claimSticky(ctx context.Context, req Request, v view) (hint.Entry, error) {
	space := v.Lasting()
	home, only, err := req.homeIn(space)
	if err != nil {
		return hint.Entry{}, err
	}
	if !home.IsValid() {
		return hint.Entry{}, c.exhausted(space)
	}
	me := c.allocation(req, space, home, false)
	// Before the pool was sticky, this container may have got another address.
	first := cmp.Or(req.known.heldIn(space), home)
	at, err := c.Ledger.Get(ctx, v1alpha1.AllocationName(space.Domain, first))
	if err != nil {
		return hint.Entry{}, err
	}
	if c.of(at, req.Attachment) != nil || at != nil && at.Spec.SameIdentity(&me.Spec) && !at.Spec.IsReserved() { // 1
		return c.claimOwn(ctx, req, space, at)
	}
	for range maxTakeovers {
		own, others, err := c.ofIdentity(ctx, space, me, only)
		if err != nil {
			return hint.Entry{}, err
		}
		if req.migrates && (own == nil || own.Spec.IsReserved()) {
			return hint.Entry{}, refuse("a migration moves a machine to this pod, and no pod of %s %s/%s has had an address of pool %q: the machine was started without one. Start it again instead",
				req.owner.Kind, req.owner.Namespace, req.owner.Name, space.Pool.Name)
		}
		if own == nil { // 3
			if err := c.reserve(ctx, req, v, me, home, only); err != nil {
				return hint.Entry{}, err
			}
			continue
		}
		changed := false
		for i := range others {
			gone, err := c.Ledger.DeleteUnchanged(ctx, &others[i])
			if err != nil {
				return hint.Entry{}, fmt.Errorf("deleting %s, which was reserved for the pod at the same time: %w", others[i].Name, err)
			}
			changed = changed || !gone
		}
		if !changed {
			return c.claimOwn(ctx, req, space, own)
		}
	}
	return hint.Entry{}, fmt.Errorf("%w: others claim it at the same time", ErrKept)
}

// ofIdentity lists what the identity has in the pool: its address, nil if it has none, and
// the proposals that have to go before that is taken over. With only, no other address than
// me's will do.
func (c *Claimer) ofIdentity(ctx context.Context, space *pool.Block, me *v1alpha1.IPAllocation, only bool) (own *v1alpha1.IPAllocation, others []v1alpha1.IPAllocation, err error) {
	all, err := c.Ledger.OfIdentity(ctx, &me.Spec)
	if err != nil {
		return nil, nil, err
	}
	fits := func(a *v1alpha1.IPAllocation) bool {
		return space.Contains(entryOf(a).Address) && (!only || a.Spec.Address == me.Spec.Address)
	}
	fitting := all[:0]
	for _, a := range all {
		addr := entryOf(&a).Address
		switch {
		case !a.Spec.Released() || fits(&a):
			fitting = append(fitting, a)
		case a.Spec.Owner.IsIPAMClaim() && space.Contains(addr):
			return nil, nil, refuse("IPAMClaim %s/%s has the address %s in its status, and %s is kept for it: correct the status, or delete IPAllocation %s",
				a.Spec.Owner.Namespace, a.Spec.Owner.Name, me.Spec.Address, addr, a.Name)
		case a.Spec.Owner.IsIPAMClaim():
			return nil, nil, doesNotFit(a.Spec.Owner, addr, space)
		default:
			c.Log.Warn("the address that the pod has kept does not fit the pool any more, and it gets another one", "address", addr,
				"pool", a.Spec.PoolRef.Name, "pod", a.Spec.PodRef.Namespace+"/"+a.Spec.PodRef.Name)
		}
	}
	all = fitting
	if len(all) == 0 {
		return nil, nil, nil
	}
	rank := func(a *v1alpha1.IPAllocation) int { // held, kept, proposals, proposals that do not fit
		switch {
		case a.Spec.Held():
			return 0
		case a.Spec.Released():
			return 1
		case fits(a):
			return 2
		}
		return 3
	}
	slices.SortFunc(all, func(a, b v1alpha1.IPAllocation) int {
		return cmp.Or(cmp.Compare(rank(&a), rank(&b)), strings.Compare(a.Name, b.Name))
	})
	switch rank(&all[0]) {
	case 2:
		return &all[0], all[1:], nil
	case 3: // another one is proposed, and these are deleted then
		return nil, nil, nil
	}
	return &all[0], nil, nil
}

// reserve reserves an address for an identity: home if that is free, else one of the next, else
// what is free by a list. With only, it is home and no other. Others may do the same at the same
// time. What rests is no candidate, also if its cooldown is over: a takeover would not make it the
// identity's, and a node may not delete what another one has held. So that nothing is free here is
// noted apart from what other pods have found.
func (c *Claimer) reserve(ctx context.Context, req Request, v view, me *v1alpha1.IPAllocation, home netip.Addr, only bool) error {
	space, name := v.Lasting(), hint.LastingOf(v.Pool)
	full := func() bool {
		return !only && c.Hint.Full(name, space.Domain, v.version, min(space.Size(), largeSpace))
	}
	if full() {
		return c.exhausted(space)
	}
	p := &proposer{Claimer: c, req: req, space: space, me: me}
	taken, err := p.propose(ctx, home, only)
	switch {
	case !taken:
		return err
	case only:
		return fmt.Errorf("%w: %w", ErrKept, err)
	}
	if _, err := p.proposeFirst(ctx, home, map[netip.Addr]bool{home: true}, maxCollisions); err != nil || p.done {
		return err
	}
	defer c.Hint.Listing(ctx, name)()
	if full() { // another call on this node has found that
		return c.exhausted(space)
	}
	freed := c.Hint.Freed(space.Domain)
	err = c.byLists(ctx, space, func(held map[netip.Addr]bool, most int) (collided bool, err error) {
		return p.proposeFirst(ctx, home, held, most)
	})
	if err == nil && !p.done {
		c.Hint.SetFull(name, v.version, freed)
		err = c.exhausted(space)
	}
	return err
}

// proposer proposes addresses for an identity, that of me, until one is reserved: then it is done.
type proposer struct {
	*Claimer
	req   Request
	space *pool.Block
	me    *v1alpha1.IPAllocation
	done  bool
}

// proposeFirst proposes the first address after home that is not held. collided is true if it stopped
// because so many of them turned out to be taken.
func (p *proposer) proposeFirst(ctx context.Context, home netip.Addr, held map[netip.Addr]bool, most int) (collided bool, err error) {
	for addr := range p.space.Candidates(home) {
		if held[addr] {
			continue
		}
		if taken, err := p.propose(ctx, addr, false); !taken {
			return false, err
		}
		if most--; most == 0 {
			return true, nil
		}
	}
	return false, nil
}

// propose reserves an address. taken is true if it is another's; the error says whose if that is
// asked for.
func (p *proposer) propose(ctx context.Context, addr netip.Addr, whose bool) (taken bool, err error) {
	if err := p.mayNotHave(p.req, p.space, addr); err != nil {
		return true, err
	}
	spec := p.me.Spec
	spec.Address = addr.String()
	create := p.Ledger.CreateIfFree
	if whose {
		create = p.Ledger.Create
	}
	made, created, err := create(ctx, p.proposal(v1alpha1.AllocationName(p.space.Domain, addr), spec))
	if err == nil && created && p.req.known.provesSetBack(made) {
		return false, p.proposedAfterSetBack(ctx, made)
	}
	p.done = err == nil
	return ledger.IsInUse(err), err
}

// claimOwn claims the address that the identity keeps.
func (c *Claimer) claimOwn(ctx context.Context, req Request, space *pool.Block, own *v1alpha1.IPAllocation) (hint.Entry, error) {
	e := entryOf(own)
	if err := c.mayNotHave(req, space, e.Address); err != nil {
		return hint.Entry{}, fmt.Errorf("%w: %w", ErrKept, err)
	}
	c.Hint.ClaimingRequested(hint.Entry{Attachment: req.Attachment, Domain: e.Domain, Address: e.Address})
	e, err := c.claimReleased(ctx, req, space, e.Address, own)
	if ledger.IsInUse(err) {
		err = fmt.Errorf("%w: %w", ErrKept, err)
	}
	return e, err
}

// proposal returns what reserves an address for the identity of an allocation.
func (c *Claimer) proposal(name string, spec v1alpha1.IPAllocationSpec) *v1alpha1.IPAllocation {
	spec.ContainerID, spec.DeviceID, spec.PodRef.UID, spec.Restored = "", "", "", false
	spec.AddStartedAt, spec.ReleaseCooldown, spec.ReleasedAt, spec.Next = nil, nil, nil, nil
	return c.newAllocation(name, spec)
}

// proposedAfterSetBack undoes a proposal whose answer proves that etcd was set back: see
// undoAfterSetBack.
func (c *Claimer) proposedAfterSetBack(ctx context.Context, made *v1alpha1.IPAllocation) error {
	_, undone := c.Ledger.DeleteUnchanged(ctx, made)
	return errors.Join(c.afterSetBack(ctx, entryOf(made)), undone)
}
