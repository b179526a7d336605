// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
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

// and returns what two measurements cost together.
func (c cost) and(other cost) cost {
	sum := requests{}
	for _, r := range []requests{c.requests, other.requests} {
		for k, n := range r {
			sum[k] += n
		}
	}
	return cost{sum, c.calls + other.calls, c.elapsed + other.elapsed, c.cpu + other.cpu, slices.Concat(c.walls, other.walls)}
}

// cpuPerCall is the API server's, in milliseconds.
func (c cost) cpuPerCall() float64 { return c.cpu.Seconds() * 1000 / float64(c.calls) }

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
	used, err := cpuTime(pid) // before the server is asked how many they were, which costs it more
	if err != nil {
		return c, err
	}
	after, err := b.requests()
	c.requests, c.cpu = after.since(before), used-cpu
	return c, err
}

// addWithServer adds a line of what calls cost in the whole and the API server, and of more numbers.
func (t *table) addWithServer(name string, c cost, more ...float64) {
	t.add(name, append([]float64{c.elapsed.Seconds(), c.walls.p50(), c.walls.p99(), c.perCall(c.sum("", "")), float64(c.sum("LIST", "ipallocations")), c.cpuPerCall()}, more...)...)
}

// boot has ten nodes end all they had and claim as much at the same time, in turns as nodes that
// were never away and as nodes that have just started.
func (b *bench) boot() error {
	const pods = 30
	const turns = 3
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
		"%d times each, in turns; each line is of all of them together. API server: its CPU time, lists and all, for each call; it collects its garbage in one turn or another, so that two such lines do not tell what a list costs. Owed: DELs that did not wait for the API server.", pods, bootTogether, thousands(b.total), turns),
		"seconds", "p50 ms", "p99 ms", "requests per call", "lists", "API server, CPU ms per call", "owed")
	type state struct {
		cost
		owed int
	}
	const quiet, restarted = "never away", "just started"
	states := map[string]*state{quiet: {}, restarted: {}}
	for i := range 2 * turns {
		name := quiet
		if i%2 == 1 {
			name = restarted
			for _, h := range hosts {
				if err := rig.Reboot(h.dataDir()); err != nil {
					return err
				}
			}
		}
		fresh := b.attached(len(running))
		c, owed, err := b.turnOver("boot", hosts, running, fresh)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		s := states[name]
		s.cost, s.owed = s.and(c), s.owed+owed
		b.say("%s: %.1f s, %.2f ms of the API server's CPU per call, %d owed, %v", name, c.elapsed.Seconds(), c.cpuPerCall(), owed, c.requests)
		running = fresh
	}
	never, just := states[quiet], states[restarted]
	lists := float64(just.sum("LIST", "ipallocations"))
	t.addWithServer(quiet, never.cost, float64(never.owed))
	t.addWithServer(restarted, just.cost, float64(just.owed))
	b.target("boot, lists for each node", lists/hostCount/turns, 1, "")
	if err := b.listAfterStart(hosts, running); err != nil {
		return fmt.Errorf("the list after a start: %w", err)
	}
	return b.drop("boot")
}

// listAfterStart measures what the list of a node that has just started costs the API server: its CPU
// for DELs with one and without, one after the other. There are so many that the collection of
// garbage falls on what has made it.
func (b *bench) listAfterStart(hosts []*host, running []string) error {
	const turns = 10
	var quiet, just cost
	for range turns {
		for _, sum := range []*cost{&quiet, &just} {
			if sum == &just {
				for _, h := range hosts {
					if err := rig.Reboot(h.dataDir()); err != nil {
						return err
					}
				}
			}
			c, err := b.costOf(1, hostCount, func(i int) (sample, error) { return hosts[i].call("DEL", running[i], "") })
			if err != nil {
				return err
			}
			*sum = sum.and(c)
			for i, h := range hosts { // for the next turn
				if _, err := h.call("ADD", running[i], ""); err != nil {
					return err
				}
			}
		}
	}
	lists := just.sum("LIST", "ipallocations")
	if lists != just.calls || quiet.sum("LIST", "ipallocations") != 0 {
		return fmt.Errorf("%d DELs after a start made %d lists", just.calls, lists)
	}
	t := b.table("The list after a node's start", fmt.Sprintf("What it costs the API server with %s other allocations in the namespace: the CPU time of DELs of nodes that have just started, each with a list, less that of nodes that were never away, %d of each, one after the other, ten of each in turns.", thousands(b.total), just.calls),
		"p50 ms", "lists", "API server, CPU ms per call")
	t.add("DEL, never away", quiet.walls.p50(), 0, quiet.cpuPerCall())
	t.add("DEL, just started", just.walls.p50(), float64(lists), just.cpuPerCall())
	t.add("a list, the difference", just.walls.p50()-quiet.walls.p50(), 1, just.cpuPerCall()-quiet.cpuPerCall())
	b.say("a list: %.0f ms, %.0f ms of the API server's CPU", just.walls.p50()-quiet.walls.p50(), just.cpuPerCall()-quiet.cpuPerCall())
	return nil
}

