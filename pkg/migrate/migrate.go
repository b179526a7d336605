// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"time"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/claim"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
)

// migrator takes over nv-ipam's store on one node.
type migrator struct {
	// Claimer of the node, with the hint that the plugin will use.
	Claimer *claim.Claimer
	// StoreFile is nv-ipam's. It is only read.
	StoreFile string
	// Force runs also where the journal says that all is done, so that conflicts are
	// tried again, and where the namespace has none of the store's pools.
	Force bool
	// Settle is for how long the store must not have changed after the switch:
	// longer than nv-ipam's call timeout.
	Settle time.Duration
	// Report tells the world outside of the log of what is unsolved; may be nil.
	Report func(context.Context, entryOutcome) error

	pools map[v1alpha1.PoolReference]poolState // of this pass
	last  map[v1alpha1.PoolReference]netip.Addr
}

// switchTime is what the switch may take beyond settling: less than the 30 s that a
// pod has to end.
const switchTime = 20 * time.Second

// poll is how often the store is looked at while it settles.
const poll = 250 * time.Millisecond

// needed reports whether there is something to migrate: a store with entries
// that the journal does not have, or a run that did not come to its end.
func (m *migrator) needed() (bool, error) {
	store, journal, err := m.read()
	if err != nil || store == nil {
		return false, err
	}
	return m.Force || journal.Finished == nil || len(store.news(journal)) > 0, nil
}

// news are the entries that the journal does not have.
func (s *nodeStore) news(j *nodeJournal) (out []entry) {
	for _, e := range s.Entries {
		if j.find(e) == nil {
			out = append(out, e)
		}
	}
	return out
}

// read reads store and journal; nil where there is no store. A journal of
// another node or namespace says nothing about this one: a disk may be cloned.
func (m *migrator) read() (*nodeStore, *nodeJournal, error) {
	store, err := readStore(m.StoreFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	journal, err := readJournal(m.StoreFile)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the journal of the migration: %w", err)
	}
	if journal == nil || journal.Node != m.Claimer.Ledger.Node || journal.Namespace != m.Claimer.Ledger.Namespace {
		journal = &nodeJournal{Node: m.Claimer.Ledger.Node, Namespace: m.Claimer.Ledger.Namespace}
	}
	return store, journal, nil
}

// claimAll is the first pass alone: nv-ipam goes on serving the node. It returns
// nil where there is no store.
func (m *migrator) claimAll(ctx context.Context) (*nodeJournal, error) {
	store, journal, err := m.read()
	if err != nil || store == nil {
		return nil, err
	}
	journal.Finished = nil
	if err := m.Claimer.Complete(ctx); err != nil { // then what an earlier run claimed may be claimed again
		m.Claimer.Log.Warn("what this node holds cannot be listed", "error", err)
	}
	if err := m.pass(ctx, store, store.Entries, journal); err != nil {
		return journal, err
	}
	// Not before: what the hint has, and the API server does not, was not released (released).
	if err := m.Claimer.Refresh(ctx); err != nil {
		m.Claimer.Log.Warn("containers that ended under nv-ipam may still be in the hint", "error", err)
	}
	return journal, nil
}

// run claims what the store has, has the plugin's binary switched, and claims
// what nv-ipam has given until then. Where an address could not be claimed, for
// another reason than that another pod holds it, or that its entry is refused for
// good, nothing is switched: the error says why, and the next run begins again.
//
// The node stays closed when run fails after the switch, until the next run. When
// hint.PauseADDs runs out, ADDs go on, with what nv-ipam has not given.
func (m *migrator) run(ctx context.Context, switchOver func(context.Context) error) (*nodeJournal, error) {
	if store, before, err := m.read(); err == nil && store != nil && before.Switched && before.Finished == nil {
		// A run that ended early left the node closed; it must not open meanwhile.
		if err := m.close(store, before); err != nil {
			return before, err
		}
	}
	journal, err := m.claimAll(ctx)
	if err != nil {
		return journal, err
	}
	if journal == nil {
		return nil, switchOver(ctx)
	}
	journal.Switched = true
	if err := journal.save(m.StoreFile); err != nil {
		return journal, fmt.Errorf("writing the journal of the migration: %w", err)
	}
	if err := m.closeAgain(journal); err != nil {
		return journal, err
	}
	// A node that is closed should be opened, also where the process is told to end.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.Settle+switchTime)
	defer cancel()
	if err := switchOver(ctx); err != nil {
		return journal, err
	}
	if err := m.settle(ctx, journal); err != nil {
		return journal, err
	}
	now := time.Now().UTC()
	journal.Finished = &now
	if err := journal.save(m.StoreFile); err != nil {
		return journal, fmt.Errorf("writing the journal of the migration: %w", err)
	}
	return journal, m.Claimer.Hint.ResumeADDs()
}

