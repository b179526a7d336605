// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// Claimer claims addresses for the containers of one node. Any number of them
// may run at once, in one process or in many.
type Claimer struct {
	// Client of the API server. It should neither throttle nor retry: both is done
	// here, within the time of the call.
	Client clientv1alpha1.NvIpamV1alpha1Interface
	// Namespace of the pools and of their allocations.
	Namespace string
	// Node whose containers these are.
	Node string
	// Hint of this node.
	Hint *Hint
	// Log of what a call did and why.
	Log *slog.Logger

	hintWarning sync.Once
}

// cleanupTimeout is what undoing may take after a call's own time is over.
const cleanupTimeout = 5 * time.Second

// contextForCleanup outlives ctx, which may have expired: what was begun has to
// be undone all the same.
func contextForCleanup(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
}

// retry calls f until it succeeds, fails for good, or ctx would end before the
// next try; then the error is ErrUnavailable with the last cause. It waits at
// least as long as the API server asks for.
func retry(ctx context.Context, f func() error) error {
	backoff := wait.Backoff{Duration: 50 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 8, Cap: 2 * time.Second}
	for {
		err := f()
		if err == nil || !transient(err) {
			return err
		}
		pause := backoff.Step()
		if seconds, ok := apierrors.SuggestsClientDelay(err); ok {
			pause += time.Duration(seconds) * time.Second
		}
		if end, ok := ctx.Deadline(); ok && time.Until(end) < pause {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		case <-time.After(pause):
		}
	}
}

// hintFailed says that the hint could not be written or read, and makes the next
// call rebuild it. It is no reason to fail: the API server decides.
func (c *Claimer) hintFailed(doing string, err error) {
	if err == nil {
		return
	}
	c.Hint.forget()
	c.hintWarning.Do(func() {
		c.Log.Warn("node's hint is not usable, going on without it", "doing", doing, "error", err)
	})
}

// held returns what the attachment holds: as the hint has it where that is
// complete, else as the API server lists it as well, which rebuilds the hint.
func (c *Claimer) held(ctx context.Context, att Attachment) ([]Held, error) {
	complete := c.Hint.Complete()
	found, err := c.Hint.Find(att)
	c.hintFailed("finding the attachment", err)
	if complete && err == nil {
		return found, nil
	}
	all, err := c.rebuild(ctx)
	if err != nil {
		return nil, err
	}
	for _, a := range all {
		if attachmentOf(&a) != att {
			continue
		}
		held := heldOf(&a)
		found = slices.DeleteFunc(found, func(h Held) bool { return h.key() == held.key() })
		found = append(found, held)
	}
	return found, nil
}

// rebuild lists what this node holds and enters it into the hint.
func (c *Claimer) rebuild(ctx context.Context) ([]v1alpha1.IPAllocation, error) {
	mark, markErr := c.Hint.startRebuild()
	c.hintFailed("rebuilding", markErr)
	defer c.Hint.endRebuild(mark)
	selector := labels.Set{v1alpha1.LabelNode: v1alpha1.LabelValue(c.Node)}.String()
	var all []v1alpha1.IPAllocation
	err := retry(ctx, func() error {
		all = all[:0]
		opts := metav1.ListOptions{LabelSelector: selector, Limit: pageSize}
		for {
			page, err := c.Client.IPAllocations(c.Namespace).List(ctx, opts)
			if err != nil {
				return err
			}
			for _, a := range page.Items {
				if a.Spec.NodeName == c.Node { // a label can say anything
					all = append(all, a)
				}
			}
			if opts.Continue = page.Continue; opts.Continue == "" {
				return nil
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("listing the allocations of node %s: %w", c.Node, err)
	}
	helds := make([]Held, 0, len(all))
	for i := range all {
		helds = append(helds, heldOf(&all[i]))
	}
	if markErr == nil {
		c.hintFailed("rebuilding", c.Hint.Rebuild(mark, helds))
	}
	c.Log.Info("rebuilt the node's hint from the API server", "node", c.Node, "allocations", len(all))
	return all, nil
}

// pageSize bounds what one answer of a list holds in memory.
const pageSize = 500

func attachmentOf(a *v1alpha1.IPAllocation) Attachment {
	return Attachment{ContainerID: a.Spec.ContainerID, Interface: a.Spec.InterfaceName}
}

func heldOf(a *v1alpha1.IPAllocation) Held {
	addr, _ := pool.ParseAddr(a.Spec.Address) // the name says the same, and the CRD checks both
	return Held{Attachment: attachmentOf(a), Pool: a.Spec.PoolRef.Name, Address: addr, UID: a.UID}
}
