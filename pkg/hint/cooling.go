// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package hint

import (
	"strings"
	"time"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// cooling begins the text of an address that this node has released and that rests:
// "cooling:UNTIL:HASH", in seconds since 1970 and the podHash of who released it. An
// earlier version of the plugin reads it as an address that is not free.
const cooling = "cooling:"

func coolingText(until time.Time, pod v1alpha1.PodReference) string {
	return cooling + seconds(until) + ":" + podHash(pod)
}

// parseCooling returns no hash if the text is not of an address that rests.
func parseCooling(text string) (until time.Time, pod string) {
	rest, found := strings.CutPrefix(text, cooling)
	if !found {
		return time.Time{}, ""
	}
	at, pod, _ := strings.Cut(rest, ":")
	return parseSeconds(at), pod
}

// isOver reports whether a cooldown has ended. One that is longer than any is of a clock
// that was set back.
func isOver(until time.Time) bool {
	left := time.Until(until)
	return left <= 0 || left > v1alpha1.MaxCooldown
}

// podHash stands for a pod; "-" for none.
func podHash(pod v1alpha1.PodReference) string {
	if pod.Name == "" {
		return "-"
	}
	return hash(pod.Namespace + "/" + pod.Name + "/" + string(pod.UID))[:8]
}

// keptBy sets what the record of an allocation says about its release.
func (e Entry) keptBy(r *Record) Entry {
	if r != nil && r.Spec.IsKept() {
		e.Kept = true
		if r.Spec.AddStartedAt != nil {
			e.Started = r.Spec.AddStartedAt.UnixMicro()
		}
	}
	return e
}

// EnterResting enters that an address is released: until its cooldown is over, it is no candidate
// but for the pod that had it (Known removes the entry). It does nothing if the address has
// another entry.
func (h *Hint) EnterResting(e Entry, spec *v1alpha1.IPAllocationSpec) {
	text := elsewhere // an owner keeps it
	if until := spec.ReusableAt(); !until.IsZero() {
		if isOver(until) {
			return
		}
		text = coolingText(until, spec.PodRef)
	}
	h.failed("entering an address that rests", h.linkOnce(text, "claims", e.fileName()))
}

// ReleasedToRest is Released for an address that rests, or is kept by an owner: it enters that, and
// removes the note. It reports whether the note is gone.
func (h *Hint) ReleasedToRest(e Entry, spec *v1alpha1.IPAllocationSpec) (gone bool) {
	h.EnterResting(e, spec)
	return h.removeNote(e)
}
