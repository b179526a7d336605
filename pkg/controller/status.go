// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
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
//	allocations         written by pool.BlocksManager: a plugin sees in the metadata
//	                    when those of its node change. All are applied, or, if a few
//	                    have changed, these are patched
//	the rest            patched by "ipam-controller": it changes more often, and
//	                    plugins do not read it
//
// Allocations come first: the API requires them in a status. Both carry the
// resource version that they were computed from, so that a cache which is behind
// never moves a block.

// statusWriter writes the status of pools. Several workers call it, but not two of them for
// one pool at a time.
type statusWriter struct {
	pools ledger.Pools
	// usage is how long the counts must have been written before they are written again, if
	// nothing else has changed, and longer in a large pool: see countsWait.
	usage time.Duration
	// later reconciles a pool again after a while.
	later func(v1alpha1.PoolReference, time.Duration)
	// await waits until the watch has told of a pool that was written.
	await func(context.Context, *pool.Object)
	// lacks is what the installed CRDs do not have, as far as is known: they may be updated,
	// so it is tried again when resync is over.
	lacks  table[v1alpha1.PoolKind, lacking]
	resync time.Duration
}

// lacking is what the CRD of a kind of pool lacks, as nv-ipam's does: the API server
// drops such fields.
type lacking struct {
	allocations bool
	conditions  bool // and with them all that this controller adds
	counts      bool // capacity and used
	tried       time.Time
}

// incomplete reports whether a pool lacks something that each pool has that was written.
func incomplete(obj *pool.Object) bool { return lackingIn(obj) != lacking{} }

func lackingIn(obj *pool.Object) lacking {
	return lacking{allocations: obj.Allocations == nil, conditions: len(obj.Status.Conditions) == 0, counts: obj.Status.Used == nil}
}

// learn finds out what the CRD of a pool lacks: what is not in the version of the pool that was
// made by writing it. Its owners do not tell: they stay those of an earlier CRD.
func (w *statusWriter) learn(ctx context.Context, obj *pool.Object, known *memory) {
	blocks, rest := known.blocksAt == obj.Meta.ResourceVersion, known.restAt == obj.Meta.ResourceVersion
	if !blocks && !rest {
		return
	}
	var before, now lacking
	here := lackingIn(obj)
	w.lacks.change(obj.Ref.Kind, func(lacks lacking) lacking {
		before, now = lacks, lacks
		if blocks {
			now.allocations, known.blocksAt = here.allocations, ""
		}
		if rest {
			now.conditions, now.counts, known.restAt = here.conditions, here.counts, ""
		}
		if rest || here.allocations {
			now.tried = time.Now()
		}
		return now
	})
	if now.conditions && !before.conditions {
		klog.FromContext(ctx).Info("The installed CRD has no status.conditions: see events and the log instead", "kind", obj.Ref.Kind)
	}
	if now.allocations && !before.allocations {
		klog.FromContext(ctx).Error(nil, "The installed CRD has no status.allocations: no node gets a block", "kind", obj.Ref.Kind)
	}
}

// missing returns what the CRD of a pool lacks. What the pool has, it does not.
func (w *statusWriter) missing(obj *pool.Object) lacking {
	lacks := w.lacks.of(obj.Ref.Kind)
	if time.Since(lacks.tried) >= w.resync {
		return lacking{}
	}
	here := lackingIn(obj)
	lacks.allocations = lacks.allocations && here.allocations
	lacks.conditions = lacks.conditions && here.conditions
	lacks.counts = lacks.counts && here.counts
	return lacks
}

// tryLater reconciles a pool again when what its CRD lacks may be there, if it lacks something.
func (w *statusWriter) tryLater(obj *pool.Object) {
	if lacks := w.missing(obj); lacks.allocations || lacks.conditions {
		w.later(obj.Ref, w.resync-time.Since(lacks.tried))
	}
}

