// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/reclaim"
)

// observation is what was last found of an allocation that is a leak candidate or
// held.
type observation struct {
	uid    types.UID
	holder string // its container: a takeover leaves the UID as it is
	action reclaim.Action
	reason string
	prompt bool
	since  time.Time // action and prompt have been the same
}

func observationOf(a *v1alpha1.IPAllocation, v reclaim.Verdict, now time.Time) observation {
	return observation{uid: a.UID, holder: a.Spec.ContainerID, action: v.Action, reason: v.Reason, prompt: v.Prompt, since: now}
}

// continues reports whether o finds the same as before, so that the grace period
// goes on. A node that went away, or came back, begins a new one.
func (o observation) continues(before observation) bool {
	return before.uid == o.uid && before.holder == o.holder && before.action == o.action && before.prompt == o.prompt
}

// observations are those of all allocations, by their keys in the cache. Nobody
// examines one key twice at a time.
type observations struct {
	mu  sync.Mutex
	all map[string]observation
	// resting are the allocations that were seen to be released and to rest.
	resting map[string]seenRelease
}

// seenRelease is when a release was first seen, by this process's clock.
type seenRelease struct {
	uid       types.UID
	at, since time.Time
}

// cooling returns how long an allocation still rests; 0 if it does not, or not any more. A
// node's clock may have been ahead when it released the address, so the cooldown counts at
// most from when the release was first seen here.
func (all *observations) cooling(key string, a *v1alpha1.IPAllocation, now time.Time) time.Duration {
	all.mu.Lock()
	defer all.mu.Unlock()
	if !a.Spec.Rests() || a.Spec.ReleaseCooldown == nil {
		delete(all.resting, key)
		return 0
	}
	seen := all.resting[key]
	if seen.uid != a.UID || !seen.at.Equal(a.Spec.ReleasedAt.Time) {
		seen = seenRelease{a.UID, a.Spec.ReleasedAt.Time, now}
		if all.resting == nil {
			all.resting = map[string]seenRelease{}
		}
		all.resting[key] = seen
	}
	return max(0, min(a.Spec.ReusableAt().Sub(now), seen.since.Add(a.Spec.ReleaseCooldown.Duration).Sub(now)))
}

// note keeps o, which is of now, and returns what was known before and since when
// the allocation has been what it is. A kept allocation needs no observation.
func (all *observations) note(key string, o observation) (before observation, since time.Time) {
	all.mu.Lock()
	defer all.mu.Unlock()
	if before = all.all[key]; before.uid != o.uid { // of an earlier allocation
		before = observation{}
	}
	if o.continues(before) {
		o.since = before.since
	}
	if o.action == reclaim.Keep {
		delete(all.all, key)
		return before, o.since
	}
	if all.all == nil {
		all.all = map[string]observation{}
	}
	all.all[key] = o
	return before, o.since
}

func (all *observations) forget(key string) {
	all.mu.Lock()
	defer all.mu.Unlock()
	delete(all.all, key)
	delete(all.all, nextKey(key))
	delete(all.resting, key)
}

// nextKey is the key of what was found of an allocation's next attachment.
func nextKey(key string) string { return key + " next" }

// forgetNext forgets what was found of an allocation's next attachment.
func (all *observations) forgetNext(key string) {
	all.mu.Lock()
	defer all.mu.Unlock()
	delete(all.all, nextKey(key))
}

// finding is an action and its reason, to be counted.
type finding struct {
	action reclaim.Action
	reason string
}

func (all *observations) count() map[finding]int {
	all.mu.Lock()
	defer all.mu.Unlock()
	out := map[finding]int{}
	for _, o := range all.all {
		out[finding{o.action, o.reason}]++
	}
	return out
}
