// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

const (
	// largeSpace is more addresses than can be held: an allocation takes 2 KB of etcd. In a
	// space that is larger, a random address is free, so nothing is listed.
	largeSpace = 1 << 20
	// maxRandom is how many random addresses of a large space are tried.
	maxRandom = 16
	// windowAge is how long what was free in a window is believed. Others claim there, too.
	windowAge = 10 * time.Second
	// windowCollisions is how many addresses that were free in a window may be held by now
	// before it is listed again.
	windowCollisions = 2
	// maxWindows is how many windows are listed, one after the other, before all of them are.
	maxWindows = 8
	// maxNamed is how many windows one list names: the names are in its URL. In a larger space
	// the list of all names in the namespace is hardly more.
	maxNamed = 64
	// maxUnlisted is how many addresses may turn out to be held, after a list of windows, by
	// allocations without the label of their window. If there are more, all names are listed.
	maxUnlisted = 32
)

// isLarge reports whether only a small part of the space can be held.
func (s *search) isLarge() bool { return s.space.Size() > largeSpace }

// isCrowded reports whether the next candidates are hardly worth a request: what is free in
// a window is known, or was so little that a list costs less.
func (s *search) isCrowded() bool {
	if s.isLarge() {
		return false
	}
	w := s.Hint.Window(s.spaceName)
	return w != nil && (w.Crowded || s.isCurrent(w))
}

// searchShared searches a space that nodes share, after the next candidate in the node's
// own order has failed. It tries
//
//  1. the candidate of the next run, unless the space is known to be crowded (then the next
//     candidate was not tried, either);
//  2. what was free when a window of 256 addresses was listed, by this call or by an earlier
//     one on this node. Near full, one list so serves many ADDs;
//  3. after some windows with nothing: the whole space, by a list as etcd has it now. Only
//     that proves that nothing is free.
//
// If the pool overflows to more space, 3 is left to that.
func (s *search) searchShared(ctx context.Context, collided bool) (hint.Entry, error) {
	if s.isLarge() {
		return s.searchLarge(ctx, collided)
	}
	if collided && !s.isCrowded() { // another call on this node may have listed meanwhile
		e, _, err := s.tryCandidates(ctx, s.space.Candidates(s.Hint.Last(s.spaceName)), 1) // 1
		if err != nil || e.Found() {
			return e, err
		}
	}
	e, err := s.searchWindows(ctx) // 2
	if err != nil || e.Found() || s.overflows {
		return e, err
	}
	return s.searchAll(ctx) // 3
}

// searchLarge searches a space of which only a small part can be held.
func (s *search) searchLarge(ctx context.Context, collided bool) (e hint.Entry, err error) {
	for n := 0; collided && n < maxRandom; n++ {
		e, collided, err = s.tryCandidates(ctx, s.space.Candidates(s.space.RandomAddress()), 1)
	}
	if collided {
		return hint.Entry{}, fmt.Errorf("%w %q, poolType %q: %d random addresses of subnet %s are all held", ErrExhausted, s.space.Pool.Name, pool.Type(s.space.Pool.Kind), maxRandom, s.space.Subnet)
	}
	return e, err
}

func (s *search) isCurrent(w *hint.Window) bool {
	return w != nil && w.Version == s.poolVersion && time.Since(w.Listed).Abs() < windowAge
}

// searchWindows claims what was free when a window was listed. It lists up to maxWindows.
// Calls on one node list one after the other, and each sees what the one before has found.
func (s *search) searchWindows(ctx context.Context) (hint.Entry, error) {
	w := s.Hint.Window(s.spaceName)
	seen := map[netip.Prefix]bool{}
	for n := 0; ; n++ {
		if s.isCurrent(w) {
			e, _, err := s.tryCandidates(ctx, s.free(w), windowCollisions)
			if err != nil || e.Found() {
				return e, err
			}
			seen[w.Window] = true
		}
		if n == maxWindows {
			return hint.Entry{}, nil
		}
		var err error
		if w, err = s.listAfter(ctx, w, seen); w == nil {
			return hint.Entry{}, err
		}
	}
}

// free yields what was free in a window. It may have addresses of another pool of the
// domain that this node has released.
func (s *search) free(w *hint.Window) iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for _, addr := range w.Free {
			if s.space.Contains(addr) && !yield(addr) {
				return
			}
		}
	}
}

// listAfter lists the next window, or returns the one that another call on this node has
// listed since last. It returns nil if all windows are seen, or another call has found that
// nothing is free.
func (s *search) listAfter(ctx context.Context, last *hint.Window, seen map[netip.Prefix]bool) (*hint.Window, error) {
	defer s.Hint.Listing(ctx, s.spaceName)()
	if w := s.Hint.Window(s.spaceName); s.isCurrent(w) && (last == nil || w.Listed.After(last.Listed)) {
		return w, nil
	}
	if s.isProvedFull() {
		return nil, nil
	}
	for addr := range s.space.Candidates(s.Hint.Last(s.spaceName)) {
		if window := v1alpha1.WindowOf(addr); !seen[window] {
			s.Hint.SetLast(s.spaceName, addr)
			return s.list(ctx, addr)
		}
	}
	return nil, nil
}

