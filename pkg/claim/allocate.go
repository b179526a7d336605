// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// Request is one attachment's wish for addresses.
type Request struct {
	Attachment
	// Pools to take one address of each from, in this order.
	Pools []v1alpha1.PoolReference
	// Want is what is asked for beyond any address at all.
	Want pool.Want
	// Network, Pod and DeviceID are noted in the allocation.
	Network  string
	Pod      v1alpha1.PodReference
	DeviceID string

	started time.Time       // when the ADD began; zero where nobody knows
	foreign map[string]bool // allocations that it must not make: see Hint.foreign
}

// Claim is an address that was claimed, and the block that it belongs to.
type Claim struct {
	Address netip.Addr
	Block   *pool.Block
}

// Allocate claims one address of each pool, or none at all. It may return
// ErrPoolNotFound, ErrExhausted, ErrUnavailable, ErrTakingOver, InUseError and
// pool.RequestError.
//
// In the common case that is two requests for each pool: the pool's metadata is
// read and the allocation is created.
func (c *Claimer) Allocate(ctx context.Context, req Request) ([]Claim, error) {
	req.started = time.Now()
	if err := c.awaitOpen(ctx); err != nil {
		return nil, err
	}
	req.foreign = c.Hint.foreign()
	if err := c.settleOwn(ctx, req.Attachment); err != nil {
		return nil, err
	}
	c.settleDebts(ctx, debtsPerCall)
	if !c.Hint.Complete() {
		if _, err := c.rebuild(ctx); err != nil {
			return nil, err
		}
	}
	before := c.claimedBefore(req)
	blocks := make([]*pool.Block, len(req.Pools))
	for i, ref := range req.Pools {
		b, err := c.block(ctx, ref)
		if err != nil {
			return nil, err
		}
		blocks[i] = b
	}
	wanted, err := pool.Match(blocks, req.Want)
	if err != nil {
		return nil, err
	}

	claims := make([]Claim, 0, len(blocks))
	var helds []Held
	for i, b := range blocks {
		held, err := c.claim(ctx, req, b, wanted[i], before)
		if err != nil {
			return nil, errors.Join(err, c.giveBack(ctx, helds))
		}
		helds = append(helds, held)
		claims = append(claims, Claim{Address: held.Address, Block: b})
	}
	return claims, nil
}

// claim claims the wanted address of a block, or any where that is zero; then
// rather the one that the attachment has before.
func (c *Claimer) claim(ctx context.Context, req Request, b *pool.Block, wanted netip.Addr, before func(*pool.Block) netip.Addr) (Held, error) {
	if wanted.IsValid() {
		return c.claimRequested(ctx, req, b, wanted)
	}
	if addr := before(b); addr.IsValid() {
		held, err := c.create(ctx, req, b, addr)
		if !isInUse(err) {
			return held, err
		}
	}
	return c.claimAny(ctx, req, b)
}

// claimRequested claims one address and no other. Where an earlier sandbox of the
// same pod has it, whose DEL was lost, that one gives way.
func (c *Claimer) claimRequested(ctx context.Context, req Request, b *pool.Block, addr netip.Addr) (Held, error) {
	if req.foreign[v1alpha1.AllocationName(b.Pool.Name, addr)] {
		return Held{}, foreignInUse(b.Pool, addr)
	}
	try := func() (Held, error) {
		c.hintFailed("holding an address", c.Hint.HoldRequested(Held{Attachment: req.Attachment, Pool: b.Pool.Name, Address: addr}))
		return c.create(ctx, req, b, addr)
	}
	held, err := try()
	var inUse *InUseError
	if !errors.As(err, &inUse) || !c.earlierSandbox(inUse.Holder, req) {
		return held, err
	}
	if err := c.delete(ctx, heldOf(inUse.Holder), inUse.Holder.UID); err != nil {
		return Held{}, fmt.Errorf("releasing %s, which the pod's earlier sandbox %s has held: %w", addr, inUse.Holder.Spec.ContainerID, err)
	}
	c.Log.Info("took an address over from the pod's earlier sandbox", "address", addr, "pool", b.Pool.Name, "sandbox", inUse.Holder.Spec.ContainerID)
	return try()
}

// sandboxAge is how old an allocation is at least before another sandbox of its pod
// takes it over: no ADD for an earlier one, of 20 seconds, is under way then. The
// node's clock and the API server's are compared by it.
const sandboxAge = 40 * time.Second

// earlierSandbox reports whether an allocation is of another sandbox of the pod
// that a request is for, on this node and for the same interface. A kubelet makes a
// new sandbox only when it has stopped the one before, so that nobody answers there
// any more. Only a kubelet's pods have a UID.
func (c *Claimer) earlierSandbox(holder *v1alpha1.IPAllocation, req Request) bool {
	s := holder.Spec
	return req.Pod.UID != "" && s.PodRef == req.Pod && s.NodeName == c.Node && s.InterfaceName == req.Interface &&
		s.ContainerID != "" && s.ContainerID != req.ContainerID && time.Since(holder.CreationTimestamp.Time) > sandboxAge
}