// writeAllocations writes status.allocations if they, or their manager, are not what
// they should be, and returns the pool as it is then.
func (w *statusWriter) writeAllocations(ctx context.Context, obj *pool.Object, known *memory, want []pool.Assignment) (*pool.Object, error) {
	if want == nil {
		return obj, nil
	}
	if w.missing(obj).allocations {
		return obj, nil
	}
	want = obj.Written(want)
	opts := metav1.PatchOptions{FieldManager: pool.BlocksManager(want)}
	have, before := obj.Blocks(), opts.FieldManager
	same := obj.Allocations != nil && slices.Equal(have, want)
	if !same {
		before = pool.BlocksManager(have)
	}
	var edits []edit
	if obj.Allocations != nil && written(obj.Meta.ManagedFields, before) {
		if same {
			return obj, nil
		}
		edits = editsOf(obj, have, want)
	}
	form, body := types.JSONPatchType, any(edits)
	if edits == nil { // a merge patch would own the status, too, and leave that behind when the manager changes
		opts.Force = new(true)
		form, body = types.ApplyPatchType, map[string]any{
			"apiVersion": v1alpha1.GroupVersion.String(),
			"kind":       obj.Ref.Kind,
			"metadata":   map[string]string{"name": obj.Meta.Name, "namespace": obj.Meta.Namespace, "resourceVersion": obj.Meta.ResourceVersion},
			"status":     map[string]any{"allocations": obj.AllocationsFor(want)},
		}
	}
	data, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	now, err := w.pools.PatchStatus(ctx, obj.Ref, form, data, opts)
	if err != nil {
		return nil, fmt.Errorf("write status.allocations: %w", err)
	}
	known.blocksAt = now.ResourceVersion
	w.learn(ctx, obj, known) // if nothing was stored, no watch will tell
	if w.missing(obj).allocations {
		return obj, nil
	}
	klog.FromContext(ctx).Info("Blocks written", "pool", obj.Ref, "blocks", len(want))
	return obj.With(now, want), nil
}

// countedAt returns when this controller, or the one before it, last wrote the rest of a
// status, by the API server's clock. It stands in the object: a controller that starts again
// does not write the counts of all pools.
func countedAt(entries []metav1.ManagedFieldsEntry) time.Time {
	for _, e := range entries {
		if isRestOfStatus(e) && e.Time != nil {
			return e.Time.Time
		}
	}
	return time.Time{}
}

// maxSkew is how far the API server's clock may be ahead of this process's, for its times to
// count.
const maxSkew = time.Minute

// age is how long ago a time of the API server was: very long, if its clock is far ahead.
func age(at time.Time) time.Duration {
	if age := time.Since(at); age >= -maxSkew {
		return max(0, age)
	}
	return math.MaxInt64
}

func isRestOfStatus(e metav1.ManagedFieldsEntry) bool {
	return e.Manager == name && e.Operation == metav1.ManagedFieldsOperationUpdate && e.Subresource == "status"
}

// written reports whether manager owns a part of the status.
func written(entries []metav1.ManagedFieldsEntry, manager string) bool {
	return slices.ContainsFunc(entries, func(e metav1.ManagedFieldsEntry) bool {
		return e.Manager == manager && e.Subresource == "status"
	})
}

// edit is an operation of a JSON patch (RFC 6902).
type edit struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// maxEdits is how many blocks may have changed for a patch: for the API server that is a
// third cheaper than to apply thousands.
const maxEdits = 16

// editsOf returns what makes of a pool's blocks the wanted ones; nil if that is more than
// maxEdits. Both are in the order of their addresses.
func editsOf(obj *pool.Object, have, want []pool.Assignment) []edit {
	edits := []edit{{"replace", "/metadata/resourceVersion", obj.Meta.ResourceVersion}}
	at := 0
	for len(have) > 0 || at < len(want) {
		path := fmt.Sprintf("/status/allocations/%d", at)
		switch {
		case len(have) > 0 && at < len(want) && have[0] == want[at]:
			have, at = have[1:], at+1
			continue
		case at == len(want) || len(have) > 0 && !want[at].Range.From().Less(have[0].Range.From()):
			have = have[1:]
			edits = append(edits, edit{Op: "remove", Path: path})
		default:
			edits = append(edits, edit{"add", path, obj.AllocationFor(want[at])})
			at++
		}
		if len(edits) > 1+maxEdits {
			return nil
		}
	}
	return edits
}

