// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// sighting is what was last found of an allocation that is a suspect or held.
type sighting struct {
	uid     types.UID
	verdict verdict
	word    string
	since   time.Time // the verdict has been the same
}

// sightings are those of all allocations, by their keys in the cache. Nobody
// examines one key twice at a time.
type sightings struct {
	mu  sync.Mutex
	all map[string]sighting
}

// note keeps s, which is of now, and returns what was known before and since when
// the verdict has been what it is. Where all is well there is nothing to keep.
func (all *sightings) note(key string, s sighting) (before sighting, since time.Time) {
	all.mu.Lock()
	defer all.mu.Unlock()
	if before = all.all[key]; before.uid != s.uid { // of an earlier allocation
		before = sighting{}
	}
	if before.verdict == s.verdict && before.uid == s.uid {
		s.since = before.since
	}
	if s.verdict == keep {
		delete(all.all, key)
		return before, s.since
	}
	if all.all == nil {
		all.all = map[string]sighting{}
	}
	all.all[key] = s
	return before, s.since
}

func (all *sightings) forget(key string) {
	all.mu.Lock()
	defer all.mu.Unlock()
	delete(all.all, key)
}

// tally is a verdict and its reason, to be counted.
type tally struct {
	verdict verdict
	word    string
}

func (all *sightings) count() map[tally]int {
	all.mu.Lock()
	defer all.mu.Unlock()
	out := map[tally]int{}
	for _, s := range all.all {
		out[tally{s.verdict, s.word}]++
	}
	return out
}
