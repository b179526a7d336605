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

// Claimer claims addresses for the containers of one node. Any number of them
// may run at once, in one process or in many.
type Claimer struct {
	// Ledger is the record of all claims.
	ledger.Ledger
	// Hint of this node.
	Hint *hint.Hint
	// Log of what a call did and why.
	Log *slog.Logger
}

// What goes wrong, as a caller has to tell it apart. Besides these there are
// ledger.InUseError, ledger.ErrUnavailable, and pool.RequestError for a request that
// can never be met. Anything else is the API server's own refusal, passed on as it is.
var (
	// ErrPoolNotFound: there is no such pool, or it has no block for this node.
	ErrPoolNotFound = errors.New("not found")
	// ErrExhausted: every address of this node's block is held. The API server
	// said so, not the hint.
	ErrExhausted = errors.New("no free addresses in the pool")
	// ErrNotHeld: the attachment does not hold an address of the pool.
	ErrNotHeld = errors.New("not found")
)

func poolNotFound(ref v1alpha1.PoolReference, why string) error {
	return fmt.Errorf("configuration for pool %q, poolType %q %w: %s", ref.Name, pool.Type(ref.Kind), ErrPoolNotFound, why)
}

func notHeld(ref v1alpha1.PoolReference) error {
	return fmt.Errorf("reservation for pool %q, poolType %q %w", ref.Name, pool.Type(ref.Kind), ErrNotHeld)
}

// cleanupTimeout is what undoing may take after a call's own time is over.
const cleanupTimeout = 5 * time.Second

// contextForCleanup outlives ctx, which may have expired: what was begun has to
// be undone all the same.
func contextForCleanup(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
}

// holding returns what the attachment holds: as the hint has it if that is complete,
// else as the API server lists it as well. If that fails, it returns with the error
// what the hint has.
func (c *Claimer) holding(ctx context.Context, att hint.Attachment) ([]hint.Entry, error) {
	found, sure := c.Hint.Holding(att)
	if sure {
		return found, nil
	}
	listed, err := c.rebuild(ctx, time.Time{})
	if err != nil {
		return found, err
	}
	found, _ = c.Hint.Holding(att)
	for _, e := range listed { // the hint may not be usable at all
		if e.Attachment == att && !contains(found, e) {
			found = append(found, e)
		}
	}
	return found, nil
}

// contains reports whether the entries have the address of e.
func contains(entries []hint.Entry, e hint.Entry) bool {
	for _, o := range entries {
		if o.Pool == e.Pool && o.Address == e.Address && (o.UID == e.UID || o.UID == "") {
			return true
		}
	}
	return false
}

// Complete makes the hint complete, if it is not.
func (c *Claimer) Complete(ctx context.Context) error {
	if c.Hint.Complete() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, rebuildPatience)
	defer cancel()
	_, err := c.rebuild(ctx, time.Time{})
	return err
}

// bootJitter spreads the lists of nodes that were started at one time.
const bootJitter = 2 * time.Second

// rebuild makes the hint complete, and agree with the API server as of a time not
// before since. One call of the node lists, the others wait for it; only the one
// that lists returns what it listed.
func (c *Claimer) rebuild(ctx context.Context, since time.Time) ([]hint.Entry, error) {
	r := c.Hint.Rebuild(ctx, since)
	if r == nil {
		return nil, unavailable(ctx, "waiting for another call of this node that lists its allocations")
	}
	defer r.End()
	if since.IsZero() && hint.JustBooted() {
		pause(ctx, rand.N(bootJitter))
	}
	all, at, err := c.OfNode(ctx)
	if err != nil {
		return nil, err
	}
	entries := make([]hint.Entry, 0, len(all))
	for i := range all {
		entries = append(entries, entryOf(&all[i]))
	}
	r.Enter(at, entries)
	c.Log.Info("rebuilt the node's hint from the API server", "node", c.Node, "allocations", len(all))
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

func attachmentOf(a *v1alpha1.IPAllocation) hint.Attachment {
	return hint.Attachment{ContainerID: a.Spec.ContainerID, Interface: a.Spec.InterfaceName}
}

// entryOf reads an allocation of this node.
func entryOf(a *v1alpha1.IPAllocation) hint.Entry {
	poolName, addr, err := v1alpha1.ParseAllocationName(a.Name) // what decides is the name
	if err != nil {
		poolName = a.Spec.PoolRef.Name
		addr, _ = netip.ParseAddr(a.Spec.Address)
	}
	return hint.Entry{Attachment: attachmentOf(a), Pool: poolName, Address: addr, UID: a.UID}
}

// isMine reports whether an allocation is of an attachment of this node.
func (c *Claimer) isMine(a *v1alpha1.IPAllocation, att hint.Attachment) bool {
	return ledger.Same(&a.Spec, &v1alpha1.IPAllocationSpec{NodeName: c.Node, ContainerID: att.ContainerID, InterfaceName: att.Interface})
}
