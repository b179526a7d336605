// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
)

// Every verb also carries out some releases that earlier calls have left, and so does Look: nothing
// else on the node would.

// maxRetries is how many pending releases one call retries: a node may have 250 of
// them, and a pod is waiting.
const maxRetries = 16

// finishReleases carries out the pending releases of this attachment before it claims
// again. Otherwise a later call could find the note and release the new claim. Then it
// retries a few releases of other attachments.
func (c *Claimer) finishReleases(ctx context.Context, att hint.Attachment) error {
	if c.Hint.IsReleasingAttachment(att) {
		if _, err := c.rebuild(ctx, time.Time{}); err != nil {
			return fmt.Errorf("listing what this container has held before: %w", err)
		}
		c.Hint.ResolveReleases()
	}
	releases, attachments := c.Hint.Pending()
	for _, r := range releases {
		if r.Attachment != att {
			continue
		}
		done, err := c.endHeld(ctx, r.Entry, r.Since)
		if err != nil && !errors.Is(err, errMayBeCreated) {
			return fmt.Errorf("releasing %s of domain %s, which this container has held before: %w", r.Address, r.Domain, err)
		}
		if gone := c.releasedAs(r.Entry, done); !gone && r.UID == "" { // without UID the note would release the new claim
			return fmt.Errorf("removing the note that %s of domain %s is to be released", r.Address, r.Domain)
		}
	}
	if len(attachments) > 0 {
		c.Hint.ResolveReleases() // if the hint is complete; no list, since a pod is waiting
	}
	c.retryDue(ctx, releases, maxRetries)
	return nil
}

// retryPending carries out up to limit pending releases. If a note names only the
// attachment and the hint does not know what that holds, it lists what this node holds.
func (c *Claimer) retryPending(ctx context.Context, limit int) {
	releases, attachments := c.Hint.Pending()
	if len(attachments) > 0 {
		if err := c.Complete(ctx); err != nil {
			c.Log.Warn("cannot list what the attachments with a pending release hold", "error", err)
		} else {
			c.Hint.ResolveReleases()
		}
		releases, _ = c.Hint.Pending()
	}
	c.retryDue(ctx, releases, limit)
}

// retryDue retries the releases that are due, in random order: one that is refused
// every time does not keep the others waiting.
func (c *Claimer) retryDue(ctx context.Context, releases []hint.Release, limit int) {
	due := slices.DeleteFunc(releases, func(r hint.Release) bool { return !r.Due })
	if len(due) == 0 {
		return
	}
	rand.Shuffle(len(due), func(i, j int) { due[i], due[j] = due[j], due[i] })
	ctx, cancel := context.WithTimeout(ctx, pendingTime)
	defer cancel()
	var last error
	for _, r := range due[:min(len(due), limit)] {
		err := c.retryRelease(ctx, r)
		if err != nil {
			last = err
		}
		if err != nil && (!ledger.Refused(err) || apierrors.IsUnauthorized(err)) { // the others would fail, too
			break
		}
	}
	if last != nil {
		c.Log.Warn("releases are still pending", "pending", len(due), "error", last)
	}
}

// retryRelease carries out one pending release.
func (c *Claimer) retryRelease(ctx context.Context, r hint.Release) error {
	e, err := c.withUID(ctx, r.Entry)
	var done ended
	switch {
	case errors.Is(err, errMayBeCreated):
		if r.Expired() {
			c.Hint.Released(r.Entry)
		}
		return nil
	case err == nil && r.UID == "" && !c.Hint.IsPending(r.Entry):
		return nil // the attachment has removed the note: it may hold the address again
	case err == nil && e.UID != "":
		done, err = c.endHeld(ctx, e, r.Since)
	}
	switch {
	case err == nil:
		c.releasedAs(r.Entry, done)
		c.Log.Info("carried out a pending release", "address", r.Address, "domain", r.Domain)
	case ledger.Refused(err) && time.Since(r.Since).Abs() >= pendingLife:
		c.Hint.Released(r.Entry)
		c.Log.Warn("gave up a pending release; the controller reclaims the address", "address", r.Address, "domain", r.Domain, "error", err)
		return nil
	}
	return err
}