// settle claims what is new in the store until nothing has been for long enough.
func (m *migrator) settle(ctx context.Context, journal *nodeJournal) error {
	quiet := time.Now()
	for {
		store, err := readStore(m.StoreFile)
		if err != nil {
			return fmt.Errorf("reading nv-ipam's store again: %w", err)
		}
		if err := m.close(store, journal); err != nil {
			return err
		}
		if store.Sum != journal.Store {
			quiet = time.Now()
			if err := m.pass(ctx, store, store.news(journal), journal); err != nil {
				return err
			}
		}
		wait := min(poll, time.Until(quiet.Add(m.Settle)))
		if wait <= 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// closeAgain is close with the store as it is by now.
func (m *migrator) closeAgain(journal *nodeJournal) error {
	store, err := readStore(m.StoreFile)
	if err != nil {
		return fmt.Errorf("reading nv-ipam's store again: %w", err)
	}
	return m.close(store, journal)
}

// close closes the node, or keeps it closed: no ADD is given what the store has and
// the journal does not.
func (m *migrator) close(store *nodeStore, journal *nodeJournal) error {
	foreign := hint.Foreign{Store: m.StoreFile}
	for _, e := range store.Entries {
		entry := hint.NewForeignEntry(e.Pool.Name, e.Address, e.Attachment)
		if journal.find(e) == nil {
			foreign.Held = append(foreign.Held, entry)
		} else {
			foreign.Settled = append(foreign.Settled, entry)
		}
	}
	if err := m.Claimer.Hint.PauseADDs(foreign); err != nil {
		return fmt.Errorf("keeping the node closed: %w", err)
	}
	return nil
}

// pass claims entries of the store. It goes on whatever becomes of one of them,
// and notes the store's checksum only where all have come to something.
func (m *migrator) pass(ctx context.Context, store *nodeStore, entries []entry, journal *nodeJournal) error {
	if err := m.readPools(ctx, store); err != nil {
		return err
	}
	m.roundRobin(store)
	var errs []error
	for _, e := range entries {
		outcome, err := m.migrate(ctx, e, journal)
		if err != nil {
			errs = append(errs, fmt.Errorf("claiming %s of pool %s for pod %s/%s: %w", e.Address, e.Pool.Name, e.Pod.Namespace, e.Pod.Name, err))
			if errors.Is(err, ledger.ErrUnavailable) {
				break // for the others, too
			}
			continue
		}
		m.log(ctx, journal, outcome)
		journal.set(outcome)
	}
	journal.Unreadable = store.Unreadable
	for _, text := range store.Unreadable {
		m.Claimer.Log.Error("entry of nv-ipam's store cannot be claimed", "entry", text)
	}
	if len(errs) == 0 {
		journal.Store = store.Sum
	}
	return errors.Join(errs...)
}

// roundRobin goes on where nv-ipam stopped, unless the plugin has moved on.
func (m *migrator) roundRobin(store *nodeStore) {
	if m.last == nil {
		m.last = map[v1alpha1.PoolReference]netip.Addr{}
	}
	for ref, addr := range store.Last {
		if now := m.Claimer.Hint.Last(ref); now.IsValid() && now != m.last[ref] {
			continue
		}
		m.last[ref] = addr
		m.Claimer.Hint.SetLast(ref, addr)
	}
}

// unsolvedText says what an unsolved result means.
var unsolvedText = map[entryResult]string{
	conflict: "address is given twice: another pod holds it, and this one answers on it, too",
	refused:  "address cannot be recorded: this pod answers on it, and another one may be given it",
}

// log says what became of an entry, and reports what is unsolved and new.
func (m *migrator) log(ctx context.Context, journal *nodeJournal, o entryOutcome) {
	log := m.Claimer.Log.With("result", string(o.Result), "address", o.Address, "pool", o.Pool.Name, "pod", o.Pod.Namespace+"/"+o.Pod.Name,
		"container", o.ContainerID, "interface", o.Interface)
	if o.Detail != "" {
		log = log.With("detail", o.Detail)
	}
	if !o.Result.unsolved() {
		log.Info("migrated")
		return
	}
	log.Error(unsolvedText[o.Result])
	if before := journal.find(o.entry); m.Report == nil || before != nil && before.Result == o.Result && before.Detail == o.Detail {
		return
	}
	if err := m.Report(ctx, o); err != nil {
		log.Warn("this cannot be reported on the pool", "error", err)
	}
}
