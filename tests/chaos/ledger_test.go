// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"testing"
)

// ledger is what the containers' own view of the world comes to: which live
// container answers on which address. It knows nothing of the API.
type ledger struct {
	mu      sync.Mutex
	holders map[string]string // by address, container
}

// up is a container that goes live with an address. It returns the one that has
// the address already.
func (l *ledger) up(address, container string) (other string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.holders == nil {
		l.holders = map[string]string{}
	}
	if other = l.holders[address]; other == "" {
		l.holders[address] = container
	}
	return other
}

// down is a container whose network namespace is gone.
func (l *ledger) down(address string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.holders, address)
}

func (l *ledger) snapshot() map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.holders)
}

// compare returns what is wrong with the allocations that were listed (by
// address, container) while the ledger went from before to after: every
// container that was live all the time must be the holder of its address.
func compare(before, listed, after map[string]string) (wrong []string) {
	for address, container := range before {
		if after[address] == container && listed[address] != container {
			wrong = append(wrong, fmt.Sprintf("container %s answers on %s, which is held by %q", container, address, listed[address]))
		}
	}
	return wrong
}

func TestLedger(t *testing.T) {
	var l ledger
	if other := l.up("10.0.0.1", "a"); other != "" {
		t.Errorf("a free address is held by %s", other)
	}
	if other := l.up("10.0.0.1", "b"); other != "a" {
		t.Errorf("an address was given twice: got %q, want a", other)
	}
	held := map[string]string{"10.0.0.1": "a"}
	for _, row := range []struct {
		name                  string
		before, listed, after map[string]string
		wrong                 int
	}{
		{"held", held, held, held, 0},
		{"free though live", held, nil, held, 1},
		{"another's though live", held, map[string]string{"10.0.0.1": "b"}, held, 1},
		{"deleted while listing", held, nil, nil, 0},
		{"added while listing", nil, nil, held, 0},
	} {
		if wrong := compare(row.before, row.listed, row.after); len(wrong) != row.wrong {
			t.Errorf("%s: %q, want %d", row.name, wrong, row.wrong)
		}
	}
	l.down("10.0.0.1")
	if other := l.up("10.0.0.1", "b"); other != "" {
		t.Errorf("a released address is held by %s", other)
	}
}

// counts are what happened.
type counts struct {
	claimed, released              atomic.Int64 // ADDs and DELs that succeeded
	addFailed, delFailed           atomic.Int64 // and were tried again
	killed, lostDELs               atomic.Int64
	serverRestarts, serverKills    atomic.Int64
	controllerKills, controllerEnd atomic.Int64 // by the test; by itself, its lease lost
	looks                          atomic.Int64 // of the watch at all allocations
	restored                       atomic.Int64 // allocations, after the record was lost
}

func (c *counts) String() string {
	return fmt.Sprintf("claimed %d, released %d, ADDs retried %d, DELs retried %d, plugins killed %d, DELs lost %d, "+
		"API server restarted %d and killed %d, controllers killed %d and ended by themselves %d, looks at all allocations %d, allocations restored %d",
		c.claimed.Load(), c.released.Load(), c.addFailed.Load(), c.delFailed.Load(), c.killed.Load(), c.lostDELs.Load(),
		c.serverRestarts.Load(), c.serverKills.Load(), c.controllerKills.Load(), c.controllerEnd.Load(), c.looks.Load(), c.restored.Load())
}

// missing names a kind of fault that has not come yet: a run in which nothing
// goes wrong proves nothing.
func (c *counts) missing() string {
	for what, n := range map[string]*atomic.Int64{
		"plugins killed": &c.killed, "DELs lost": &c.lostDELs, "API servers restarted": &c.serverRestarts,
		"API servers killed": &c.serverKills, "controllers killed": &c.controllerKills, "looks": &c.looks, "restored": &c.restored,
	} {
		if n.Load() == 0 {
			return what
		}
	}
	return ""
}
