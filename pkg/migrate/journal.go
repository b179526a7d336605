// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/crd-ipam/crd-ipam/pkg/install"
)

// journalSuffix makes the journal's path from the store's: it stays beside it.
const journalSuffix = ".crd-ipam-migrated"

// entryResult is what became of an entry.
type entryResult string

// Results.
const (
	// claimed: it has an allocation now.
	claimed entryResult = "claimed"
	// already: it had one, from an earlier run.
	already entryResult = "already claimed"
	// obsolete: the pod has another sandbox by now, which holds the address.
	obsolete entryResult = "obsolete"
	// released: an earlier run claimed it, and the plugin has released it since.
	released entryResult = "released since"
	// conflict: another pod holds the address. Both answer on it.
	conflict entryResult = "conflict"
	// refused: no allocation can say what the entry says, so the API server does not take one.
	// The container answers on the address, and another pod may be given it.
	refused entryResult = "refused"
)

// unsolved reports whether a container answers on an address that it does not hold: a person has
// to solve that.
func (r entryResult) unsolved() bool { return r == conflict || r == refused }

// entryOutcome is an entry and what became of it.
type entryOutcome struct {
	entry
	Result entryResult `json:"result"`
	// Detail is for people: who holds the address, what is odd about the entry.
	Detail string `json:"detail,omitempty"`
}

// note adds to the detail.
func (o *entryOutcome) note(text string) {
	if o.Detail != "" {
		text = o.Detail + "; " + text
	}
	o.Detail = text
}

// nodeJournal is what a node has migrated.
type nodeJournal struct {
	Node      string `json:"node"`
	Namespace string `json:"namespace"`
	// Store is the checksum of the store that was read last.
	Store string `json:"store"`
	// Switched is true from just before the plugin's binary is replaced: from then
	// on an address that is in the store may have been released.
	Switched bool `json:"switched"`
	// Finished is when nothing was left to do.
	Finished *time.Time     `json:"finished,omitempty"`
	Entries  []entryOutcome `json:"entries"`
	// Unreadable are entries of the store that say nothing that could be claimed.
	Unreadable []string `json:"unreadable,omitempty"`
}

// readJournal reads the journal beside the store, or returns nil where there is
// none. One that is not valid is as good as none: then every entry is tried.
func readJournal(storeFile string) (*nodeJournal, error) {
	data, err := os.ReadFile(storeFile + journalSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	j := &nodeJournal{}
	if json.Unmarshal(data, j) != nil {
		return nil, nil
	}
	return j, nil
}

func (j *nodeJournal) save(storeFile string) error {
	data, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return err
	}
	return install.WriteFile(storeFile+journalSuffix, append(data, '\n'), 0o600)
}

// set enters an outcome in the place of an earlier run's.
func (j *nodeJournal) set(o entryOutcome) {
	if before := j.find(o.entry); before != nil {
		*before = o
		return
	}
	j.Entries = append(j.Entries, o)
}

func (j *nodeJournal) find(e entry) *entryOutcome {
	i := slices.IndexFunc(j.Entries, func(o entryOutcome) bool { return o.key() == e.key() })
	if i < 0 {
		return nil
	}
	return &j.Entries[i]
}

// unsolved are the entries that a person has to solve.
func (j *nodeJournal) unsolved() (out []entryOutcome) {
	for _, o := range j.Entries {
		if o.Result.unsolved() {
			out = append(out, o)
		}
	}
	return out
}

// String sums up.
func (j *nodeJournal) String() string {
	n := map[entryResult]int{}
	for _, o := range j.Entries {
		n[o.Result]++
	}
	return fmt.Sprintf("%d entries: %d claimed, %d already claimed, %d conflicts, %d obsolete, %d released since, %d refused, %d unreadable",
		len(j.Entries)+len(j.Unreadable), n[claimed], n[already], n[conflict], n[obsolete], n[released], n[refused], len(j.Unreadable))
}
