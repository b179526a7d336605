// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package chaos runs a cluster's worth of attachments through bin/nv-ipam and
// bin/ipam-controller while API server, controllers and plugin processes are
// killed, DELs are lost, and the record is lost once. The pool has as many addresses as there are
// attachments, so one address that leaks is one pod that never starts.
package chaos

import (
	"context"
	"flag"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

var (
	attachments = flag.Int("attachments", 100, "attachments at once, a multiple of 100; the pool has as many addresses")
	rounds      = flag.Int("rounds", 1, "how often they are all created and deleted; oftener where not every kind of fault has come by then")
	seed        = flag.Uint64("seed", 0, "of the random choices; 0 takes a new one")
	shared      = flag.Bool("shared", false, "a pool without blocks")
	kept        = flag.Bool("kept", false, "a pool without blocks, with room to spare, in which addresses rest, and a third of the pods are of a StatefulSet and keep theirs, on another node in each round")
	limit       = flag.Duration("limit", 15*time.Minute, "what is not done by then has failed for good")
)

const nodes = 10

var env *testenv.Env

func TestMain(m *testing.M) { os.Exit(testenv.Run(m, &env, testenv.Options{})) }

// TestChaos wants of every moment that no address has two holders and that no
// live container's address is free, of every round that every pod gets an
// address, and of the end that nothing is held any more.
func TestChaos(t *testing.T) {
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	*shared = *shared || *kept
	t.Logf("%d attachments on %d nodes, %d rounds, seed %d, without blocks: %v, with addresses that are kept: %v", *attachments, nodes, *rounds, *seed, *shared, *kept)
	ctx, cancel := context.WithTimeout(t.Context(), *limit)
	defer cancel()
	began := time.Now()

	v := current(t)
	c := newCluster(ctx, t, env, v)
	controllers := c.startControllers(t, v)
	kubelets := c.startKubelets(ctx, t, v)

	calm, end := context.WithCancel(ctx)
	var background sync.WaitGroup
	background.Go(func() { c.disturb(calm, t, controllers) })
	background.Go(func() { c.watch(calm, t) })
	for round := 1; (round <= *rounds || c.counts.missing() != "") && !t.Failed(); round++ {
		each(kubelets, func(k *kubelet) { k.forAll(func(p *pod) { k.start(ctx, t, p) }) })
		c.wantAllHeld(ctx, t)
		if round == 1 { // later, a hint may have what ended without a DEL
			c.lose(ctx, t, kubelets)
		}
		each(kubelets, func(k *kubelet) { k.forAll(func(p *pod) { k.stop(ctx, t, p) }) })
		move(kubelets)
		t.Logf("round %d is over after %v: %v", round, time.Since(began).Round(time.Second), &c.counts)
	}
	end()
	background.Wait()

	c.endSet(ctx, t)
	c.wantNoneHeld(ctx, t)
	controllers.stop(t)
	t.Logf("all of it in %v: %v, reclaimed %d", time.Since(began).Round(time.Second), &c.counts, controllers.reclaimed(t))
}

// move gives the pods that keep their addresses to the next node.
func move(kubelets []*kubelet) {
	moved := make([][]*pod, len(kubelets))
	for i, k := range kubelets {
		next := (i + 1) % len(kubelets)
		k.pods = slices.DeleteFunc(k.pods, func(p *pod) bool {
			if p.keeps {
				moved[next] = append(moved[next], p)
			}
			return p.keeps
		})
	}
	for i, k := range kubelets {
		k.pods = append(k.pods, moved[i]...)
	}
}

func each(kubelets []*kubelet, f func(*kubelet)) {
	var all sync.WaitGroup
	for _, k := range kubelets {
		all.Go(func() { f(k) })
	}
	all.Wait()
}

// random returns one of many independent sources that the seed determines.
func random(stream uint64) *rand.Rand { return rand.New(rand.NewPCG(*seed, stream)) }

// pick returns a time between least and most.
func pick(r *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(r.Int64N(int64(most-least)))
}

// pause reports whether ctx has not ended by then.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
