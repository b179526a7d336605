// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// errMayBeCreated: there is no allocation, but the API server has not answered the
// create and may still carry it out.
var errMayBeCreated = errors.New("the API server may still carry out a create that it has not answered")

// Release releases everything that the attachment holds. It succeeds if nothing is held,
// and if the release could only be noted because the API server is away or refuses it:
// later calls on this node carry it out. It returns an error if a release could neither
// be carried out nor noted.
func (c *Claimer) Release(ctx context.Context, att hint.Attachment) error {
	listing, cancel := context.WithTimeout(ctx, listTime)
	defer cancel()
	entries, err := c.heldBy(listing, att)
	if err != nil {
		if !c.Hint.ReleasingAttachment(att) {
			return err
		}
		c.Log.Warn("cannot find out what the attachment holds; later calls will release it", "error", err)
		return c.releaseAll(ctx, entries)
	}
	err = c.releaseAll(ctx, entries)
	c.retryPending(ctx, maxRetries)
	return err
}

// ReleaseKnown releases what the hint knows that the attachment holds.
func (c *Claimer) ReleaseKnown(ctx context.Context, att hint.Attachment) error {
	entries, _ := c.Hint.Holding(att)
	return c.releaseAll(ctx, entries)
}

// ReleaseLater notes in a hint that everything the attachment holds has to be released,
// for a call that cannot reach the API server. It reports whether the release is noted,
// or there is none to note: the hint is complete and the attachment holds nothing.
func ReleaseLater(h *hint.Hint, att hint.Attachment) (noted bool) {
	entries, complete := h.Holding(att)
	if !complete {
		return h.ReleasingAttachment(att)
	}
	noted = true
	for _, e := range entries {
		noted = h.Releasing(e) && h.NotReleased(e) && noted
	}
	return noted
}

// releaseAll notes each release, carries it out, and removes the note. One failure does
// not stop the others, but only one release waits for an API server that is away.
func (c *Claimer) releaseAll(ctx context.Context, all []hint.Entry) error {
	var errs []error
	wait := releaseTime
	for _, e := range all {
		away, err := c.releaseOne(ctx, e, wait)
		if err != nil {
			errs = append(errs, fmt.Errorf("releasing %s of domain %s: %w", e.Address, e.Domain, err))
		}
		if away {
			wait = 0
		}
	}
	return errors.Join(errs...)
}

// releaseOne releases one address. If the release is noted, it takes at most wait and is
// then left to later calls; if not, it takes all the time of ctx. It reports whether the
// API server was away.
func (c *Claimer) releaseOne(ctx context.Context, e hint.Entry, wait time.Duration) (away bool, err error) {
	noted := c.Hint.Releasing(e)
	if noted {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, wait)
		defer cancel()
	}
	done, err := c.endAny(ctx, e)
	away = errors.Is(err, ledger.ErrUnavailable)
	switch {
	case err == nil:
		c.releasedAs(e, done)
		c.Log.Info("released", "address", e.Address, "domain", e.Domain, "container", e.ContainerID, "interface", e.Interface)
		return false, nil
	case noted && c.Hint.NotReleased(e):
		c.logPending(e, err)
		return away, nil
	case errors.Is(err, errMayBeCreated): // if it is created, the controller reclaims it
		return false, nil
	}
	return away, err
}

func (c *Claimer) logPending(e hint.Entry, why error) {
	level := slog.LevelWarn
	if errors.Is(why, errMayBeCreated) {
		level = slog.LevelInfo
	}
	c.Log.Log(context.Background(), level, "release is left to later calls", "address", e.Address, "domain", e.Domain,
		"container", e.ContainerID, "interface", e.Interface, "error", why)
}

// ended is what became of a claim that was ended.
type ended struct {
	// rests is the allocation if it outlives the claim, else nil.
	rests *v1alpha1.IPAllocation
	// replaced is true if there is an allocation with another UID than that of the entry.
	replaced bool
}

// endAny is endHeld for a call that ends all that the attachment holds. If the
// allocation has another UID than this node knows, it ends that of the attachment
// nevertheless: a backup of the record may have been applied again.
func (c *Claimer) endAny(ctx context.Context, e hint.Entry) (ended, error) {
	done, err := c.endHeld(ctx, e, time.Now())
	if err != nil || !done.replaced {
		return done, err
	}
	done, err = c.endHeld(ctx, e.WithoutUID(), time.Now())
	if errors.Is(err, errMayBeCreated) { // it is gone by now, and was answered
		return ended{}, nil
	}
	return done, err
}

// endHeld ends the attachment's claim on an address, if it has one: it releases an
// allocation that outlives it, with this time, and deletes any other.
func (c *Claimer) endHeld(ctx context.Context, e hint.Entry, at time.Time) (done ended, err error) {
	e, err = c.withUID(ctx, e)
	if err != nil || e.UID == "" {
		return ended{}, err
	}
	if e.Kept {
		done.rests, err = c.Ledger.ReleaseKept(ctx, holdingOf(e), at)
		if !apierrors.IsForbidden(err) {
			return done, err
		}
		// The Role and the policy are an earlier version's, which lets no node release by a patch.
		// Nobody takes over or joins there either, so the UID alone says who holds it.
		if now, failed := c.Ledger.Get(ctx, e.Name()); failed != nil || now != nil && now.Spec.Next != nil {
			return ended{}, errors.Join(err, failed)
		}
	}
	done.replaced, err = c.Ledger.Delete(ctx, e.Name(), e.UID)
	if apierrors.IsForbidden(err) && !e.Kept && e.Record == nil { // the hint may not know that it is kept
		now, failed := c.withUID(ctx, e.WithoutUID())
		if failed == nil && now.Kept {
			return c.endHeld(ctx, now, at)
		}
	}
	return done, err
}

