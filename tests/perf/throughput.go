// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// scenario is a way in which many calls come at once.
type scenario struct {
	name string
	// hosts call in turns; call i is the business of host i modulo their number.
	hosts []*host
	// static makes call i ask for the i-th address of the block.
	static bool
}

// throughput makes many calls at once.
func (b *bench) throughput() error {
	scenarios, err := b.scenarios()
	if err != nil {
		return err
	}
	t := b.table("Many at once", fmt.Sprintf("ADDs per second, and the p50 and p99 of a single one, with so many processes at a time, %d ADDs for each line, run once. The floor is measured once, before the lines beside which it stands. Targets compare two such lines, so they vary from run to run. "+
		"The shared block is one that all ten nodes believe to be theirs, which no controller would do: the worst case of collisions.", b.at),
		"at once", "ADDs/s", "× floor", "p50 ms", "p99 ms", "requests per ADD")
	perSecond := map[string]float64{}
	for _, c := range []int{1, 10, 30, 100} {
		floor := b.floorVariant()
		base, err := b.costOf(c, b.at, floor.call)
		if err != nil {
			return err
		}
		t.add("floor", float64(c), base.perSecond(), 1, base.walls.p50(), base.walls.p99(), 1)
		for _, s := range scenarios {
			of, err := b.runScenario(s, c)
			if err != nil {
				return fmt.Errorf("%s, %d at once: %w", s.name, c, err)
			}
			perSecond[fmt.Sprint(s.name, c)] = of.perSecond()
			t.add(s.name, float64(c), of.perSecond(), of.perSecond()/base.perSecond(), of.walls.p50(), of.walls.p99(), of.perCall(of.sum("", "")))
			b.say("%s, %d at once: %.0f/s", s.name, c, of.perSecond())
		}
	}
	for _, s := range scenarios {
		b.targetAtLeast("ADDs/s at 100 at once to those at 30, one run of each: "+s.name, perSecond[s.name+"100"]/perSecond[s.name+"30"], 0.9, " ×")
	}
	return nil
}

