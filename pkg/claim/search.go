// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"fmt"
	"iter"
	"math"
	"net/netip"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

const (
	// maxCollisions is how many addresses in a row may turn out to be held by others
	// before the search goes on from a random address of the block.
	maxCollisions = 3
	// maxRechecks is how many addresses that others were seen to hold are tried again
	// before a block counts as full. A block with more of them needs several ADDs.
	maxRechecks = 32
	// maxRechecksOfPassed is the same for a pool that overflows: there other nodes often hold
	// addresses of a block, and nobody waits for it.
	maxRechecksOfPassed = 4
)

// claimOne claims one address of a pool. The hint proposes, the create decides. It
// tries in turn
//
//  1. wanted, if it is valid, and no other address;
//  2. for the pod of a StatefulSet in a sticky pool, and for one that names an IPAMClaim, the
//     address that it keeps, and no other;
//  3. the address that this attachment already holds: an ADD whose answer was lost is
//     repeated, and must not claim a second address;
//  4. an address that the same pod has released and that rests, as this node's hint says;
//  5. the node's block, or the whole subnet if the pool has no blocks: first what comes
//     after the last address that was given there, then all of it;
//  6. if the pool overflows: the space that is nobody's block, then the whole subnet.
func (c *Claimer) claimOne(ctx context.Context, req Request, v view, wanted netip.Addr) (hint.Entry, error) {
	b := v.Block
	switch {
	case wanted.IsValid(): // 1
		return c.claimWanted(ctx, req, b, wanted)
	case req.hasOwnAddressIn(b): // 2
		return c.claimSticky(ctx, req, v)
	}
	spaces := append([]*pool.Block{b}, b.Overflow...)
	if e, err := c.claimKnown(ctx, req, b, spaces); err != nil || e.Found() { // 3, 4
		return e, err
	}
	for i, space := range spaces { // 5, 6
		s := &search{
			Claimer: c, req: req, space: space, poolVersion: v.version, spaceName: hint.SpaceOf(b.Pool, i), overflows: i < len(spaces)-1,
			held: req.known.givenIn(space.Domain), releasing: c.beingReleased(space),
		}
		if e, err := s.claimFree(ctx); err != nil || e.Found() {
			return e, err
		}
	}
	return hint.Entry{}, c.exhausted(b)
}

// claimWanted claims a requested address.
func (c *Claimer) claimWanted(ctx context.Context, req Request, b *pool.Block, wanted netip.Addr) (hint.Entry, error) {
	if err := c.mayNotHave(req, b, wanted); err != nil {
		return hint.Entry{}, err
	}
	c.Hint.ClaimingRequested(hint.Entry{Attachment: req.Attachment, Domain: b.Domain, Address: wanted})
	return c.claimAddress(ctx, req, b, wanted, true)
}

// mayNotHave returns an error if a container of this node may use an address of which the
// API server does not know that: nv-ipam has given it, or its allocation was lost.
func (c *Claimer) mayNotHave(req Request, space *pool.Block, addr netip.Addr) error {
	if req.isForeign(space, addr) {
		return foreignInUse(space.Pool, addr)
	}
	return c.lostHere(space.Domain, addr, req.Attachment)
}

// claimKnown claims what the attachment holds already, or else what its pod has released and
// rests, as the hint says. It returns no address if there is nothing of that kind, or another
// attachment has it by now.
func (c *Claimer) claimKnown(ctx context.Context, req Request, b *pool.Block, spaces []*pool.Block) (hint.Entry, error) {
	addr := req.known.heldIn(b)
	if !addr.IsValid() {
		addr = req.known.heldIn(spaces[len(spaces)-1])
	}
	if addr.IsValid() { // it has an entry already
		if e, err := c.claimAddress(ctx, req, b, addr, false); !ledger.IsInUse(err) {
			return e, err
		}
	}
	tries := len(req.Pools) // some may be of the other pools
	for _, space := range spaces {
		for _, addr := range req.known.restIn(space) {
			if tries--; tries < 0 {
				return hint.Entry{}, nil
			}
			c.Hint.ClaimingRequested(hint.Entry{Attachment: req.Attachment, Domain: b.Domain, Address: addr})
			if e, err := c.claimReleased(ctx, req, space, addr, nil); !ledger.IsInUse(err) {
				return e, err
			}
		}
	}
	return hint.Entry{}, nil
}

// search is the search for a free address in a block, or in a space that nodes share.
type search struct {
	*Claimer
	req         Request
	space       *pool.Block
	poolVersion string
	// spaceName is what the hint calls the space (hint.SpaceOf).
	spaceName v1alpha1.PoolReference
	// overflows is true if there is other space to go on in.
	overflows bool
	// held are the addresses that others hold, as the API server said during this search, and
	// those that this call has claimed for another pool.
	held map[netip.Addr]bool
	// releasing are the addresses of claims whose release is pending or under way on this node.
	releasing map[netip.Addr]bool
	// freed is what the hint has of this node's releases (hint.Freed) when the proof begins that the
	// space is full.
	freed string
}

