// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/claim"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// cost is what calls cost, and what they cost the API server.
type cost struct {
	requests
	calls        int
	elapsed, cpu time.Duration // cpu is the API server's
	walls        times
}

// perCall returns a number for each call.
func (c cost) perCall(all int) float64 { return float64(all) / float64(c.calls) }

func (c cost) perSecond() float64 { return float64(c.calls) / c.elapsed.Seconds() }

// costOf measures calls, so many at once. One that the API server does not answer in its time is
// made again, as runtimes do, and takes that much longer: a hundred processes on two slow cores
// may get there.
func (b *bench) costOf(together, calls int, call func(i int) (sample, error)) (c cost, err error) {
	pid, err := b.env.PID("kube-apiserver")
	if err != nil {
		return c, err
	}
	before, err := b.requests()
	if err != nil {
		return c, err
	}
	cpu, err := cpuTime(pid)
	if err != nil {
		return c, err
	}
	c.calls = calls
	const tries = 3
	var again atomic.Int64
	c.elapsed, c.walls, err = atOnce(together, calls, func(i int) (s sample, err error) {
		began := time.Now()
		for n := 1; ; n++ {
			s, err = call(i)
			if err == nil || n == tries || !strings.Contains(err.Error(), ledger.ErrUnavailable.Error()) {
				break
			}
			again.Add(1)
		}
		s.wall = max(s.wall, time.Since(began))
		return s, err
	})
	b.report.Again += int(again.Load())
	if err != nil {
		return c, err
	}
	after, err := b.requests()
	if err != nil {
		return c, err
	}
	used, err := cpuTime(pid)
	c.requests, c.cpu = after.since(before), used-cpu
	return c, err
}

// addWithServer adds a line of what calls cost in the whole and the API server, and of a last number.
func (t *table) addWithServer(name string, c cost, last float64) {
	t.add(name, c.elapsed.Seconds(), c.walls.p50(), c.walls.p99(), c.perCall(c.sum("", "")), float64(c.sum("LIST", "ipallocations")), c.cpu.Seconds()*1000/float64(c.calls), last)
}

// boot has ten nodes end all they had and claim as much at the same time, first as nodes that
// were never away and then as nodes that have just started.
func (b *bench) boot() error {
	const pods = 30
	// More at once spend the four seconds that a DEL has for its list on waiting for two cores: on a
	// cluster, the ten nodes have their own.
	const together = 30
	const calls = 2 * pods * hostCount
	if err := b.haveAllocations(b.total); err != nil {
		return err
	}
	if err := b.pool("boot", blocksOf("10.62.0.0/16", 1000), hostNames(hostCount)); err != nil {
		return err
	}
	hosts, err := b.oneEach("boot", "boot")
	if err != nil {
		return err
	}
	for _, h := range hosts {
		if err := h.warmUp(); err != nil {
			return err
		}
	}
	running := b.attached(pods * hostCount)
	if _, _, err := atOnce(hostCount, len(running), func(i int) (sample, error) { return hosts[i%hostCount].call("ADD", running[i], "") }); err != nil {
		return err
	}
	t := b.table("A cluster that boots", fmt.Sprintf("%d DELs and as many ADDs on each of ten nodes, %d processes at a time, with %s other allocations in the namespace: of nodes that were never away, and of nodes that have just started, so that none trusts what it remembers. "+
		"API server: its CPU time, lists and all, for each call. Owed: DELs that did not wait for the API server.", pods, together, thousands(b.total)),
		"seconds", "p50 ms", "p99 ms", "requests per call", "lists", "API server, CPU ms per call", "owed")
	for _, booted := range []bool{false, true} {
		name := "never away"
		if booted {
			name = "just started"
			for _, h := range hosts {
				if err := rig.Reboot(h.dataDir()); err != nil {
					return err
				}
			}
		}
		if err := b.calm(); err != nil {
			return err
		}
		fresh := b.attached(len(running))
		c, err := b.costOf(together, calls, func(i int) (sample, error) {
			h := hosts[i/2%hostCount]
			if i%2 == 0 {
				return h.call("DEL", running[i/2], "")
			}
			return h.call("ADD", fresh[i/2], "")
		})
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		held, err := b.of("boot")
		if err != nil {
			return err
		}
		lists := c.sum("LIST", "ipallocations")
		t.addWithServer(name, c, float64(len(held)-len(fresh)))
		b.say("%s: %.1f s, %d lists, %v", name, c.elapsed.Seconds(), lists, c.requests)
		if booted {
			b.target("boot, lists for each node", float64(lists)/hostCount, 1, "")
		}
		running = fresh
	}
	return b.drop("boot")
}

