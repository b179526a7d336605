// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestAddsWaitWhileClosed(t *testing.T) {
	h := NewHint(t.TempDir())
	c := &Claimer{Hint: h}
	over, cancel := context.WithCancel(t.Context())
	cancel()

	must(t, c.awaitOpen(over))
	must(t, h.Close())
	if err := c.awaitOpen(over); !errors.Is(err, ErrTakingOver) {
		t.Errorf("closed: %v, want ErrTakingOver", err)
	}
	waited := make(chan error)
	go func() { waited <- c.awaitOpen(t.Context()) }()
	must(t, h.Open())
	must(t, h.Open())
	must(t, <-waited)

	// Whoever closed it has died.
	must(t, h.Close())
	age(t, h, settleTime+time.Second, "closed")
	must(t, c.awaitOpen(over))
	// Closing it again keeps it closed.
	must(t, h.Close())
	if err := c.awaitOpen(over); !errors.Is(err, ErrTakingOver) {
		t.Errorf("closed again: %v, want ErrTakingOver", err)
	}
}
