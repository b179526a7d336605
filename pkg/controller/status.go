// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
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
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// A pool's status is written in two parts, by two field managers.
//
//	allocations         applied by pool.BlocksManager: a plugin sees in the metadata
//	                    when those of its node change
//	the rest            patched by "ipam-controller": it changes more often, and
//	                    plugins do not read it
//
// Allocations come first: the API requires them in a status. Both carry the
// resource version that they were computed from, so that a cache which is behind
// never moves a block.

// statusWriter writes the status of pools. One worker calls it.
type statusWriter struct {
	pools ledger.Pools
	// usage is how long the count of used addresses must have been written before it is
	// written again, if nothing else has changed.
	usage time.Duration
	// later reconciles a pool again after a while.
	later func(v1alpha1.PoolReference, time.Duration)
	// lacks is what the installed CRDs do not have, as far as is known.
	lacks map[v1alpha1.PoolKind]lacking
}

// lacking is what the CRD of a kind of pool lacks, as nv-ipam's does: the API server
// drops such fields.
type lacking struct {
	conditions bool // and with them all that this controller adds
	counts     bool // capacity and used
}

// writeAllocations applies status.allocations if they, or their manager, are not what
// they should be, and returns the pool as it is then.
func (w *statusWriter) writeAllocations(ctx context.Context, obj *pool.Object, want []pool.Assignment) (*pool.Object, error) {
	if want == nil {
		return obj, nil
	}
	want = obj.Written(want)
	manager := pool.BlocksManager(want)
	if obj.Allocations != nil && slices.Equal(obj.Blocks(), want) && applied(obj.Meta.ManagedFields, manager) {
		return obj, nil
	}
	apply, err := json.Marshal(map[string]any{
		"apiVersion": v1alpha1.GroupVersion.String(),
		"kind":       obj.Ref.Kind,
		"metadata":   map[string]string{"name": obj.Meta.Name, "namespace": obj.Meta.Namespace, "resourceVersion": obj.Meta.ResourceVersion},
		"status":     map[string]any{"allocations": obj.AllocationsFor(want)},
	})
	if err != nil {
		return nil, err
	}
	obj, err = w.pools.PatchStatus(ctx, obj.Ref, types.ApplyPatchType, apply, metav1.PatchOptions{FieldManager: manager, Force: new(true)})
	if err != nil {
		return nil, fmt.Errorf("apply status.allocations: %w", err)
	}
	klog.FromContext(ctx).Info("Blocks written", "pool", obj.Ref, "blocks", len(obj.Blocks()))
	return obj, nil
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

// writeRest patches the conditions and the counts if they have changed; if only what
// changes with every address has, not more often than usage, and notes when in known.
// nv-ipam's own CRDs have neither: nothing is written then after the first try.
func (w *statusWriter) writeRest(ctx context.Context, obj *pool.Object, known *memory, notices []notice) error {
	ref := obj.Ref
	lacks := w.lacks[ref.Kind]
	if lacks.conditions {
		return nil
	}
	want := wantedStatus(obj, known.summary, notices)
	now := time.Now()
	if lacks.same(want, obj.Status, lasting) {
		usedSame := lacks.counts || ptr.Equal(want.Used, obj.Status.Used) && equality.Semantic.DeepEqual(want.TopNodes, obj.Status.TopNodes)
		if usedSame && lacks.same(want, obj.Status, slices.Clone) {
			return nil
		}
		if wait := known.counted.Add(w.usage).Sub(now); wait > 0 {
			w.later(ref, wait)
			return nil
		}
	}
	body, err := json.Marshal(map[string]any{
		"metadata": map[string]string{"resourceVersion": obj.Meta.ResourceVersion},
		"status":   want,
	})
	if err != nil {
		return err
	}
	obj, err = w.pools.PatchStatus(ctx, ref, types.MergePatchType, body, metav1.PatchOptions{FieldManager: name})
	if err != nil {
		return fmt.Errorf("patch the pool's conditions and counts: %w", err)
	}
	known.counted = now
	lacks = lacking{conditions: len(obj.Status.Conditions) == 0, counts: obj.Status.Used == nil}
	w.lacks[ref.Kind] = lacks
	if lacks.conditions {
		klog.FromContext(ctx).Info("The installed CRD has no status.conditions: see events and the log instead", "kind", ref.Kind)
	}
	return nil
}

// wantedStatus is what a pool's status should be, but for its blocks.
func wantedStatus(obj *pool.Object, sum summary, notices []notice) v1alpha1.PoolStatus {
	want := v1alpha1.PoolStatus{
		ObservedGeneration: obj.Meta.Generation,
		Conditions:         slices.Clone(obj.Status.Conditions), // the cache's
		Capacity:           obj.Status.Capacity,
		Used:               &sum.held,
		TopNodes:           sum.topNodes,
	}
	if sum.blocks != nil {
		want.Capacity = &sum.blocks.capacity
	}
	set := func(condition metav1.Condition) {
		condition.ObservedGeneration = obj.Meta.Generation
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

// lasting leaves out of conditions what may change with every address that is claimed
// or released.
func lasting(in []metav1.Condition) (out []metav1.Condition) {
	for _, condition := range in {
		switch condition.Type {
		case v1alpha1.ConditionBlockFull, v1alpha1.ConditionFull, v1alpha1.ConditionForeignAddresses:
			continue
		case v1alpha1.ConditionEarlierSpecInUse:
			condition.Message = ""
		}
		out = append(out, condition)
	}
	return out
}

// same reports whether two statuses are equal but for the count of used addresses, as
// far as the installed CRD has the fields; of their conditions it compares a part.
func (l lacking) same(a v1alpha1.PoolStatus, b *v1alpha1.PoolStatus, part func([]metav1.Condition) []metav1.Condition) bool {
	return a.ObservedGeneration == b.ObservedGeneration && equality.Semantic.DeepEqual(part(a.Conditions), part(b.Conditions)) &&
		(l.counts || ptr.Equal(a.Capacity, b.Capacity))
}