// exhausted has pods wait for addresses of pools that have none left, and give some back.
func (b *bench) exhausted() error {
	const block, waiting, rounds = 20, 30, 5
	if err := b.haveAllocations(b.total); err != nil {
		return err
	}
	if err := b.pool("full-blocks", v1alpha1.IPPoolSpec{Subnet: "10.63.0.0/24", PerNodeBlockSize: block}, hostNames(hostCount)); err != nil {
		return err
	}
	if err := b.pool("full-shared", v1alpha1.IPPoolSpec{Subnet: "10.63.1.0/24", Ranges: []string{fmt.Sprintf("10.63.1.1-10.63.1.%d", block*hostCount)}}, nil); err != nil {
		return err
	}
	t := b.table("Exhausted", fmt.Sprintf("%d pods on each of ten nodes wait for an address of a pool of %d that are all held, with %s other allocations in the namespace. Each tries %d times, 30 processes at a time, without the pause that kubelets make. "+
		"Found: until an ADD succeeds that is tried again and again after an address was given back, on the same node for blocks and on another one for the pool without.", waiting, block*hostCount, thousands(b.total), rounds),
		"seconds", "p50 ms", "p99 ms", "requests per ADD", "lists", "API server, CPU ms per ADD", "found, s")
	for _, p := range []struct {
		name, pool string
		finder     int // the host that looks for what host 0 gives back
	}{{"blocks", "full-blocks", 0}, {"no blocks", "full-shared", 1}} {
		hosts, err := b.oneEach(p.pool, p.pool)
		if err != nil {
			return err
		}
		holders := b.attached(block * hostCount)
		if _, _, err := atOnce(hostCount, len(holders), func(i int) (sample, error) { return hosts[i%hostCount].call("ADD", holders[i], "") }); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		if err := b.calm(); err != nil {
			return err
		}
		waiters := b.attached(waiting * hostCount)
		tries := len(waiters) * rounds
		c, err := b.costOf(30, tries, func(i int) (sample, error) { return hosts[i%hostCount].refused(waiters[i%len(waiters)]) })
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		if _, err := hosts[0].call("DEL", holders[0], ""); err != nil {
			return err
		}
		given := time.Now()
		if err := b.until("what was given back is found", func() (bool, error) {
			_, err := hosts[p.finder].call("ADD", waiters[p.finder], "")
			if isExhausted(err) {
				return false, nil
			}
			return err == nil, err
		}); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		found := time.Since(given)
		t.addWithServer(p.name, c, found.Seconds())
		b.say("%s: %d ADDs refused in %.1f s, found after %.1f s, %v", p.name, tries, c.elapsed.Seconds(), found.Seconds(), c.requests)
		b.target("exhausted, requests of an ADD: "+p.name, c.perCall(c.sum("", "")), 2, "")
		if err := b.drop(p.pool); err != nil {
			return err
		}
	}
	return nil
}

// refused makes an ADD that has to fail, for the pool is full.
func (h *host) refused(container string) (sample, error) {
	s, err := h.call("ADD", container, "")
	if isExhausted(err) {
		return s, nil
	}
	if err == nil {
		err = fmt.Errorf("an ADD succeeded in pool %s, which is full", h.pool)
	}
	return s, err
}

func isExhausted(err error) bool {
	return err != nil && strings.Contains(err.Error(), claim.ErrExhausted.Error())
}

// of returns the allocations of a pool, from the API server's memory: elsewhere it would have
// to read all of the namespace.
func (b *bench) of(pool string) ([]v1alpha1.IPAllocation, error) {
	list, err := b.ipam.IPAllocations(namespace).List(b.ctx, metav1.ListOptions{LabelSelector: v1alpha1.LabelPool + "=" + pool, ResourceVersion: "0"})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// drop removes the allocations of a pool.
func (b *bench) drop(pool string) error {
	left, err := b.of(pool)
	if err != nil {
		return err
	}
	for _, a := range left {
		if err := b.ipam.IPAllocations(namespace).Delete(b.ctx, a.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}