// claimedBefore finds out which addresses this very attachment already has: an
// ADD whose answer was lost is asked again, and must not take others. It looks at
// every entry of the pools, which takes the longer the fuller a block is: so that
// goes on while the connection to the API server is made, and the function that
// it returns waits for the end.
func (c *Claimer) claimedBefore(req Request) func(*pool.Block) netip.Addr {
	var all []Held
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, ref := range req.Pools {
			found, err := c.Hint.FindIn(ref.Name, req.Attachment)
			c.hintFailed("finding the attachment", err)
			all = append(all, found...)
		}
	}()
	return func(b *pool.Block) netip.Addr {
		<-done
		for _, held := range all {
			if held.Pool == b.Pool.Name && b.Range.Contains(held.Address) {
				return held.Address
			}
		}
		return netip.Addr{}
	}
}

// maxCollisions is how many addresses in a row may turn out to be held by others
// before asking for all of them at once is cheaper.
const maxCollisions = 3

// claimAny claims the next free address of the block. The hint proposes, create
// decides. Only after a list of what is really held may it say that nothing is
// free: the hint holds too much rather than too little.
func (c *Claimer) claimAny(ctx context.Context, req Request, b *pool.Block) (Held, error) {
	last := c.Hint.Last(b.Pool)
	var listed map[netip.Addr]bool
	for {
		held, collided, err := c.tryCandidates(ctx, req, b, last, listed)
		if err != nil || held.Address.IsValid() {
			return held, err
		}
		switch {
		case listed == nil:
			c.settleDebts(ctx, math.MaxInt)
			if listed, err = c.syncPool(ctx, b); err != nil {
				return Held{}, err
			}
			if collided.IsValid() {
				last = collided
			}
		case collided.IsValid():
			// Others claim in this block at this very moment. In step with them
			// it would collide over and over.
			listed[collided] = false
			last = b.Somewhere()
		default:
			return Held{}, exhausted(b.Pool)
		}
	}
}

// tryCandidates tries the addresses after last in turn. It returns no address
// where there are no more, or where more of them were held by others than may be,
// which is none once they are listed; then it returns the last one of those.
func (c *Claimer) tryCandidates(ctx context.Context, req Request, b *pool.Block, last netip.Addr, listed map[netip.Addr]bool) (held Held, collided netip.Addr, err error) {
	unsettled, err := c.Hint.unsettled()
	c.hintFailed("reading what is being released", err)
	collisions := 0
	for addr := range b.Candidates(last) {
		// What is being released may be free already; the list says so.
		name := v1alpha1.AllocationName(b.Pool.Name, addr)
		if _, taken := listed[addr]; taken || req.foreign[name] || listed == nil && unsettled[name] != nil {
			continue
		}
		free, err := c.Hint.Hold(b.Pool.Name, addr, req.Attachment)
		c.hintFailed("holding an address", err)
		if err == nil && !free {
			continue
		}
		held, err := c.create(ctx, req, b, addr)
		if err == nil {
			c.hintFailed("noting where round robin stopped", c.Hint.SetLast(b.Pool, addr))
			return held, netip.Addr{}, nil
		}
		if !isInUse(err) {
			return Held{}, netip.Addr{}, err
		}
		c.Log.Debug("candidate is held by another", "error", err)
		c.hintFailed("marking an address", c.Hint.SetElsewhere(Held{Attachment: req.Attachment, Pool: b.Pool.Name, Address: addr}))
		if collisions++; collisions == maxCollisions || listed != nil {
			return Held{}, addr, nil
		}
	}
	return Held{}, netip.Addr{}, nil
}

// create claims one address. A claim of this very attachment that is there
// already is its own, from a call whose answer was lost.
func (c *Claimer) create(ctx context.Context, req Request, b *pool.Block, addr netip.Addr) (Held, error) {
	held := Held{Attachment: req.Attachment, Pool: b.Pool.Name, Address: addr}
	var err error
	held.UID, _, err = c.post(ctx, c.allocation(req, b, addr), req.Attachment)
	switch {
	case err == nil:
		c.hintFailed("entering a claim", c.Hint.Set(held))
		return held, nil
	case errors.Is(err, errUnanswered):
		return Held{}, errors.Join(fmt.Errorf("claiming %s: %w", addr, err), c.giveBack(ctx, []Held{held}))
	default:
		c.hintFailed("letting go of an address", c.Hint.Drop(held))
		return Held{}, err
	}
}

