// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"fmt"
	"iter"
	"math"
	"net/netip"

	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

const (
	// maxCollisions is how many addresses in a row may turn out to be held by others
	// before another place of the block is tried.
	maxCollisions = 3
	// maxRechecks is how many addresses that others were seen to hold are tried again
	// before a block counts as full. A block with more of them is looked through in
	// several goes.
	maxRechecks = 32
)

// claimAny claims a free address of the node's block. The hint proposes, the create
// decides. It tries in turn
//
//  1. the addresses after the last one given;
//  2. from a random address on, if others claim in this block at this moment, or the
//     hint has been lost;
//  3. if the block looks full: what is free after releases that were left undone, and
//     a list of what this node really holds. Only then it says that nothing is free.
func (c *Claimer) claimAny(ctx context.Context, req Request, v view) (hint.Entry, error) {
	b := v.Block
	if c.Hint.Full(b.Pool, v.version) {
		return hint.Entry{}, c.exhausted(b)
	}
	s := &search{Claimer: c, req: req, b: b, held: map[netip.Addr]bool{}, releasing: c.beingReleased(b)}
	e, collided, err := s.try(ctx, b.Candidates(c.Hint.Last(b.Pool)), maxCollisions)
	if collided { // 2
		e, _, err = s.try(ctx, b.Candidates(b.RandomAddress()), maxCollisions)
	}
	if err != nil || e.Address.IsValid() {
		return e, err
	}
	e, err = s.lookThrough(ctx)
	if err == nil && !e.Address.IsValid() {
		c.Hint.SetFull(b.Pool, v.version)
		err = c.exhausted(b)
	}
	return e, err
}

// search is the search for one address.
type search struct {
	*Claimer
	req Request
	b   *pool.Block
	// held are the addresses that the API server said are held, during this search.
	held map[netip.Addr]bool
	// releasing are those that are held until their releases are carried out.
	releasing map[netip.Addr]bool
}

// beingReleased returns the addresses of a block that are being released, or are to
// be by later calls.
func (c *Claimer) beingReleased(b *pool.Block) map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	releases, _ := c.Hint.Pending()
	for _, r := range releases {
		if r.Pool == b.Pool.Name && r.UID != "" {
			out[r.Address] = true
		}
	}
	return out
}

// try claims the first of the candidates that is free. It returns no address if
// there are no more, or if as many as may collide were held by others.
func (s *search) try(ctx context.Context, candidates iter.Seq[netip.Addr], collisions int) (e hint.Entry, collided bool, err error) {
	for addr := range candidates {
		entry := hint.Entry{Attachment: s.req.Attachment, Pool: s.b.Pool.Name, Address: addr}
		if s.held[addr] || s.releasing[addr] || s.req.foreign[entry.Name()] || s.Hint.Claiming(entry) {
			continue
		}
		e, err := s.create(ctx, s.req, s.b, addr, false)
		if err == nil {
			s.Hint.SetLast(s.b.Pool, addr)
			return e, false, nil
		}
		if !ledger.IsInUse(err) {
			return hint.Entry{}, false, err
		}
		s.Log.Debug("candidate is held by another", "error", err)
		s.held[addr] = true
		s.Hint.Elsewhere(entry)
		if collisions--; collisions == 0 {
			return hint.Entry{}, true, nil
		}
	}
	return hint.Entry{}, false, nil
}

// lookThrough claims an address of a block that looks full, if there is one: it
// carries out what was left undone, lists what this node really holds, and tries
// again what others were seen to hold.
func (s *search) lookThrough(ctx context.Context) (hint.Entry, error) {
	s.carryOut(ctx, math.MaxInt)
	listed, err := s.rebuild(ctx, s.req.started)
	if err != nil {
		return hint.Entry{}, err
	}
	s.releasing = nil          // the controller may have been faster
	for _, e := range listed { // the hint may not be usable
		if e.Pool == s.b.Pool.Name {
			s.held[e.Address] = true
		}
	}
	s.recheckElsewhere()
	for {
		// In step with others that claim in this block it would collide again and
		// again: so it begins somewhere else each time.
		e, collided, err := s.try(ctx, s.b.Candidates(s.b.RandomAddress()), 1)
		if err != nil || !collided {
			return e, err
		}
		if err := unavailable(ctx, "others claim addresses of this block at the same time"); err != nil {
			return hint.Entry{}, err
		}
	}
}

// recheckElsewhere makes some of the addresses that others were seen to hold
// candidates again: they may have been given back since.
func (s *search) recheckElsewhere() {
	entries := s.Hint.Taken(s.b.Pool.Name)
	n := 0
	for addr, elsewhere := range entries { // in random order
		if n == maxRechecks {
			return
		}
		if elsewhere && !s.held[addr] && s.b.Range.Contains(addr) {
			s.Hint.NotElsewhere(s.b.Pool.Name, addr)
			n++
		}
	}
}

// exhausted says of which node which block is full, and why that may be.
func (c *Claimer) exhausted(b *pool.Block) error {
	why := fmt.Sprintf("block %s of node %s is full, %d of %d addresses are held", b.Range, c.Node, b.Size(), b.Size())
	if b.Size() == 0 {
		why = fmt.Sprintf("block %s of node %s has no address to hand out: each is excluded, or the gateway", b.Range, c.Node)
	}
	if b.Earlier {
		why += "; it is left over from an earlier specification of the pool, which has no room for a block of this one"
	}
	return fmt.Errorf("%w %q, poolType %q: %s", ErrExhausted, b.Pool.Name, pool.Type(b.Pool.Kind), why)
}
