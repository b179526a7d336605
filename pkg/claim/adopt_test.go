// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

func TestAddsWaitWhileClosed(t *testing.T) {
	h := NewHint(t.TempDir())
	c := &Claimer{Hint: h}
	over, cancel := context.WithCancel(t.Context())
	cancel()

	must(t, c.awaitOpen(over))
	must(t, h.Close(Foreign{}))
	if err := c.awaitOpen(over); !errors.Is(err, ErrTakingOver) {
		t.Errorf("closed: %v, want ErrTakingOver", err)
	}
	waited := make(chan error)
	go func() { waited <- c.awaitOpen(t.Context()) }()
	must(t, h.Open())
	must(t, h.Open())
	must(t, <-waited)

	// Whoever closed it has died.
	must(t, h.Close(Foreign{}))
	age(t, h, settleTime+time.Second, "closed")
	must(t, c.awaitOpen(over))
	// Closing it again keeps it closed.
	must(t, h.Close(Foreign{}))
	if err := c.awaitOpen(over); !errors.Is(err, ErrTakingOver) {
		t.Errorf("closed again: %v, want ErrTakingOver", err)
	}
}

// What nv-ipam has given and nobody has adopted is known as long as the node is
// closed, however old that is.
func TestForeign(t *testing.T) {
	const store = `{"version":1,"pools":{
		"p":{"entries":{"a":{"container_id":"aaaa","interface_name":"net1","ip_address":"10.0.0.1"},"x":{"ip_address":"none"}}},
		"cidrpool/q":{"entries":{"b":{"container_id":"bbbb","interface_name":"net1","ip_address":"10.0.0.2"}}}}}`
	entryA, entryB := NewForeignEntry("p", addr1, podA), NewForeignEntry("q", addr2, podB)
	for _, tc := range []struct {
		name    string
		store   string // what is in the store by now; none where it is empty
		foreign Foreign
		want    []string
	}{
		{"nothing is given", "", Foreign{}, nil},
		{"as it was read", "", Foreign{Held: []ForeignEntry{entryA, NewForeignEntry("p", addr6, podA)}}, []string{"p.10.0.0.1", v1alpha1.AllocationName("p", addr6)}},
		{"given since then", store, Foreign{}, []string{"p.10.0.0.1", "q.10.0.0.2"}},
		{"adopted", store, Foreign{Settled: []ForeignEntry{entryA}}, []string{"q.10.0.0.2"}},
		{"adopted, and given again since", store, Foreign{Settled: []ForeignEntry{NewForeignEntry("p", addr1, podB), entryB}}, []string{"p.10.0.0.1"}},
		{"half a store", store[:60], Foreign{Held: []ForeignEntry{entryB}}, []string{"q.10.0.0.2"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			h := NewHint(dir)
			if tc.store != "" {
				must(t, os.WriteFile(filepath.Join(dir, "store"), []byte(tc.store), 0o600))
			}
			if got := h.foreign(); got != nil {
				t.Errorf("open: %v", got)
			}
			tc.foreign.Store = filepath.Join(dir, "store")
			must(t, h.Close(tc.foreign))
			age(t, h, 24*time.Hour, closedFile)
			// The host has the directory under another path than who has closed it.
			moved := filepath.Join(t.TempDir(), "moved")
			must(t, os.Rename(dir, moved))
			h = NewHint(moved)
			if got := slices.Sorted(maps.Keys(h.foreign())); !slices.Equal(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			// A file that says nothing stands for all that the store has.
			must(t, os.WriteFile(filepath.Join(moved, closedFile), nil, 0o600))
			if got := len(h.foreign()); tc.store == store && got != 2 {
				t.Errorf("%d of an empty file, want 2", got)
			}
			must(t, h.Open())
			if got := h.foreign(); got != nil {
				t.Errorf("open again: %v", got)
			}
		})
	}
	h := NewHint(t.TempDir())
	elsewhere := filepath.Join(t.TempDir(), "store")
	must(t, os.WriteFile(elsewhere, []byte(store), 0o600))
	must(t, h.Close(Foreign{Store: elsewhere}))
	if got := h.foreign(); len(got) != 2 {
		t.Errorf("a store elsewhere: %v", got)
	}
}

func TestForeignInUse(t *testing.T) {
	err := foreignInUse(v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "p"}, netip.MustParseAddr("10.0.0.1"))
	want := `requested IP is already reserved in the pool "p", poolType "ippool": 10.0.0.1 is held in nv-ipam's store on this node, whose migration is unfinished; see the log of ipam-node: ` + ErrTakingOver.Error()
	if err.Error() != want || !errors.Is(err, ErrTakingOver) {
		t.Errorf("got %v", err)
	}
}
