// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
)

func TestAddsWaitWhileClosed(t *testing.T) {
	dir := t.TempDir()
	h := hint.Open(dir, "cluster", "ns", slog.New(slog.DiscardHandler))
	c := &Claimer{Hint: h}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()

	must(c.awaitAdoption(over))
	must(h.PauseADDs(hint.Foreign{}))
	if err := c.awaitAdoption(over); !errors.Is(err, errAdopting) {
		t.Errorf("closed: %v, want errAdopting", err)
	}
	waited := make(chan error)
	go func() { waited <- c.awaitAdoption(t.Context()) }()
	must(h.ResumeADDs())
	must(h.ResumeADDs())
	must(<-waited)

	// Whoever closed it has died.
	must(h.PauseADDs(hint.Foreign{}))
	long := time.Now().Add(-time.Hour)
	must(os.Chtimes(filepath.Join(dir, "closed"), long, long))
	must(c.awaitAdoption(over))
	// Closing it again keeps it closed.
	must(h.PauseADDs(hint.Foreign{}))
	if err := c.awaitAdoption(over); !errors.Is(err, errAdopting) {
		t.Errorf("closed again: %v, want errAdopting", err)
	}
}

func TestForeignInUse(t *testing.T) {
	err := foreignInUse(v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "p"}, netip.MustParseAddr("10.0.0.1"))
	want := `requested IP is already reserved in the pool "p", poolType "ippool": 10.0.0.1 is held in nv-ipam's store on this node, whose migration is unfinished; see the log of ipam-node: ` + errAdopting.Error()
	if err.Error() != want || !errors.Is(err, errAdopting) {
		t.Errorf("got %v", err)
	}
}
