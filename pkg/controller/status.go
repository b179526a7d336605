// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	"k8s.io/utils/ptr"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// A pool's status is written in two parts, by two field managers.
//
//	allocations         applied by v1alpha1.BlocksManagerPrefix + hash of them:
//	                    a plugin sees in the metadata when they change
//	the rest            patched by "ipam-controller": it changes more often, and
//	                    is no business of a plugin's
//
// Allocations come first: the API requires them in a status. Both carry the
// resource version that they were computed from, so that a cache which is behind
// never moves a block.

// writeAllocations applies status.allocations where they, or their manager, are
// not what they ought to be, and returns the pool as it is then.
func (c *Controller) writeAllocations(ctx context.Context, kind poolKind, view *poolView, want any) (*poolView, error) {
	if want == nil {
		return view, nil
	}
	body, err := json.Marshal(want)
	if err != nil {
		return nil, err
	}
	have, err := json.Marshal(view.allocations)
	if err != nil {
		return nil, err
	}
	manager := blocksManager(body)
	if bytes.Equal(have, body) && applied(view.meta.ManagedFields, manager) {
		return view, nil
	}
	apply, err := json.Marshal(map[string]any{
		"apiVersion": v1alpha1.GroupVersion.String(),
		"kind":       view.ref.Kind,
		"metadata":   map[string]string{"name": view.meta.Name, "namespace": view.meta.Namespace, "resourceVersion": view.meta.ResourceVersion},
		"status":     map[string]any{"allocations": json.RawMessage(body)},
	})
	if err != nil {
		return nil, err
	}
	view, err = kind.patch(ctx, view.meta.Name, types.ApplyPatchType, apply, metav1.PatchOptions{FieldManager: manager, Force: new(true)})
	if err != nil {
		return nil, fmt.Errorf("apply status.allocations: %w", err)
	}
	klog.FromContext(ctx).Info("Blocks written", "pool", view.ref, "nodes", len(view.blocks))
	return view, nil
}

// blocksManager is the field manager of these allocations.
func blocksManager(allocations []byte) string {
	sum := sha256.Sum256(allocations)
	return v1alpha1.BlocksManagerPrefix + hex.EncodeToString(sum[:8])
}

// applied reports whether manager owns a part of the status.
func applied(entries []metav1.ManagedFieldsEntry, manager string) bool {
	return slices.ContainsFunc(entries, func(e metav1.ManagedFieldsEntry) bool {
		return e.Manager == manager && e.Operation == metav1.ManagedFieldsOperationApply && e.Subresource == "status"
	})
}

// maxMessage is how long the message of a condition may be, in bytes; the API allows
// 32,768.
const maxMessage = 8192

// writeRest patches the conditions and the counts where they have changed; only for
// what changes with every address, not often (Options.Usage). nv-ipam's own CRDs
// have neither, and the API server drops them: nothing is written then after the
// first try.
func (c *Controller) writeRest(ctx context.Context, kind poolKind, view *poolView, sum summary, notices []notice) error {
	ref := view.ref
	if c.pruned[ref.Kind] {
		return nil
	}
	want := c.rest(view, sum, notices)
	now := time.Now()
	if c.same(ref.Kind, want, view.status, lasting) {
		usedSame := c.countless[ref.Kind] || ptr.Equal(want.Used, view.status.Used)
		if usedSame && c.same(ref.Kind, want, view.status, slices.Clone) {
			return nil
		}
		if wait := c.counted[ref].Add(c.opts.Usage).Sub(now); wait > 0 {
			c.pools.AddAfter(ref, wait)
			return nil
		}
	}
	body, err := json.Marshal(map[string]any{
		"metadata": map[string]string{"resourceVersion": view.meta.ResourceVersion},
		"status":   want,
	})
	if err != nil {
		return err
	}
	view, err = kind.patch(ctx, view.meta.Name, types.MergePatchType, body, metav1.PatchOptions{FieldManager: name})
	if err != nil {
		return fmt.Errorf("patch the pool's conditions and counts: %w", err)
	}
	c.counted[ref] = now
	c.countless[ref.Kind] = view.status.Used == nil
	if len(view.status.Conditions) == 0 {
		c.pruned[ref.Kind] = true
		klog.FromContext(ctx).Info("The installed CRD has no status.conditions: see events and the log instead", "kind", ref.Kind)
	}
	return nil
}

// rest is what a pool's status ought to be, but for its blocks.
func (c *Controller) rest(view *poolView, sum summary, notices []notice) v1alpha1.PoolStatus {
	want := v1alpha1.PoolStatus{
		ObservedGeneration: view.meta.Generation,
		Conditions:         slices.Clone(view.status.Conditions), // the cache's
		Capacity:           view.status.Capacity,
		Used:               &sum.held,
	}
	if sum.blocks != nil {
		want.Capacity = &sum.blocks.capacity
	}
	set := func(condition metav1.Condition) {
		condition.ObservedGeneration = view.meta.Generation
		condition.Message = pool.Cut(condition.Message, maxMessage)
		meta.SetStatusCondition(&want.Conditions, condition)
	}
	set(sum.ready)
	for _, t := range noticeTypes {
		i := slices.IndexFunc(notices, func(n notice) bool { return n.condition.Type == t })
		if i < 0 {
			meta.RemoveStatusCondition(&want.Conditions, t)
		} else {
			set(notices[i].condition)
		}
	}
	return want
}

// lasting leaves out of conditions what may change with every address that is taken
// or released.
func lasting(in []metav1.Condition) (out []metav1.Condition) {
	for _, condition := range in {
		switch condition.Type {
		case v1alpha1.ConditionBlockFull, v1alpha1.ConditionForeignAddresses:
			continue
		case v1alpha1.ConditionEarlierSpecInUse:
			condition.Message = ""
		}
		out = append(out, condition)
	}
	return out
}

// same reports whether two statuses differ in nothing but the count of used
// addresses, as far as the installed CRD has the fields; of their conditions it
// compares a part.
func (c *Controller) same(kind v1alpha1.PoolKind, a v1alpha1.PoolStatus, b *v1alpha1.PoolStatus, part func([]metav1.Condition) []metav1.Condition) bool {
	return a.ObservedGeneration == b.ObservedGeneration && equality.Semantic.DeepEqual(part(a.Conditions), part(b.Conditions)) &&
		(c.countless[kind] || ptr.Equal(a.Capacity, b.Capacity))
}