func (b *bench) scenarios() ([]scenario, error) {
	const each = 2000 // addresses in a block: more than are claimed
	for i := range hostCount {
		if err := b.pool(fmt.Sprintf("separate-%d", i), blocksOf(fmt.Sprintf("10.%d.0.0/16", 10+i), each), hostNames(hostCount)); err != nil {
			return nil, err
		}
	}
	if err := b.sharedPool("shared", blocksOf("10.30.0.0/16", each)); err != nil {
		return nil, err
	}
	if err := b.pool("static", blocksOf("10.31.0.0/16", each), hostNames(hostCount)); err != nil {
		return nil, err
	}
	// hosts returns n nodes, with one pool each or all of them with the same.
	hosts := func(disk string, n int, pool func(i int) string) ([]*host, error) {
		var out []*host
		for i := range hostCount {
			h, err := b.host(i%n, disk, pool(i))
			if err != nil {
				return nil, err
			}
			out = append(out, h)
		}
		return out, nil
	}
	always := func(name string) func(int) string { return func(int) string { return name } }
	out := []scenario{{name: "one node, one block"}, {name: "one node, ten blocks"}, {name: "ten nodes, own blocks"}, {name: "ten nodes, shared block"}, {name: "ten nodes, static addresses", static: true}}
	for i, pools := range []func(int) string{
		always("separate-0"), func(i int) string { return fmt.Sprintf("separate-%d", i) },
		always("separate-0"), always("shared"), always("static"),
	} {
		n := hostCount
		if i < 2 {
			n = 1
		}
		var err error
		if out[i].hosts, err = hosts(fmt.Sprintf("scenario%d", i), n, pools); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// runScenario makes ADDs on empty blocks.
func (b *bench) runScenario(s scenario, c int) (cost, error) {
	if err := b.clear(); err != nil {
		return cost{}, err
	}
	for _, h := range s.hosts {
		if err := h.warmUp(); err != nil {
			return cost{}, err
		}
	}
	containers := b.attached(b.at)
	base := netip.MustParseAddr("10.31.1.0")
	of, err := b.costOf(c, b.at, func(i int) (sample, error) {
		args := ""
		if s.static {
			a := base.As4()
			args = "IP=" + netip.AddrFrom4([4]byte{a[0], a[1], a[2] + byte(i>>8), byte(i)}).String()
		}
		return s.hosts[i%len(s.hosts)].call("ADD", containers[i], args)
	})
	if err != nil {
		return of, err
	}
	var pools []string
	for _, h := range s.hosts {
		if !slices.Contains(pools, h.pool) {
			pools = append(pools, h.pool)
		}
	}
	return of, b.holds(containers, pools...)
}

// clear takes back all addresses, on the server and on all disks.
func (b *bench) clear() error {
	if err := b.wipe(allocationKey(namespace, "")); err != nil {
		return err
	}
	disks, err := filepath.Glob(filepath.Join(b.env.Dir, "hosts", "*", "data"))
	if err != nil {
		return err
	}
	for _, dir := range disks {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// burst gives a thousand addresses, all there are, to a thousand attachments on
// ten nodes.
func (b *bench) burst() error {
	const all = 1000
	if err := b.clear(); err != nil {
		return err
	}
	if err := b.pool("burst", v1alpha1.IPPoolSpec{Subnet: "10.40.0.0/22", PerNodeBlockSize: all / hostCount}, hostNames(hostCount)); err != nil {
		return err
	}
	hosts, err := b.oneEach("burst", "burst")
	if err != nil {
		return err
	}
	containers := b.attached(all)
	c, err := b.costOf(100, all, func(i int) (sample, error) { return hosts[i%hostCount].call("ADD", containers[i], "") })
	if err != nil {
		return err
	}
	if err := b.holds(containers, "burst"); err != nil {
		return err
	}
	t := b.table("The burst", "1,000 attachments on ten nodes, 100 processes at a time, 1,000 addresses in all, so that each node ends with its block full. Nodes that have never called before.",
		"seconds", "ADDs/s", "p50 ms", "p99 ms", "requests per ADD", "writes per ADD")
	t.add("1,000 ADDs", c.elapsed.Seconds(), c.perSecond(), c.walls.p50(), c.walls.p99(), c.perCall(c.sum("", "")), c.perCall(c.writes("")))
	b.say("burst: %.1f s", c.elapsed.Seconds())
	return nil
}

// oneEach returns every node with the same pool.
func (b *bench) oneEach(disk, pool string) ([]*host, error) {
	var out []*host
	for i := range hostCount {
		h, err := b.host(i, disk, pool)
		if err != nil {
			return nil, err
		}
		out = append(out, h)
	}
	return out, nil
}

// restart gives back all addresses of a node and claims as many at the same
// time, as when it is restarted.
func (b *bench) restart() error {
	const pods = 250
	const together = 100 // more take longer to start, on two slow cores, than a call has
	if err := b.clear(); err != nil {
		return err
	}
	if err := b.pool("restart", v1alpha1.IPPoolSpec{Subnet: "10.50.0.0/22", PerNodeBlockSize: 2*pods + 10, Gateway: "10.50.0.1"}, hostNames(1)); err != nil {
		return err
	}
	h, err := b.host(0, "restart", "restart")
	if err != nil {
		return err
	}
	if err := h.warmUp(); err != nil {
		return err
	}
	old, fresh := b.attached(pods), b.attached(pods)
	if _, _, err := atOnce(30, pods, func(i int) (sample, error) { return h.call("ADD", old[i], "") }); err != nil {
		return err
	}
	dels, adds := make(times, pods), make(times, pods)
	c, err := b.costOf(together, 2*pods, func(i int) (s sample, err error) {
		if i%2 == 0 {
			s, err = h.call("DEL", old[i/2], "")
			dels[i/2] = s.wall
		} else {
			s, err = h.call("ADD", fresh[i/2], "")
			adds[i/2] = s.wall
		}
		return s, err
	})
	if err != nil {
		return err
	}
	held, err := b.count()
	if err != nil {
		return err
	}
	if err := h.settle(fresh[0], pods); err != nil {
		return err
	}
	if err := b.holds(fresh, "restart"); err != nil {
		return err
	}
	t := b.table("A node's restart", fmt.Sprintf("%d DELs and as many ADDs on one node, %d processes at a time. Owed: DELs that did not wait for the API server; the node's next calls carry them out, which was checked.", pods, together), "seconds", "calls/s", "p50 ms", "p99 ms", "longest ms", "requests per call", "owed")
	for _, part := range []struct {
		name  string
		walls times
	}{{"DEL", dels}, {"ADD", adds}} {
		t.add(part.name, none, none, part.walls.p50(), part.walls.p99(), float64(slices.Max(part.walls).Milliseconds()), none, none)
	}
	t.add("all", c.elapsed.Seconds(), c.perSecond(), none, none, none, c.perCall(c.sum("", "")), float64(held-pods))
	b.say("restart: %.1f s, %d owed", c.elapsed.Seconds(), held-pods)
	return nil
}

// settle makes calls on a node, of which each carries out some of the releases
// that are owed, until it holds no more than it should.
func (h *host) settle(container string, want int) error {
	return h.b.until(fmt.Sprintf("%d addresses are held", want), func() (bool, error) {
		if _, err := h.call("CHECK", container, ""); err != nil {
			return false, err
		}
		held, err := h.b.count()
		if err == nil && held < want {
			err = fmt.Errorf("%d addresses are held", held)
		}
		return held == want, err
	})
}
