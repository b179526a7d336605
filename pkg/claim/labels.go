// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// labelsAge is how old the copy of the node's labels may be with which an ADD does without
// a request. What fails by the copy is tried again with the labels as they are now.
const labelsAge = 30 * time.Second

// labels returns this node's labels as they were at most that long ago. It makes no
// request if the hint has a copy.
func (c *Claimer) labels(ctx context.Context, age time.Duration) (map[string]string, error) {
	if labels, ok := c.Hint.Labels(age); ok {
		return labels, nil
	}
	labels, err := c.Ledger.Labels(ctx)
	if err == nil {
		c.Hint.SetLabels(labels)
	}
	return labels, err
}

// expand replaces the labels in the names of pools by their values on this node. It
// leaves alone, and asks for, nothing if there are none. The error is ErrPoolNotFound if a
// label is missing, or its value gives no name.
func (c *Claimer) expand(ctx context.Context, pools []v1alpha1.PoolReference, age time.Duration) ([]v1alpha1.PoolReference, error) {
	if !haveLabels(pools) {
		return pools, nil
	}
	labels, err := c.labels(ctx, age)
	if err != nil {
		return nil, err
	}
	return c.expandBy(pools, labels)
}

func haveLabels(pools []v1alpha1.PoolReference) bool {
	return slices.ContainsFunc(pools, func(ref v1alpha1.PoolReference) bool { return pool.HasLabels(ref.Name) })
}

func (c *Claimer) expandBy(pools []v1alpha1.PoolReference, labels map[string]string) ([]v1alpha1.PoolReference, error) {
	out := make([]v1alpha1.PoolReference, 0, len(pools))
	for _, ref := range pools {
		asked := ref
		if pool.HasLabels(ref.Name) {
			name, err := pool.ExpandName(ref.Name, c.Ledger.Node, labels)
			if err != nil {
				return nil, poolNotFound(asked, err.Error())
			}
			ref.Name = name
		}
		if slices.Contains(out, ref) {
			return nil, poolNotFound(asked, fmt.Sprintf("with the labels of node %s it is pool %q, which is named already", c.Ledger.Node, ref.Name))
		}
		out = append(out, ref)
	}
	return out, nil
}

// mayUse returns ErrPoolNotFound if a pool without blocks does not select this node.
func (c *Claimer) mayUse(ctx context.Context, b *pool.Block) error {
	if !b.SelectsByLabels() {
		return nil
	}
	for _, age := range []time.Duration{labelsAge, 0} {
		labels, err := c.labels(ctx, age)
		if err != nil {
			return err
		}
		if b.Selects(c.Ledger.Node, labels) {
			return nil
		}
	}
	return poolNotFound(b.Pool, fmt.Sprintf("%s %s/%s does not select node %s: its nodeSelector is %s", b.Pool.Kind, c.Ledger.Namespace, b.Pool.Name, c.Ledger.Node, b.Selector()))
}

// heldPools replaces names with labels by the names of the pools that the entries hold
// addresses of: the labels may have changed since the ADD. It makes a request only if the
// hint does not know of which pool an address is.
func (c *Claimer) heldPools(ctx context.Context, pools []v1alpha1.PoolReference, entries []hint.Entry) ([]v1alpha1.PoolReference, error) {
	if !haveLabels(pools) {
		return pools, nil
	}
	out := slices.Clone(pools)
	for _, e := range entries {
		spec, err := c.specOf(ctx, e)
		if err != nil {
			return nil, err
		}
		if spec == nil || slices.Contains(out, spec.PoolRef) {
			continue
		}
		i := slices.IndexFunc(out, func(ref v1alpha1.PoolReference) bool {
			return pool.HasLabels(ref.Name) && ref.Kind == spec.PoolRef.Kind && pool.MatchesName(ref.Name, spec.PoolRef.Name)
		})
		if i >= 0 {
			out[i] = spec.PoolRef
		}
	}
	if haveLabels(out) { // one may hold an address of another pool of the same domain
		labels, _ := c.Hint.Labels(math.MaxInt64)
		if now, err := c.expandBy(out, labels); err == nil {
			return now, nil
		}
	}
	return out, nil
}

// specOf returns what an allocation of this node says, nil if there is none.
func (c *Claimer) specOf(ctx context.Context, e hint.Entry) (*v1alpha1.IPAllocationSpec, error) {
	if e.Record != nil {
		return &e.Record.Spec, nil
	}
	a, err := c.Ledger.Get(ctx, e.Name())
	if a == nil || err != nil {
		return nil, err
	}
	return &a.Spec, nil
}