// withUID returns the entry with the UID of the attachment's claim, or without one if another
// attachment holds the address. It asks the API server only if the create was not answered.
// Then the claim may be created later: errMayBeCreated.
func (c *Claimer) withUID(ctx context.Context, e hint.Entry) (hint.Entry, error) {
	if e.UID != "" {
		return e, nil
	}
	alloc, err := c.Ledger.Get(ctx, e.Name())
	switch mine := c.of(alloc, e.Attachment); {
	case err != nil:
		return e, err
	case mine != nil:
		return entryOf(mine), nil
	case alloc == nil, !alloc.Spec.Held(), alloc.Spec.Owner.IsIPAMClaim():
		// The lost create may still come, as a create, a takeover or a join.
		return e, errMayBeCreated
	}
	return e, nil
}

// releasedAs enters in the hint that a release was carried out. It reports whether its
// note is gone.
func (c *Claimer) releasedAs(e hint.Entry, done ended) (gone bool) {
	if done.rests != nil {
		return c.Hint.ReleasedToRest(e, &done.rests.Spec)
	}
	return c.Hint.Released(e)
}

// Check reports whether the attachment holds an address of each pool: nil,
// ErrNotHeld or ledger.ErrUnavailable.
func (c *Claimer) Check(ctx context.Context, att hint.Attachment, pools []v1alpha1.PoolReference) error {
	c.retryPending(ctx, maxRetries)
	entries, err := c.heldBy(ctx, att)
	if err != nil {
		return err
	}
	if pools, err = c.heldPools(ctx, pools, entries); err != nil {
		return err
	}
	for _, ref := range pools {
		if err := c.checkIn(ctx, ref, pools, entries); err != nil {
			return err
		}
	}
	return nil
}

// checkIn checks the address of one of pools. The pool may have replaced another of its
// domain since the ADD.
func (c *Claimer) checkIn(ctx context.Context, ref v1alpha1.PoolReference, pools []v1alpha1.PoolReference, entries []hint.Entry) error {
	seen := c.Hint.View(ref) != nil // if not, its domain is not known
	domain := c.Hint.View(ref).Domain(ref)
	for _, e := range entries {
		if seen && e.Domain != domain && (e.Record == nil || e.Record.Spec.PoolRef != ref) {
			continue
		}
		alloc, err := c.Ledger.Get(ctx, e.Name())
		if err != nil {
			return fmt.Errorf("reading allocation %s: %w", e.Name(), err)
		}
		if c.of(alloc, e.Attachment) != nil &&
			(alloc.Spec.PoolRef == ref || e.Domain == domain && alloc.Spec.PoolRef.Name != ref.Name && !slices.Contains(pools, alloc.Spec.PoolRef)) {
			return nil
		}
	}
	return fmt.Errorf("reservation for pool %q, poolType %q %w", ref.Name, pool.Type(ref.Kind), ErrNotHeld)
}

// Collect releases what this node holds in a network for attachments that are not in
// valid, a list made before started. It keeps the claims of ADDs that were running when
// the list was made or began later: the list cannot contain them.
func (c *Claimer) Collect(ctx context.Context, network string, valid []hint.Attachment, started time.Time) error {
	c.retryPending(ctx, maxRetries)
	all, _, _, err := c.Ledger.OfNode(ctx)
	if err != nil {
		return err
	}
	keep := make(map[hint.Attachment]bool, len(valid))
	for _, att := range valid {
		keep[att] = true
	}
	var stale []hint.Entry
	for i := range all {
		a := &all[i]
		if a.Spec.NetworkName == network && a.Spec.Held() && !keep[hint.AttachmentOf(a)] && begunBefore(a, started.Add(-AddTime-CleanupTime)) {
			stale = append(stale, entryOf(a))
		}
	}
	for _, e := range c.recorded() { // of an address that another node holds: see joins
		a := &v1alpha1.IPAllocation{Spec: e.Record.Spec}
		if a.Spec.Owner.IsIPAMClaim() && a.Spec.NetworkName == network && !keep[e.Attachment] && begunBefore(a, started.Add(-AddTime-CleanupTime)) && !contains(stale, e) {
			stale = append(stale, e)
		}
	}
	return c.releaseAll(ctx, stale)
}

// begunBefore reports whether the ADD of an allocation began before t, by this node's
// clock. If the allocation does not say when, its creation counts, by the API server's.
func begunBefore(a *v1alpha1.IPAllocation, t time.Time) bool {
	if a.Spec.AddStartedAt != nil {
		return a.Spec.AddStartedAt.Time.Before(t)
	}
	return a.CreationTimestamp.Time.Before(t)
}

// Ready returns nil if the API server answers and lets this node read the pools, and its labels if
// they are in a pool's name, even if a pool or a label does not exist. It also retries pending
// releases: on a node without other calls nothing else would.
func (c *Claimer) Ready(ctx context.Context, pools []v1alpha1.PoolReference) error {
	named, err := c.expand(ctx, pools, labelsAge)
	if errors.Is(err, ErrPoolNotFound) {
		named, err = c.expand(ctx, pools, 0)
	}
	if err != nil && !errors.Is(err, ErrPoolNotFound) {
		return err
	}
	for _, ref := range named {
		if _, err := c.Ledger.PoolMetadata(ctx, ref); err != nil && !ledger.NotFound(err) {
			return err
		}
	}
	c.retryPending(ctx, maxRetries)
	return nil
}