// maxMessage is how long the message of a condition may be, in bytes; the API allows
// 32,768.
const maxMessage = 8192

// writeRest patches the conditions and the counts if they have changed; if only what
// changes with every address has, not more often than usage.
// nv-ipam's own CRDs have neither: nothing is written then but one try in a resync.
func (w *statusWriter) writeRest(ctx context.Context, obj *pool.Object, known *memory, notices []notice) error {
	ref := obj.Ref
	lacks := w.missing(obj)
	if lacks.conditions {
		return nil
	}
	want := wantedStatus(obj, known.summary, notices)
	if sameConditions(want, obj.Status, lasting) {
		every := w.usage
		if sameConditions(want, obj.Status, slices.Clone) {
			if lacks.counts || sameCounts(want, obj.Status) {
				return nil
			}
			every = w.countsWait(obj, want)
		}
		if wait := every - age(countedAt(obj.Meta.ManagedFields)); wait > 0 {
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
	w.await(ctx, obj)
	now, err := w.pools.PatchStatus(ctx, ref, types.MergePatchType, body, metav1.PatchOptions{FieldManager: name})
	if err != nil {
		return fmt.Errorf("patch the pool's conditions and counts: %w", err)
	}
	known.written = append(known.written, now.ResourceVersion)
	carried := known.blocksAt == obj.Meta.ResourceVersion // the blocks are in the new version, too
	known.blocksAt, known.restAt = "", now.ResourceVersion
	w.learn(ctx, obj, known) // if nothing was stored, no watch will tell
	if carried {
		known.blocksAt = now.ResourceVersion
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
	if sum.resting > 0 || obj.Status.Cooling != nil { // a pool without a cooldown has no such count
		want.Cooling = &sum.resting
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

// sameConditions reports whether two statuses are equal but for the counts; of their
// conditions it compares a part.
func sameConditions(a v1alpha1.PoolStatus, b *v1alpha1.PoolStatus, part func([]metav1.Condition) []metav1.Condition) bool {
	return a.ObservedGeneration == b.ObservedGeneration && equality.Semantic.DeepEqual(part(a.Conditions), part(b.Conditions))
}

func sameCounts(a v1alpha1.PoolStatus, b *v1alpha1.PoolStatus) bool {
	return ptr.Equal(a.Capacity, b.Capacity) && ptr.Equal(a.Used, b.Used) && ptr.Equal(a.Cooling, b.Cooling) && equality.Semantic.DeepEqual(a.TopNodes, b.TopNodes)
}

// largePool is the number of blocks from which on a pool's counts are written less often:
// each write stores the whole object again, in 5,000 nodes half a megabyte.
const largePool = 100

// countsWait is how long the counts of a pool must have been written before these are
// written. In a large pool that is so much longer as it is larger, unless they have changed
// by a twentieth of its capacity, or whether anything is held has: the policy that guards
// pools from deletion asks that. The metrics are exact.
func (w *statusWriter) countsWait(obj *pool.Object, want v1alpha1.PoolStatus) time.Duration {
	const matters = 20
	used, before := ptr.Deref(want.Used, 0), ptr.Deref(obj.Status.Used, 0)
	grown := ptr.Deref(want.Capacity, 0) - ptr.Deref(obj.Status.Capacity, 0)
	if (used == 0) != (before == 0) || max(used-before, before-used, grown, -grown) >= ptr.Deref(want.Capacity, 0)/matters {
		return w.usage
	}
	return w.usage * time.Duration(max(1, len(obj.Blocks())/largePool))
}
