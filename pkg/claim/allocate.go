// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// Request is one attachment's wish for addresses.
type Request struct {
	hint.Attachment
	// Pools to take one address of each from, in this order.
	Pools []v1alpha1.PoolReference
	// Want is what is asked for beyond any address at all.
	Want pool.Want
	// OnePerFamily says that the result has room for one address of each family.
	OnePerFamily bool
	// Network, Pod and DeviceID are noted in the allocation.
	Network  string
	Pod      v1alpha1.PodReference
	DeviceID string

	started time.Time       // when the ADD began; zero if nobody knows
	foreign map[string]bool // allocations that it must not make: see hint.Foreign
}

// Claim is an address that was claimed, and the block that it belongs to.
type Claim struct {
	Address netip.Addr
	Block   *pool.Block
}

// Allocate claims one address of each pool, or none at all. It may return
// ErrPoolNotFound, ErrExhausted, ErrTakingOver, ledger.ErrUnavailable,
// ledger.InUseError and pool.RequestError.
//
// In the common case that is two requests for each pool: the pool's metadata is
// read and the allocation is created.
func (c *Claimer) Allocate(ctx context.Context, req Request) ([]Claim, error) {
	req.started = time.Now()
	if err := c.awaitOpen(ctx); err != nil {
		return nil, err
	}
	req.foreign = c.Hint.Foreign()
	if err := c.releaseEarlier(ctx, req.Attachment); err != nil {
		return nil, err
	}
	before := c.claimedBefore(req)
	views := make([]view, len(req.Pools))
	blocks := make([]*pool.Block, len(req.Pools))
	for i, ref := range req.Pools {
		v, err := c.view(ctx, ref)
		if err != nil {
			return nil, err
		}
		views[i], blocks[i] = v, v.Block
	}
	wanted, err := match(blocks, req)
	if err != nil {
		return nil, err
	}

	claims := make([]Claim, 0, len(blocks))
	var held []hint.Entry
	for i, v := range views {
		e, err := c.allocate(ctx, req, v, wanted[i], before)
		if err != nil {
			return nil, errors.Join(err, c.giveBack(ctx, held))
		}
		held = append(held, e)
		claims = append(claims, Claim{Address: e.Address, Block: v.Block})
	}
	return claims, nil
}

// match says which address of each block is asked for.
func match(blocks []*pool.Block, req Request) ([]netip.Addr, error) {
	if req.OnePerFamily {
		if err := pool.OnePerFamily(blocks); err != nil {
			return nil, err
		}
	}
	return pool.Match(blocks, req.Want)
}

// allocate claims wanted; if it is zero, any free address, preferring one that this
// attachment already holds: an ADD whose answer was lost is asked again, and must not
// take another one.
func (c *Claimer) allocate(ctx context.Context, req Request, v view, wanted netip.Addr, before func(*pool.Block) netip.Addr) (hint.Entry, error) {
	if wanted.IsValid() {
		return c.claimRequested(ctx, req, v.Block, wanted)
	}
	if addr := before(v.Block); addr.IsValid() {
		e, err := c.create(ctx, req, v.Block, addr, false)
		if !ledger.IsInUse(err) {
			return e, err
		}
	}
	return c.claimAny(ctx, req, v)
}

// claimRequested claims one address and no other.
func (c *Claimer) claimRequested(ctx context.Context, req Request, b *pool.Block, addr netip.Addr) (hint.Entry, error) {
	if req.foreign[v1alpha1.AllocationName(b.Pool.Name, addr)] {
		return hint.Entry{}, foreignInUse(b.Pool, addr)
	}
	c.Hint.ClaimingRequested(hint.Entry{Attachment: req.Attachment, Pool: b.Pool.Name, Address: addr})
	return c.create(ctx, req, b, addr, true)
}

// claimedBefore finds out which addresses this very attachment already has. It looks
// at every entry of the pools, which takes the longer the fuller a block is: so that
// goes on while the connection to the API server is made, and the function that
// it returns waits for the end.
func (c *Claimer) claimedBefore(req Request) func(*pool.Block) netip.Addr {
	var all []hint.Entry
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, ref := range req.Pools {
			all = append(all, c.Hint.HoldingIn(ref.Name, req.Attachment)...)
		}
	}()
	return func(b *pool.Block) netip.Addr {
		<-done
		for _, e := range all {
			if e.Pool == b.Pool.Name && b.Range.Contains(e.Address) {
				return e.Address
			}
		}
		return netip.Addr{}
	}
}

// giveBack releases what a failed call has claimed, even when its time is over.
func (c *Claimer) giveBack(ctx context.Context, held []hint.Entry) error {
	if len(held) == 0 {
		return nil
	}
	ctx, cancel := contextForCleanup(ctx)
	defer cancel()
	return c.releaseAll(ctx, held)
}
