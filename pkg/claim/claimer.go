// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// Claimer claims and releases addresses for the containers of one node. Any number of
// Claimers may run at the same time, in one process or in many.
type Claimer struct {
	// Ledger is the record of all claims, in the API server.
	Ledger ledger.Ledger
	// Hint is what this node believes that it holds, on its disk.
	Hint *hint.Hint
	// Log says what a call did and why.
	Log *slog.Logger
	// LossGrace is how long this node claims nothing new after it has found that
	// allocations were lost. 0 stands for DefaultLossGrace.
	LossGrace time.Duration
	// ReleaseCooldown is how long addresses rest after their release, from pools that do
	// not say so themselves. 0 stands for none.
	ReleaseCooldown time.Duration
}

// Errors that a caller may want to tell apart, besides ledger.InUseError, ledger.ErrUnavailable,
// and pool.RequestError for a request that can never succeed; ErrRecordLost and ErrKept are with
// what they are about. An error of the API server is in the chain of the error.
var (
	// ErrPoolNotFound: there is no such pool, or it has no block for this node, or is not for it.
	// The text is completed by poolNotFound.
	ErrPoolNotFound = errors.New("not found")
	// ErrExhausted: this node has found no free address: now, or so lately that the hint still
	// believes it (hint.Full). In a large space only random ones were tried.
	ErrExhausted = errors.New("no free addresses in the pool")
	// ErrNotHeld: the attachment does not hold an address of the pool. The text is completed by
	// checkIn.
	ErrNotHeld = errors.New("not found")
)

func poolNotFound(ref v1alpha1.PoolReference, why string) error {
	return fmt.Errorf("configuration for pool %q, poolType %q %w: %s", ref.Name, pool.Type(ref.Kind), ErrPoolNotFound, why)
}

// heldBy returns what the attachment holds. If the hint is complete, it knows; if not,
// the API server lists what the node holds. If the list fails, heldBy returns what the
// hint has, with the error.
func (c *Claimer) heldBy(ctx context.Context, att hint.Attachment) ([]hint.Entry, error) {
	found, complete := c.Hint.Holding(att)
	if complete {
		return found, nil
	}
	listed, err := c.rebuild(ctx, time.Time{})
	if err != nil {
		return found, err
	}
	found, _ = c.Hint.Holding(att)
	for _, e := range listed { // needed if the disk fails and the hint stays empty
		if e.Attachment == att && !contains(found, e) {
			found = append(found, e)
		}
	}
	return found, nil
}

// contains reports whether the entries include the claim e.
func contains(entries []hint.Entry, e hint.Entry) bool {
	for _, o := range entries {
		if o.Domain == e.Domain && o.Address == e.Address && (o.UID == e.UID || o.UID == "") {
			return true
		}
	}
	return false
}

// Complete rebuilds the hint unless it is complete.
func (c *Claimer) Complete(ctx context.Context) error {
	if c.Hint.Complete() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, listTime)
	defer cancel()
	_, err := c.rebuild(ctx, time.Time{})
	return err
}

// Refresh rebuilds the hint, complete or not: another IPAM has served the node meanwhile, and
// DELs of this project's containers went to it.
func (c *Claimer) Refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, listTime)
	defer cancel()
	_, err := c.rebuild(ctx, time.Now())
	return err
}

// rebuild makes the hint complete: afterwards it agrees with a list of the API server
// that is not older than since. What the API server has lost is written again first. One
// call of the node lists, the others wait for it. Only the call that lists returns the
// list.
func (c *Claimer) rebuild(ctx context.Context, since time.Time) ([]hint.Entry, error) {
	r := c.Hint.Rebuild(ctx, since)
	if r == nil {
		return nil, unavailable(ctx, "waiting for another call on this node, which lists the node's allocations")
	}
	defer r.End()
	if since.IsZero() && hint.JustBooted() {
		pause(ctx, rand.N(bootJitter))
	}
	all, at, version, err := c.Ledger.OfNode(ctx)
	if err != nil {
		return nil, err
	}
	entries := make([]hint.Entry, 0, len(all))
	for i := range all {
		if all[i].Spec.Held() {
			entries = append(entries, entryOf(&all[i]))
		}
	}
	for _, e := range r.Unlisted(entries) {
		if !e.Record.Spec.Owner.IsIPAMClaim() {
			continue
		}
		a, err := c.Ledger.Get(ctx, e.Name()) // another node may hold it: see joins
		if err != nil {
			return nil, err
		}
		if a = c.of(a, e.Attachment); a != nil {
			entries = append(entries, entryOf(a))
		}
	}
	restored, err := c.restore(ctx, r.Missing(entries), version)
	if err != nil {
		return nil, err
	}
	entries = append(entries, restored...)
	r.Enter(at, entries)
	for i := range all {
		if all[i].Spec.Released() {
			c.Hint.EnterResting(entryOf(&all[i]), &all[i].Spec)
		}
	}
	c.Log.Info("rebuilt the node's hint from the API server", "node", c.Ledger.Node, "allocations", len(all))
	return entries, nil
}

// unavailable returns an error if ctx has ended.
func unavailable(ctx context.Context, doing string) error {
	if ctx.Err() == nil {
		return nil
	}
	return fmt.Errorf("%w: %s: %w", ledger.ErrUnavailable, doing, ctx.Err())
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// entryOf returns the hint's entry for an allocation of this node.
func entryOf(a *v1alpha1.IPAllocation) hint.Entry {
	domain, addr, err := v1alpha1.ParseAllocationName(a.Name) // the name decides, not the spec
	if err != nil {
		domain = a.DomainOf()
		addr, _ = netip.ParseAddr(a.Spec.Address)
	}
	e := hint.Entry{Attachment: hint.AttachmentOf(a), Domain: domain, Address: addr, UID: a.UID, Record: hint.NewRecord(a), Kept: a.Spec.IsKept()}
	if started := a.Spec.AddStartedAt; e.Kept && started != nil {
		e.Started = started.UnixMicro()
	}
	return e
}

// of returns the allocation as that of an attachment of this node: see ledger.OfAttachment.
func (c *Claimer) of(a *v1alpha1.IPAllocation, att hint.Attachment) *v1alpha1.IPAllocation {
	return ledger.OfAttachment(a, &v1alpha1.IPAllocationSpec{NodeName: c.Ledger.Node, ContainerID: att.ContainerID, InterfaceName: att.Interface})
}