// claimFree claims a free address of the space: what comes after the last one that was given
// there, then any. It returns none if the space is full.
func (s *search) claimFree(ctx context.Context) (e hint.Entry, err error) {
	if s.skip() {
		return hint.Entry{}, nil
	}
	collided := false
	if !s.space.Shared || !s.isCrowded() {
		next := s.space.Candidates(s.Hint.Last(s.spaceName))
		e, collided, err = s.tryCandidates(ctx, s.unentered(next), s.patience())
		if err == nil && !e.Found() && !collided { // some may have been released since the hint was read
			e, collided, err = s.tryCandidates(ctx, next, s.patience())
		}
	}
	if err == nil && !e.Found() {
		e, err = s.searchOn(ctx, collided)
	}
	return e, err
}

// unentered leaves out the candidates that had an entry in the hint when that was read: a nearly full
// block has hundreds, which would be found taken one by one.
func (s *search) unentered(candidates iter.Seq[netip.Addr]) iter.Seq[netip.Addr] {
	entered := s.req.known.entered[s.space.Domain]
	return func(yield func(netip.Addr) bool) {
		for addr := range candidates {
			if !entered[addr] && !yield(addr) {
				return
			}
		}
	}
}

// skip reports whether the search leaves this space out: it was found full lately. Never a large
// one that nodes share, where nothing is proved; nor the node's own block if the pool overflows,
// since what was released there is seen at no cost.
func (s *search) skip() bool {
	switch {
	case s.space.Shared && s.isLarge():
		return false
	case s.overflows:
		return s.space.Shared && s.Hint.Passed(s.spaceName, s.poolVersion)
	}
	return s.isProvedFull()
}

// isProvedFull reports whether this node has proved lately that the space is full. The larger a
// space is that nodes share, the more a list of it costs, and the longer that is believed.
func (s *search) isProvedFull() bool {
	listed := int64(0)
	if s.space.Shared {
		listed = s.space.Size()
	}
	return !s.overflows && s.Hint.Full(s.spaceName, s.space.Domain, s.poolVersion, listed)
}

// patience is how many of the next candidates may turn out to be held by others.
func (s *search) patience() int {
	if s.space.Shared && !s.isLarge() {
		return 1
	}
	return maxCollisions
}

// searchOn claims an address of the block after the next candidates have failed; collided
// says that others held them. It returns none if the block is full: that is remembered for
// a while.
func (s *search) searchOn(ctx context.Context, collided bool) (e hint.Entry, err error) {
	if s.space.Shared {
		e, err = s.searchShared(ctx, collided)
	} else {
		e, err = s.searchBlock(ctx, collided)
	}
	switch {
	case err != nil || e.Found():
	case s.overflows:
		s.setPassed()
	case !s.space.Shared:
		s.Hint.SetFull(s.spaceName, s.poolVersion, s.freed)
	}
	return e, err
}

// setPassed notes that the search goes on in other space. An earlier note stays: the block
// is looked at again when that is old.
func (s *search) setPassed() {
	if !s.Hint.Passed(s.spaceName, s.poolVersion) {
		s.Hint.SetPassed(s.spaceName, s.poolVersion)
	}
}

// searchBlock searches the node's own block. It tries
//
//  1. the addresses from a random one on, if other nodes claim in this block now, or
//     the hint has been lost;
//  2. the whole block, if it looks full: pending releases are carried out, and the API
//     server lists what this node holds. If the pool overflows, that is done rarely.
func (s *search) searchBlock(ctx context.Context, collided bool) (e hint.Entry, err error) {
	if collided { // 1
		e, _, err = s.tryCandidates(ctx, s.space.Candidates(s.space.RandomAddress()), maxCollisions)
	}
	if err != nil || e.Found() || s.overflows && s.Hint.Passed(s.spaceName, s.poolVersion) {
		return e, err
	}
	return s.searchFullBlock(ctx) // 2
}

// beingReleased returns the addresses of claims in a block whose release is pending or under
// way on this node. What an ADD that failed may have claimed is no such claim yet.
func (c *Claimer) beingReleased(b *pool.Block) map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	releases, _ := c.Hint.Pending()
	for _, r := range releases {
		if r.Domain == b.Domain && r.UID != "" {
			out[r.Address] = true
		}
	}
	return out
}

