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

// JournalSuffix makes the journal's path from the store's: it stays beside it.
const JournalSuffix = ".crd-ipam-migrated"

// Result is what became of an entry.
type Result string

// Results.
const (
	// claimed: it has an allocation now.
	claimed Result = "claimed"
	// already: it had one, from an earlier run.
	already Result = "already claimed"
	// obsolete: the pod has another sandbox by now, which holds the address.
	obsolete Result = "obsolete"
	// released: an earlier run claimed it, and the plugin has released it since.
	released Result = "released since"
	// conflict: another pod holds the address. Both answer on it.
	conflict Result = "conflict"
)

// Outcome is an entry and what became of it.
type Outcome struct {
	Entry
	Result Result `json:"result"`
	// Detail is for people: who holds the address, what is odd about the entry.
	Detail string `json:"detail,omitempty"`
}

// Journal is what a node has migrated.
type Journal struct {
	Node      string `json:"node"`
	Namespace string `json:"namespace"`
	// Store is the checksum of the store that was read last.
	Store string `json:"store"`
	// Switched is true from just before the plugin's binary is replaced: from then
	// on an address that is in the store may have been released.
	Switched bool `json:"switched"`
	// Finished is when nothing was left to do.
	Finished *time.Time `json:"finished,omitempty"`
	Entries  []Outcome  `json:"entries"`
	// Unreadable are entries of the store that say nothing that could be claimed.
	Unreadable []string `json:"unreadable,omitempty"`
}

// ReadJournal reads the journal beside the store, or returns nil where there is
// none. One that is not valid is as good as none: then every entry is tried.
func ReadJournal(storeFile string) (*Journal, error) {
	data, err := os.ReadFile(storeFile + JournalSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	j := &Journal{}
	if json.Unmarshal(data, j) != nil {
		return nil, nil
	}
	return j, nil
}

func (j *Journal) save(storeFile string) error {
	data, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return err
	}
	return install.WriteFile(storeFile+JournalSuffix, append(data, '\n'), 0o600)
}

// set enters an outcome in the place of an earlier run's.
func (j *Journal) set(o Outcome) {
	if before := j.find(o.Entry); before != nil {
		*before = o
		return
	}
	j.Entries = append(j.Entries, o)
}

func (j *Journal) find(e Entry) *Outcome {
	i := slices.IndexFunc(j.Entries, func(o Outcome) bool { return o.key() == e.key() })
	if i < 0 {
		return nil
	}
	return &j.Entries[i]
}

// Conflicts are the entries whose address another pod holds.
func (j *Journal) Conflicts() (out []Outcome) {
	for _, o := range j.Entries {
		if o.Result == conflict {
			out = append(out, o)
		}
	}
	return out
}

// String sums up.
func (j *Journal) String() string {
	n := map[Result]int{}
	for _, o := range j.Entries {
		n[o.Result]++
	}
	return fmt.Sprintf("%d entries: %d claimed, %d already claimed, %d conflicts, %d obsolete, %d released since, %d unreadable",
		len(j.Entries)+len(j.Unreadable), n[claimed], n[already], n[conflict], n[obsolete], n[released], len(j.Unreadable))
}