// bootTogether is how many processes run at once: more spend the four seconds that a DEL has for its
// list on waiting for two cores. On a cluster, the ten nodes have their own.
const bootTogether = 30

// turnOver measures the end of all that the hosts run and as many new ADDs, and returns how many DELs
// did not wait for the API server. Those are carried out behind what is measured.
func (b *bench) turnOver(pool string, hosts []*host, running, fresh []string) (c cost, owed int, err error) {
	if err := b.calm(); err != nil {
		return c, 0, err
	}
	c, err = b.costOf(bootTogether, 2*len(fresh), func(i int) (sample, error) {
		h := hosts[i/2%hostCount]
		if i%2 == 0 {
			return h.call("DEL", running[i/2], "")
		}
		return h.call("ADD", fresh[i/2], "")
	})
	if err != nil {
		return c, 0, err
	}
	held, err := b.of(pool)
	if err != nil {
		return c, 0, err
	}
	return c, len(held) - len(fresh), b.settleAll(pool, hosts, fresh) // else the next turn pays for it
}

// settleAll makes calls on each node until all releases that are owed are carried out, and checks who
// holds addresses then. The first of the containers are those of the nodes, in turns.
func (b *bench) settleAll(pool string, hosts []*host, containers []string) error {
	if err := b.until("nothing is owed", func() (bool, error) {
		held, err := b.of(pool)
		if err != nil || len(held) <= len(containers) {
			return err == nil, err
		}
		for i, h := range hosts {
			if _, err := h.call("CHECK", containers[i], ""); err != nil {
				return false, err
			}
		}
		return false, nil
	}); err != nil {
		return err
	}
	return b.holds(containers, pool)
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
		"Found: until an ADD succeeds that is tried again and again after an address was given back, on the same node for blocks and on another one for the pool without. It is given back as soon as the node that looks has found the pool full by a list, which it believes for ten seconds: it never takes longer.", waiting, block*hostCount, thousands(b.total), rounds),
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
		if err := hosts[p.finder].proveFull(waiters[p.finder]); err != nil {
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

// proveFull makes ADDs until one has found by a list that the pool is full, rather than because the
// node knew: that is where a node's belief begins.
func (h *host) proveFull(container string) error {
	return h.b.until("an ADD has listed the pool", func() (bool, error) {
		before, err := h.b.requests()
		if err != nil {
			return false, err
		}
		if _, err := h.refused(container); err != nil {
			return false, err
		}
		after, err := h.b.scrape()
		return err == nil && after.since(before).sum("LIST", "ipallocations") > 0, err
	})
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

// of returns the allocations of a pool, without those that it was filled with.
func (b *bench) of(pool string) ([]v1alpha1.IPAllocation, error) {
	list, err := b.ipam.IPAllocations(namespace).List(b.ctx, metav1.ListOptions{LabelSelector: v1alpha1.LabelPool + "=" + pool + "," + v1alpha1.LabelNode + "!=" + filler})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// holds checks that these containers, and no others, hold an address of the pools: one each.
func (b *bench) holds(containers []string, pools ...string) error {
	var got []string
	for _, pool := range pools {
		held, err := b.of(pool)
		if err != nil {
			return err
		}
		for i := range held {
			got = append(got, held[i].Spec.ContainerID)
		}
	}
	want := slices.Sorted(slices.Values(containers))
	slices.Sort(got)
	if !slices.Equal(got, want) {
		return fmt.Errorf("%d addresses of pools %v are held, and not one by each of the %d containers of which the ADD succeeded", len(got), pools, len(want))
	}
	return nil
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
