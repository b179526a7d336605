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

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// A pool's status is written in two parts, by two field managers.
//
//	allocations         applied by v1alpha1.BlocksManagerPrefix + hash of them:
//	                    a plugin sees in the metadata when they change
//	conditions and      patched by "ipam-controller": they change more often,
//	observedGeneration  and are no business of a plugin's
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

// writeConditions patches the conditions where they have changed; without an
// overlap there is none to speak of. nv-ipam's
// own CRDs have no conditions and the API server drops them: nothing is written
// then after the first try.
func (c *Controller) writeConditions(ctx context.Context, kind poolKind, view *poolView, ready metav1.Condition, overlap *metav1.Condition) error {
	if c.pruned[view.ref.Kind] {
		return nil
	}
	ready.ObservedGeneration = view.meta.Generation
	conditions := slices.Clone(view.status.Conditions) // the cache's
	changed := meta.SetStatusCondition(&conditions, ready)
	if overlap == nil {
		changed = meta.RemoveStatusCondition(&conditions, v1alpha1.ConditionOverlapping) || changed
	} else {
		overlap.ObservedGeneration = view.meta.Generation
		changed = meta.SetStatusCondition(&conditions, *overlap) || changed
	}
	if !changed && view.status.ObservedGeneration == view.meta.Generation {
		return nil
	}
	body, err := json.Marshal(map[string]any{
		"metadata": map[string]string{"resourceVersion": view.meta.ResourceVersion},
		"status":   v1alpha1.PoolStatus{ObservedGeneration: view.meta.Generation, Conditions: conditions},
	})
	if err != nil {
		return err
	}
	view, err = kind.patch(ctx, view.meta.Name, types.MergePatchType, body, metav1.PatchOptions{FieldManager: name})
	if err != nil {
		return fmt.Errorf("patch status.conditions: %w", err)
	}
	if meta.FindStatusCondition(view.status.Conditions, ready.Type) == nil {
		c.pruned[view.ref.Kind] = true
		klog.FromContext(ctx).Info("The installed CRD has no status.conditions: see events and the log instead", "kind", view.ref.Kind)
	}
	return nil
}