// list lists the window of an address and saves what is free.
func (s *search) list(ctx context.Context, addr netip.Addr) (*hint.Window, error) {
	window := v1alpha1.WindowOf(addr)
	w := &hint.Window{Version: s.poolVersion, Domain: s.space.Domain, Window: window, Listed: time.Now()}
	held, err := s.Ledger.HeldInWindow(ctx, s.space.Domain, addr)
	if err != nil {
		return nil, err
	}
	usable := 0
	for a := window.Addr(); window.Contains(a); a = a.Next() {
		if s.space.Contains(a) {
			usable++
			if !held[a] {
				w.Free = append(w.Free, a)
			}
		}
	}
	w.Crowded = 4*len(w.Free) <= 3*usable // from then on a list costs less than creates that collide
	rand.Shuffle(len(w.Free), func(i, j int) { w.Free[i], w.Free[j] = w.Free[j], w.Free[i] })
	s.Hint.SetWindow(s.spaceName, w)
	return w, nil
}

// searchAll searches the whole space by a list of what is held. It returns no address if none is
// free, and notes that.
func (s *search) searchAll(ctx context.Context) (hint.Entry, error) {
	defer s.Hint.Listing(ctx, s.spaceName)()
	if s.isProvedFull() { // another call on this node has found that
		return hint.Entry{}, nil
	}
	e, err := s.searchListed(ctx)
	if err == nil && !e.Found() {
		s.Hint.SetFull(s.spaceName, s.poolVersion, s.freed)
	}
	return e, err
}

func (s *search) searchListed(ctx context.Context) (hint.Entry, error) {
	s.retryPending(ctx, math.MaxInt)
	s.freed = s.Hint.Freed(s.space.Domain)
	var e hint.Entry
	err := s.byLists(ctx, s.space, func(held map[netip.Addr]bool, most int) (collided bool, err error) {
		e, collided, err = s.tryUnheld(ctx, held, most)
		return collided, err
	})
	if err == nil && !e.Found() { // the pool may have no cooldown any more, and its allocations may
		e, err = s.searchReleased(ctx)
	}
	if err != nil || e.Found() || !s.anyFree() {
		return e, err
	}
	// The hint says that this node uses what is free: it may be stale.
	if _, err = s.rebuild(ctx, s.req.started); err == nil {
		err = s.refuseAfterLoss() // the list may have shown a loss
	}
	if err != nil {
		return hint.Entry{}, err
	}
	s.releasing = nil
	e, _, err = s.tryAll(ctx, math.MaxInt)
	return e, err
}

// byLists calls try with the addresses of a space that are held, as etcd has them now. First its
// windows are listed. That lacks what has no label: if try has met so many of those (collided), it is
// called again, with a list of all names.
func (c *Claimer) byLists(ctx context.Context, space *pool.Block, try func(held map[netip.Addr]bool, most int) (collided bool, err error)) error {
	if windows := windowsOf(space); len(windows) > 0 {
		held, err := c.Ledger.Held(ctx, space.Domain, windows...)
		if err != nil {
			return err
		}
		if collided, err := try(held, maxUnlisted); err != nil || !collided {
			return err
		}
	}
	held, err := c.Ledger.Held(ctx, space.Domain)
	if err != nil {
		return err
	}
	_, err = try(held, math.MaxInt)
	return err
}

// tryUnheld tries what is free by a list. collided is true if so many of that turned out to be held.
func (s *search) tryUnheld(ctx context.Context, held map[netip.Addr]bool, most int) (e hint.Entry, collided bool, err error) {
	s.held, s.releasing = held, s.beingReleased(s.space)
	for addr := range s.Hint.SeenElsewhere(s.space.Domain) { // in the node's own block, if the pool has blocks
		if !held[addr] && s.space.Contains(addr) {
			s.Hint.ForgetElsewhere(s.space.Domain, addr)
		}
	}
	return s.tryAll(ctx, most)
}

// windowsOf returns the labels of the windows that a space lies in, or none if those are too many
// for one list.
func windowsOf(space *pool.Block) (labels []string) {
	if space.Size() > maxNamed*256 {
		return nil
	}
	seen := map[netip.Prefix]bool{}
	for addr := range space.Candidates(netip.Addr{}) {
		window := v1alpha1.WindowOf(addr)
		if seen[window] {
			continue
		}
		if len(labels) == maxNamed {
			return nil
		}
		seen[window] = true
		labels = append(labels, v1alpha1.WindowLabel(addr))
	}
	return labels
}

// searchReleased claims an address whose cooldown is over, before the controller deletes its
// allocation.
func (s *search) searchReleased(ctx context.Context) (hint.Entry, error) {
	released, err := s.Ledger.Released(ctx) // of other pools of the domain, too
	rand.Shuffle(len(released), func(i, j int) { released[i], released[j] = released[j], released[i] })
	for i := range released {
		e := entryOf(&released[i])
		if e.Domain != s.space.Domain || !s.space.Contains(e.Address) || s.yields(&released[i], s.req) == none {
			continue
		}
		s.Hint.ClaimingRequested(hint.Entry{Attachment: s.req.Attachment, Domain: e.Domain, Address: e.Address})
		claimed, err := s.claimReleased(ctx, s.req, s.space, e.Address, &released[i])
		if !ledger.IsInUse(err) {
			return claimed, err
		}
	}
	return hint.Entry{}, err
}

// anyFree reports whether an address is not known to be held.
func (s *search) anyFree() bool {
	for addr := range s.space.Candidates(netip.Addr{}) {
		if !s.held[addr] {
			return true
		}
	}
	return false
}
