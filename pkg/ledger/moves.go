// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// While a virtual machine moves, the attachment on the other node waits in spec.next of the
// allocation. All that changes there names the resource version that was read, so of two
// nodes that end their claims at once, the second one reads what the first one has made of it.

// Join makes alloc's attachment the next one of an allocation that another holds, as it was
// read. It returns the allocation as it will be then. The errors are those of TakeOver, and
// another one if the CRD has no spec.next.
func (l *Ledger) Join(ctx context.Context, holder, alloc *v1alpha1.IPAllocation) (promoted *v1alpha1.IPAllocation, err error) {
	patch, err := nextPatch(holder, v1alpha1.NextOf(&alloc.Spec))
	if err != nil {
		return nil, err
	}
	promoted, err = l.claimBy(ctx, patch, alloc)
	var inUse *InUseError
	if errors.As(err, &inUse) && inUse.Holder != nil && inUse.Holder.ResourceVersion == holder.ResourceVersion { // nothing was changed
		return nil, fmt.Errorf("the API server has dropped spec.next of %s: apply the CRD of IPAllocations of this version", holder.Name)
	}
	return promoted, err
}

// OfAttachment returns the allocation as that of an attachment: as it is if the attachment
// holds it, as it will be if it is the next one, and nil if it is neither.
func OfAttachment(a *v1alpha1.IPAllocation, att *v1alpha1.IPAllocationSpec) *v1alpha1.IPAllocation {
	if a == nil {
		return nil
	}
	if promoted := a.Promoted(); promoted != nil && Same(&promoted.Spec, att) {
		return promoted
	}
	if a.Spec.Held() && Same(&a.Spec, att) {
		return a
	}
	return nil
}

// endMove ends a claim on an allocation that has a next attachment. If that is the claim, it
// leaves; if the claim is the holder, the next one takes its place.
func (l *Ledger) endMove(ctx context.Context, h Holding, now *v1alpha1.IPAllocation) error {
	promoted := now.Promoted()
	var patch []byte
	var err error
	switch {
	case l.isLast(h, promoted):
		patch, err = LeavePatch(now)
	case l.isLast(h, now):
		patch, err = TakeoverPatch(now, promoted)
	default:
		return nil
	}
	if err == nil {
		_, err = l.Client.IPAllocations(l.Namespace).Patch(ctx, now.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	}
	if apierrors.IsConflict(err) { // it is looked at again
		return tryAgain("patch")
	}
	return err
}

// nextPatch returns the merge patch that sets the next attachment of an allocation, as it was
// read; nil stands for none.
func nextPatch(a *v1alpha1.IPAllocation, next *v1alpha1.NextAttachment) ([]byte, error) {
	var value any
	if next != nil {
		patch, _, err := instead(a.Spec.Next, next) // its podRef has all fields
		if err != nil {
			return nil, err
		}
		value = patch
	}
	return json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": a.ResourceVersion},
		"spec":     map[string]any{"next": value},
	})
}

// LeavePatch returns the merge patch that ends the claim of the next attachment of an
// allocation, as it was read.
func LeavePatch(a *v1alpha1.IPAllocation) ([]byte, error) { return nextPatch(a, nil) }
