// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package whereabouts

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/crd-ipam/crd-ipam/pkg/controller"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// life is who answers on which address. An address is somebody's from the end of its ADD
// to the beginning of its DEL.
type life struct {
	mu    sync.Mutex
	by    map[string]string // pod by address
	adds  map[string]int    // that succeeded, by plugin
	twice []string
}

func (l *life) begins(pod, plugin string, addresses []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.adds[plugin]++
	for _, a := range addresses {
		if other := l.by[a]; other != "" {
			l.twice = append(l.twice, fmt.Sprintf("%s gave %s to %s, and %s has it", plugin, a, pod, other))
		}
		l.by[a] = pod
	}
}

func (l *life) ends(addresses []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range addresses {
		delete(l.by, a)
	}
}

func (l *life) count(plugin string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.adds[plugin]
}

// Pods start and end on two networks whose ranges overlap, while one network after the
// other is switched: no address is ever given twice, by whichever plugin.
func TestBesideEachOther(t *testing.T) {
	c := newCluster(t)
	nodes := []string{"node-a", "node-b"}
	for _, n := range nodes {
		c.Node(t, n, nil)
	}
	networks := []string{"one", "two"}
	c.network(t, "one", `{"type":"whereabouts","range":"10.8.0.0/26"}`)
	c.network(t, "two", `{"type":"whereabouts","range":"10.8.0.0/25"}`)
	c.RunController(t.Context(), t, rig.ControllerClients(t, env.Config, nil), controller.Options{})

	l := &life{by: map[string]string{}, adds: map[string]int{}}
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for i, node := range nodes {
		all.Go(func() { c.churn(ctx, t, l, i, node, networks) })
	}
	t.Cleanup(func() { stop(); all.Wait() })
	await := func(plugin string, more int) {
		t.Helper()
		n := l.count(plugin) + more
		rig.Eventually(t, fmt.Sprintf("%d ADDs of %s", n, plugin), func() bool { return l.count(plugin) >= n })
	}

	const settle = "--settle=21s" // longer than churn lets an ADD take
	await("whereabouts", 12)
	c.applyPools(t, settle)
	_, _ = c.tryMigrate(t, "apply", settle) // pods come and go: a conflict now is none later
	c.patchNetworks(t, "one")
	await("whereabouts", 4) // still gives in network two
	if out := c.migrate(t, "pools", "--settle=1ns"); out != "" {
		t.Errorf("a pool is enabled while whereabouts gives in the other range:\n%s", out)
	}
	c.patchNetworks(t, "two")
	rig.Until(t, func() string { // until what was under way is over, and claimed
		if out, err := c.tryMigrate(t, "apply", settle); err != nil {
			return out + err.Error()
		}
		c.applyPools(t, settle)
		if d := c.disabled(t); len(d) > 0 {
			return fmt.Sprintf("still disabled: %q", d)
		}
		return ""
	})
	await("nv-ipam", 30)
	stop()
	all.Wait()
	for _, text := range l.twice {
		t.Error(text)
	}
	t.Logf("ADDs %v, %d pods live", l.adds, len(l.by))
}

// churn starts and ends pods on a node.
func (c *cluster) churn(ctx context.Context, t *testing.T, l *life, seed int, node string, networks []string) {
	random := rand.New(rand.NewPCG(uint64(seed), 1))
	type pod struct {
		attachment
		addresses []string
		config    string
	}
	var live []pod
	for n := 0; ctx.Err() == nil; n++ {
		if len(live) > 12 || len(live) > 3 && random.IntN(3) == 0 {
			i := random.IntN(len(live))
			p := live[i]
			live = append(live[:i], live[i+1:]...)
			l.ends(p.addresses)
			// multus has cached the configuration of the ADD, or has lost it.
			var err error
			if random.IntN(2) == 0 {
				_, _, err = c.callWith(ctx, t, "DEL", p.attachment, p.config)
			} else {
				_, _, err = c.call(ctx, t, "DEL", p.attachment)
			}
			if err != nil && ctx.Err() == nil {
				t.Errorf("DEL of %s: %v", p.pod, err)
			}
			_, _ = env.Kubectl(ctx, "-n", c.NS, "delete", "pod", p.pod, "--grace-period=0", "--force") // it may end early with the test
			continue
		}
		name := fmt.Sprintf("%s-%d", node, n)
		a := attachment{networks[random.IntN(len(networks))], node, name, "c-" + name}
		rig.Pod(t, c.Kube, c.NS, name, node)
		config, err := c.configOf(ctx, a.network)
		if err != nil {
			continue // the test ends
		}
		timed, cancel := context.WithTimeout(ctx, 20*time.Second)
		addresses, plugin, err := c.callWith(timed, t, "ADD", a, config)
		cancel()
		if err != nil {
			continue // a pool that is disabled: the kubelet tries again
		}
		l.begins(name, plugin, addresses)
		live = append(live, pod{a, addresses, config})
	}
}
