// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
)

// errMayCome: a create that was never answered has made nothing, so far.
var errMayCome = errors.New("a create may still be carried out")

// rebuildPatience is how long a DEL waits for a list of what this node holds. After
// that it notes that whatever the attachment holds has to be given back.
const rebuildPatience = 4 * time.Second

// Release gives back all that the attachment holds. Nothing held is success, and
// so is a release that could only be noted, because the API server is away or
// refuses it: later calls on this node carry it out. It returns an error if it could
// neither release nor note that.
func (c *Claimer) Release(ctx context.Context, att hint.Attachment) error {
	listing, cancel := context.WithTimeout(ctx, rebuildPatience)
	defer cancel()
	entries, err := c.holding(listing, att)
	if err != nil {
		if !c.Hint.ReleasingAll(att) {
			return err
		}
		c.Log.Warn("what the attachment holds is not known, its release is left to later calls", "error", err)
		return c.releaseAll(ctx, entries)
	}
	err = c.releaseAll(ctx, entries)
	c.carryOut(ctx, releasesPerCall)
	return err
}

// ReleaseKnown gives back what the hint knows that the attachment holds.
func (c *Claimer) ReleaseKnown(ctx context.Context, att hint.Attachment) error {
	entries, _ := c.Hint.Holding(att)
	return c.releaseAll(ctx, entries)
}

// ReleaseLater notes in a hint that what the attachment holds has to be given back:
// there is nothing to ask the API server with. It reports whether all of it is noted;
// that is so if the hint is complete and the attachment holds nothing.
func ReleaseLater(h *hint.Hint, att hint.Attachment) (noted bool) {
	entries, sure := h.Holding(att)
	if !sure {
		return h.ReleasingAll(att)
	}
	noted = true
	for _, e := range entries {
		noted = h.Releasing(e) && h.Owed(e) && noted
	}
	return noted
}

// releasePatience is how long a release waits for an API server that is away
// before it is left to later calls.
const releasePatience = 2 * time.Second

// releaseAll notes each release, carries it out, and removes the note. It tries
// them all whatever happens to one, but waits for the API server only once.
func (c *Claimer) releaseAll(ctx context.Context, all []hint.Entry) error {
	var errs []error
	patience := releasePatience
	for _, e := range all {
		away, err := c.release(ctx, e, patience)
		if err != nil {
			errs = append(errs, fmt.Errorf("releasing %s of pool %s: %w", e.Address, e.Pool, err))
		}
		if away {
			patience = 0
		}
	}
	return errors.Join(errs...)
}

// release releases one address, or leaves it to later calls if that takes longer than
// patience. If it cannot be noted, it takes all the time there is. It reports whether
// the API server was away.
func (c *Claimer) release(ctx context.Context, e hint.Entry, patience time.Duration) (away bool, err error) {
	noted := c.Hint.Releasing(e)
	if noted {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, patience)
		defer cancel()
	}
	err = c.retract(ctx, e)
	away = errors.Is(err, ledger.ErrUnavailable)
	switch {
	case err == nil:
		c.Hint.Released(e)
		c.Log.Info("released", "address", e.Address, "pool", e.Pool, "container", e.ContainerID, "interface", e.Interface)
		return false, nil
	case noted && c.Hint.Owed(e):
		c.logPending(e, err)
		return away, nil
	case errors.Is(err, errMayCome): // and if it comes, the controller reclaims it
		return false, nil
	}
	return away, err
}

func (c *Claimer) logPending(e hint.Entry, why error) {
	level := slog.LevelWarn
	if errors.Is(why, errMayCome) {
		level = slog.LevelInfo
	}
	c.Log.Log(context.Background(), level, "release is left to later calls", "address", e.Address, "pool", e.Pool,
		"container", e.ContainerID, "interface", e.Interface, "error", why)
}

// retract deletes what the attachment holds of an address.
func (c *Claimer) retract(ctx context.Context, e hint.Entry) error {
	uid, err := c.uidOf(ctx, e)
	if err != nil || uid == "" {
		return err
	}
	return c.Delete(ctx, e.Name(), uid)
}

// uidOf returns the UID of the allocation that the attachment holds, empty if it
// holds none. It asks the API server only if the create was never answered, and then
// there may be none yet: errMayCome.
func (c *Claimer) uidOf(ctx context.Context, e hint.Entry) (types.UID, error) {
	if e.UID != "" {
		return e.UID, nil
	}
	alloc, err := c.Get(ctx, e.Name())
	switch {
	case err != nil:
		return "", err
	case alloc == nil:
		return "", errMayCome
	case !c.isMine(alloc, e.Attachment):
		return "", nil
	}
	return alloc.UID, nil
}

// Check reports whether the attachment holds an address of each pool: nil,
// ErrNotHeld or ledger.ErrUnavailable.
func (c *Claimer) Check(ctx context.Context, att hint.Attachment, pools []v1alpha1.PoolReference) error {
	c.carryOut(ctx, releasesPerCall)
	entries, err := c.holding(ctx, att)
	if err != nil {
		return err
	}
	for _, ref := range pools {
		if err := c.checkIn(ctx, ref, entries); err != nil {
			return err
		}
	}
	return nil
}

func (c *Claimer) checkIn(ctx context.Context, ref v1alpha1.PoolReference, entries []hint.Entry) error {
	for _, e := range entries {
		if e.Pool != ref.Name {
			continue
		}
		alloc, err := c.Get(ctx, e.Name())
		if err != nil {
			return fmt.Errorf("reading allocation %s: %w", e.Name(), err)
		}
		if alloc != nil && c.isMine(alloc, e.Attachment) && alloc.Spec.PoolRef == ref {
			return nil
		}
	}
	return notHeld(ref)
}

// addTime is how long an ADD may be under way: its own time and that of undoing.
const addTime = 26 * time.Second

// Collect releases what this node holds in a network for attachments that are not
// among the valid ones, which were counted before started. What an ADD has asked for
// since, or was asking for at that time, is not in that list and stays.
func (c *Claimer) Collect(ctx context.Context, network string, valid []hint.Attachment, started time.Time) error {
	c.carryOut(ctx, releasesPerCall)
	all, _, err := c.OfNode(ctx)
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
		if a.Spec.NetworkName == network && a.Spec.ContainerID != "" && !keep[attachmentOf(a)] && begunBefore(a, started.Add(-addTime)) {
			stale = append(stale, entryOf(a))
		}
	}
	return c.releaseAll(ctx, stale)
}

// begunBefore reports whether the ADD of an allocation began before a time, by this
// node's clock; if nobody noted that, by the API server's.
func begunBefore(a *v1alpha1.IPAllocation, t time.Time) bool {
	if a.Spec.AddStartedAt != nil {
		return a.Spec.AddStartedAt.Time.Before(t)
	}
	return a.CreationTimestamp.Time.Before(t)
}

// Ready reports whether the API server answers and lets this node read the
// pools; nil if it does, even if a pool does not exist. A node on which nothing
// else happens carries out by it what is pending.
func (c *Claimer) Ready(ctx context.Context, pools []v1alpha1.PoolReference) error {
	for _, ref := range pools {
		if _, err := c.poolMetadata(ctx, ref); err != nil && !ledger.NotFound(err) {
			return err
		}
	}
	c.carryOut(ctx, releasesPerCall)
	return nil
}