// tryCandidates claims the first candidate that is free. It returns no address if there
// is none. collided is true if it stopped because maxHeld candidates in turn were held by
// others.
func (s *search) tryCandidates(ctx context.Context, candidates iter.Seq[netip.Addr], maxHeld int) (e hint.Entry, collided bool, err error) {
	for addr := range candidates {
		entry := hint.Entry{Attachment: s.req.Attachment, Domain: s.space.Domain, Address: addr}
		if s.held[addr] || s.releasing[addr] || s.req.isForeign(s.space, addr) {
			continue
		}
		if taken := s.Hint.Claiming(entry); taken { // by another call on this node
			continue
		}
		e, err := s.claimAddress(ctx, s.req, s.space, addr, false)
		if err == nil {
			s.Hint.SetLast(s.spaceName, addr)
			return e, false, nil
		}
		if !ledger.IsInUse(err) {
			return hint.Entry{}, false, err
		}
		s.Log.Debug("another attachment holds the candidate", "error", err)
		s.noteHeld(entry)
		if maxHeld--; maxHeld == 0 {
			return hint.Entry{}, true, nil
		}
	}
	return hint.Entry{}, false, nil
}

// noteHeld notes that another attachment holds a candidate.
func (s *search) noteHeld(e hint.Entry) {
	s.held[e.Address] = true
	if s.space.Shared { // there may be thousands: see hint.Window
		s.Hint.NotFree(s.spaceName, e.Address)
		s.Hint.SetLast(s.spaceName, s.space.EndOfRun(e.Address)) // another node is in this run
	} else {
		s.Hint.Elsewhere(e)
	}
}

// searchFullBlock searches a block that looks full. It carries out all pending releases,
// lists what this node really holds, and tries some of the addresses again that others
// were seen to hold. It returns no address if none is free.
func (s *search) searchFullBlock(ctx context.Context) (hint.Entry, error) {
	s.retryPending(ctx, math.MaxInt)
	s.freed = s.Hint.Freed(s.space.Domain)
	listed, err := s.rebuild(ctx, s.req.started)
	if err == nil {
		err = s.refuseAfterLoss() // the list may have shown a loss
	}
	if err != nil {
		return hint.Entry{}, err
	}
	s.releasing = nil          // the controller may have released them already
	for _, e := range listed { // needed if the disk fails and the hint stays empty
		if e.Domain == s.space.Domain {
			s.held[e.Address] = true
		}
	}
	s.recheckElsewhere()
	e, _, err := s.tryAll(ctx, math.MaxInt)
	return e, err
}

// tryAll tries every address that is not known to be held, each time from another random
// one: beginning at the same one as others that claim in this block would collide again and
// again. collided is true if it stopped because so many were held by others.
func (s *search) tryAll(ctx context.Context, most int) (e hint.Entry, collided bool, err error) {
	for range most {
		e, collided, err := s.tryCandidates(ctx, s.space.Candidates(s.space.RandomAddress()), 1)
		if err != nil || !collided {
			return e, false, err
		}
		if err := unavailable(ctx, "others claim addresses of this block at the same time"); err != nil {
			return hint.Entry{}, false, err
		}
	}
	return hint.Entry{}, true, nil
}

// recheckElsewhere makes some of the addresses that others were seen to
// hold candidates again: they may have been released since.
func (s *search) recheckElsewhere() {
	n, most := 0, maxRechecks
	if s.overflows {
		most = maxRechecksOfPassed
	}
	for addr := range s.Hint.SeenElsewhere(s.space.Domain) { // in random order
		if n == most {
			return
		}
		if !s.held[addr] && s.space.Range.Contains(addr) {
			s.Hint.ForgetElsewhere(s.space.Domain, addr)
			n++
		}
	}
}

// exhausted says what is full, and why.
func (c *Claimer) exhausted(b *pool.Block) error {
	where, size := fmt.Sprintf("block %s of node %s", b.Range, c.Ledger.Node), b.Size()
	if b.Shared {
		where = fmt.Sprintf("subnet %s", b.Subnet)
	}
	held := "held"
	if c.cooldownOf(b) > 0 {
		held = "held, or rest after their release (releaseCooldown)"
	}
	why := fmt.Sprintf("%s is full, %d of %d addresses are %s", where, size, size, held)
	if size == 0 {
		why = where + " has no address to hand out: each is excluded, or the gateway"
	}
	if b.Earlier {
		why += "; it is left over from an earlier specification of the pool, which has no room for a block of this one"
	}
	if n := len(b.Overflow); n > 0 {
		all := b.Overflow[n-1].Size()
		why += fmt.Sprintf("; and so is the rest of subnet %s, %d of %d addresses", b.Subnet, all, all)
	}
	return fmt.Errorf("%w %q, poolType %q: %s", ErrExhausted, b.Pool.Name, pool.Type(b.Pool.Kind), why)
}