// post creates an allocation, and reports whether that made it: it may have been
// the attachment's before. The error is errUnanswered where the allocation may be
// there nevertheless.
func (c *Claimer) post(ctx context.Context, alloc *v1alpha1.IPAllocation, att Attachment) (uid types.UID, created bool, err error) {
	client := c.Client.IPAllocations(c.Namespace)
	unanswered := false
	err = retry(ctx, func() error {
		made, err := client.Create(ctx, alloc, metav1.CreateOptions{})
		if err == nil {
			uid, created = made.UID, true
			return nil
		}
		if !refused(err) {
			unanswered = true
		}
		if !apierrors.IsAlreadyExists(err) {
			return err
		}
		holder, err := client.Get(ctx, alloc.Name, metav1.GetOptions{})
		switch {
		case notFound(err): // released between the two requests
			return apierrors.NewServerTimeout(v1alpha1.Resource("ipallocations"), "create", 0)
		case err != nil:
			unanswered = true // the holder may be this very attachment
			return err
		case attachmentOf(holder) != att:
			addr, _ := netip.ParseAddr(alloc.Spec.Address) // made from one
			return &InUseError{Address: addr, Holder: holder}
		}
		uid = holder.UID
		return nil
	})
	if unanswered && err != nil && !isInUse(err) {
		err = fmt.Errorf("%w, %w", err, errUnanswered)
	}
	return uid, created, err
}

func isInUse(err error) bool {
	var inUse *InUseError
	return errors.As(err, &inUse)
}

// giveBack releases what a failed call has claimed, even when its time is over.
func (c *Claimer) giveBack(ctx context.Context, helds []Held) error {
	if len(helds) == 0 {
		return nil
	}
	ctx, cancel := contextForCleanup(ctx)
	defer cancel()
	return c.releaseAll(ctx, helds)
}

func (c *Claimer) allocation(req Request, b *pool.Block, addr netip.Addr) *v1alpha1.IPAllocation {
	var started *metav1.MicroTime
	if !req.started.IsZero() {
		started = &metav1.MicroTime{Time: req.started.UTC()}
	}
	return &v1alpha1.IPAllocation{
		ObjectMeta: metav1.ObjectMeta{
			Name:      v1alpha1.AllocationName(b.Pool.Name, addr),
			Namespace: c.Namespace,
			Labels: map[string]string{
				v1alpha1.LabelPool:      v1alpha1.LabelValue(b.Pool.Name),
				v1alpha1.LabelNode:      v1alpha1.LabelValue(c.Node),
				v1alpha1.LabelContainer: v1alpha1.ContainerLabel(req.ContainerID),
			},
		},
		Spec: v1alpha1.IPAllocationSpec{
			PoolRef:       b.Pool,
			Address:       addr.String(),
			NodeName:      c.Node,
			PodRef:        req.Pod,
			ContainerID:   req.ContainerID,
			InterfaceName: req.Interface,
			NetworkName:   req.Network,
			DeviceID:      req.DeviceID,
			Requested:     len(req.Want.Addresses) > 0 || req.Want.DefaultGateway || req.Want.Index != nil,
			AddStartedAt:  started,
		},
	}
}

// syncPool makes the hint agree with what the API server says is held in the
// pool, and returns that: true for what this node holds. It reads names only,
// page by page: a pool may hold 100,000.
func (c *Claimer) syncPool(ctx context.Context, b *pool.Block) (map[netip.Addr]bool, error) {
	selector := labels.Set{v1alpha1.LabelPool: v1alpha1.LabelValue(b.Pool.Name)}.String()
	listed := map[netip.Addr]bool{}
	var at time.Time
	err := retry(ctx, func() error {
		clear(listed)
		at = time.Now()
		next := ""
		for {
			var page names
			if err := c.listMetadata(ctx, selector, next, &page); err != nil {
				return err
			}
			for _, item := range page.Items {
				if _, addr, err := v1alpha1.ParseAllocationName(item.Metadata.Name); err == nil {
					listed[addr] = item.Metadata.Labels[v1alpha1.LabelNode] == v1alpha1.LabelValue(c.Node)
				}
			}
			if next = page.Metadata.Continue; next == "" {
				return nil
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("listing the allocations of pool %s: %w", b.Pool.Name, err)
	}
	c.hintFailed("entering what is held", c.Hint.Sync(b.Pool.Name, at, b.Range.Contains, listed))
	c.Log.Info("listed what is held in the pool", "pool", b.Pool.Name, "allocations", len(listed))
	return listed, nil
}

// names is as much of a list as is read.
type names struct {
	Metadata metav1.ListMeta `json:"metadata"`
	Items    []struct {
		Metadata struct {
			Name   string            `json:"name"`
			Labels map[string]string `json:"labels"`
		} `json:"metadata"`
	} `json:"items"`
}
