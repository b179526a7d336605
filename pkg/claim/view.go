// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// view is this node's block of a pool, and the version of the pool that it was read from.
type view struct {
	*pool.Block

	version string
}

// viewsOf returns this node's blocks in the pools that a request names. It also replaces labels in
// req.Pools by their values, and starts to read req.known from the disk while the API server is
// asked.
func (c *Claimer) viewsOf(ctx context.Context, req *Request) ([]view, error) {
	asked := req.Pools
	views, err := c.viewsWithLabels(ctx, req, asked, labelsAge)
	if errors.Is(err, ErrPoolNotFound) && haveLabels(asked) { // the copy may be outdated
		views, err = c.viewsWithLabels(ctx, req, asked, 0)
	}
	return views, err
}

// viewsWithLabels is viewsOf with the node's labels as they were at most that long ago.
func (c *Claimer) viewsWithLabels(ctx context.Context, req *Request, asked []v1alpha1.PoolReference, age time.Duration) (views []view, err error) {
	if req.Pools, err = c.expand(ctx, asked, age); err != nil {
		return nil, err
	}
	saved := make([]*hint.View, len(req.Pools))
	for i, ref := range req.Pools {
		saved[i] = c.Hint.View(ref)
	}
	req.known = c.lookUpKnown(*req, saved)
	for i, ref := range req.Pools {
		v, err := c.view(ctx, ref, saved[i])
		if err == nil {
			err = c.mayUse(ctx, v.Block)
		}
		if err != nil {
			if asked[i] != ref {
				err = fmt.Errorf("%w (poolName %q on node %s)", err, asked[i].Name, c.Ledger.Node)
			}
			return nil, err
		}
		views = append(views, v)
	}
	return views, nil
}

// view returns this node's block in a pool. saved is what the hint has of it, or nil.
//
// A pool grows with the cluster: with 5,000 nodes its status is half a megabyte, of
// which this node needs one line. So that line is kept on disk, and an ADD reads only
// the pool's metadata, from the API server's watch cache, to check that it is still current.
// That may be some milliseconds old, which is harmless: the create decides.
func (c *Claimer) view(ctx context.Context, ref v1alpha1.PoolReference, saved *hint.View) (view, error) {
	if saved == nil {
		return c.readView(ctx, ref, nil)
	}
	meta, err := c.Ledger.PoolMetadata(ctx, ref)
	switch {
	case ledger.NotFound(err):
		return c.readView(ctx, ref, nil)
	case err != nil:
		return view{}, fmt.Errorf("reading pool %s/%s: %w", c.Ledger.Namespace, ref.Name, err)
	case c.version(meta, saved.Block) != saved.Version:
		return c.readView(ctx, ref, meta)
	}
	return view{saved.Block, saved.Version}, nil
}

// readView reads a pool and saves the view. cached is its metadata as the watch cache has it, or
// nil.
func (c *Claimer) readView(ctx context.Context, ref v1alpha1.PoolReference, cached *metav1.ObjectMeta) (view, error) {
	epoch := c.Hint.Epoch(ref)
	if epoch != "" { // it may have come from the view, which goes now
		c.Hint.SetEpoch(ref, epoch)
	}
	c.Hint.DropView(ref)

	since := "" // reads from etcd, not the watch cache
	if cached != nil && epochOf(cached) == epoch {
		since = cached.ResourceVersion
	}
	var obj *pool.Object
	err := ledger.Retry(ctx, func(ctx context.Context) (err error) {
		obj, err = c.Ledger.Pools().GetSince(ctx, ref, since)
		return err
	})
	switch {
	case ledger.NotFound(err):
		c.Hint.DropPool(ref)
		if epoch != "" && c.Hint.HoldsIn(ref.Name) { // it may be another one when it is there again
			c.Hint.SetEpoch(ref, epoch)
		}
		return view{}, poolNotFound(ref, c.noSuchPool(ctx, ref))
	case err != nil:
		return view{}, fmt.Errorf("reading pool %s/%s: %w", c.Ledger.Namespace, ref.Name, err)
	}
	if err := c.settle(ctx, ref, epoch, epochOf(obj.Meta)); err != nil {
		return view{}, err
	}
	if epoch == "" { // this pool is no evidence of a loss, but others may be
		if err := c.settleAll(ctx, c.recorded()); err != nil {
			return view{}, err
		}
	}
	parsed, errs := obj.Parse()
	if err := pool.Invalid(ref, errs); err != nil {
		return view{}, fmt.Errorf("reading pool %s/%s: %w", c.Ledger.Namespace, ref.Name, err)
	}
	if b, ok := parsed.BlockOf(obj.Blocks(), c.Ledger.Node); ok {
		seen := c.version(obj.Meta, b)
		c.Hint.SetView(ref, seen, b)
		return view{b, seen}, nil
	}
	return view{}, poolNotFound(ref, fmt.Sprintf("%s %s/%s has no block for node %s, see the pool's Ready condition and nodeSelector", ref.Kind, c.Ledger.Namespace, ref.Name, c.Ledger.Node))
}

// noSuchPool explains an error about a missing pool: it may be of the other kind.
func (c *Claimer) noSuchPool(ctx context.Context, ref v1alpha1.PoolReference) string {
	why := fmt.Sprintf("there is no %s %s/%s", ref.Kind, c.Ledger.Namespace, ref.Name)
	for _, other := range pool.Kinds() {
		if other == ref.Kind {
			continue
		}
		if _, err := c.Ledger.PoolMetadata(ctx, v1alpha1.PoolReference{Kind: other, Name: ref.Name}); err == nil {
			why += fmt.Sprintf(", but a %s of that name: set poolType to %s", other, pool.Type(other))
		}
	}
	return why
}

// version returns a text that changes with the pool's specification and with this node's
// block b, but not with the counters and conditions that the controller writes often, and
// seldom with other nodes' blocks. If it is unchanged, the view b of the pool is still
// current.
//
// A change of the specification raises the generation. A change of the blocks is
// a change of status.allocations, and the API server itself notes who made the
// last one, in metadata.managedFields; the controller writes them under a name
// that has hashes of what it wrote (pool.BlocksManager). If somebody else wrote the
// blocks there is no such name, and any change of the pool counts. A pool without blocks
// has none that could change; one that overflows looks at everybody's.
func (c *Claimer) version(meta *metav1.ObjectMeta, b *pool.Block) string {
	var blocks []string
	for _, f := range meta.ManagedFields {
		if revision := pool.Revision(f.Manager, c.Ledger.Node, len(b.Overflow) > 0); f.Subresource == "status" && revision != "" {
			blocks = append(blocks, revision)
		}
	}
	if b.Shared {
		blocks = []string{"shared"}
	} else if len(blocks) == 0 {
		blocks = []string{"resourceVersion-" + meta.ResourceVersion}
	}
	sort.Strings(blocks)
	text := fmt.Sprintf("%s/%d/%s", meta.UID, meta.Generation, strings.Join(blocks, ","))
	if word, said := meta.Annotations[v1alpha1.AnnotationRecordLost]; said {
		text += "/" + hint.EpochText(meta.UID, word)
	}
	return text
}
