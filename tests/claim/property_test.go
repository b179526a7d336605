// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/crd-ipam/crd-ipam/pkg/claim"
)

// world is several nodes that share a pool, and what their runtimes believe.
type world struct {
	t       *testing.T
	cluster *cluster
	nodes   []*node

	next    int                   // number of the next pod
	running map[string]runningPod // pods whose ADD succeeded, by name
	owner   map[string]string     // who was told to have which address
	failed  map[string]*node      // pods whose ADD failed or whose process died: DEL is due
}

type runningPod struct {
	on   *node
	addr string
}

// TestHistories drives random histories of ADD, DEL, CHECK, crashes, lost hints
// and lost answers over several nodes and wants two things of every one: an
// address has one owner, and what was released is free.
func TestHistories(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t)
		rt.Repeat(map[string]func(*rapid.T){
			"add":        func(rt *rapid.T) { w.add(rt, "") },
			"add static": func(rt *rapid.T) { w.add(rt, fmt.Sprint("10.0.0.", rapid.IntRange(1, 12).Draw(rt, "host"))) },
			"add, losing a message": func(rt *rapid.T) {
				w.disturb(rt, rapid.SampledFrom([]loss{request, response}).Draw(rt, "lost"))
				w.add(rt, "")
			},
			"add, killed": func(rt *rapid.T) {
				w.disturb(rt, rapid.SampledFrom([]loss{killedBefore, killedAfter}).Draw(rt, "killed"))
				w.add(rt, rapid.SampledFrom([]string{"", "10.0.0.3", "10.0.0.7"}).Draw(rt, "requested"))
			},
			"del": func(rt *rapid.T) { w.del(rt) },
			"del, losing a message": func(rt *rapid.T) {
				w.disturb(rt, rapid.SampledFrom([]loss{request, response}).Draw(rt, "lost"))
				w.del(rt)
			},
			"del, killed": func(rt *rapid.T) {
				w.disturb(rt, rapid.SampledFrom([]loss{killedBefore, killedAfter}).Draw(rt, "killed"))
				w.del(rt)
			},
			"CHECK":                    func(rt *rapid.T) { w.checkVerb(rt) },
			"clean up after a failure": func(rt *rapid.T) { w.cleanUp(rt) },
			"lose a hint":              func(rt *rapid.T) { w.pick(rt).loseHint(w.t) },
			"":                         w.check,
		})
		w.end(rt)
	})
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, cluster: newCluster(t, 4, "a", "b", "c"), running: map[string]runningPod{}, owner: map[string]string{}, failed: map[string]*node{}}
	for _, name := range []string{"a", "b", "c"} {
		w.nodes = append(w.nodes, newNode(t, w.cluster.ns, name))
	}
	return w
}

func (w *world) pick(rt *rapid.T) *node { return rapid.SampledFrom(w.nodes).Draw(rt, "node") }

// disturb makes one of the next requests of every node end badly.
func (w *world) disturb(rt *rapid.T, what loss) {
	nth := rapid.IntRange(1, 3).Draw(rt, "nth request")
	for _, n := range w.nodes {
		seen := 0
		n.wire.setLose(func(*http.Request) loss {
			if seen++; seen == nth {
				return what
			}
			return nothing
		})
	}
}

func (w *world) undisturb() {
	for _, n := range w.nodes {
		n.wire.setLose(nil)
	}
}

// process runs f as a process of the plugin on n, which may be killed, and
// reports whether it lived.
func process(n *node, f func()) (lived bool) {
	n.restart()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
		lived = true
	}()
	<-done
	return lived
}

func (w *world) add(rt *rapid.T, requested string) {
	defer w.undisturb()
	n := w.pick(rt)
	w.next++
	name := fmt.Sprint("pod", w.next)
	var statics, got []string
	if requested != "" {
		statics = []string{requested}
	}
	var err error
	if !process(n, func() { got, err = n.add(w.t.Context(), name, ippool("p"), statics...) }) || err != nil {
		w.failed[name] = n
		return
	}
	if other, ok := w.owner[got[0]]; ok {
		rt.Fatalf("%s was given to %s while %s has it", got[0], name, other)
	}
	if requested != "" && got[0] != requested {
		rt.Fatalf("%s asked for %s and got %s", name, requested, got[0])
	}
	w.owner[got[0]] = name
	w.running[name] = runningPod{on: n, addr: got[0]}
}

func (w *world) del(rt *rapid.T) {
	defer w.undisturb()
	if len(w.running) == 0 {
		rt.Skip("no pod runs")
	}
	name := rapid.SampledFrom(slices.Sorted(maps.Keys(w.running))).Draw(rt, "pod")
	p := w.running[name]
	delete(w.running, name)
	delete(w.owner, p.addr)
	var err error
	if !process(p.on, func() { err = p.on.Release(w.t.Context(), pod(name)) }) || err != nil {
		w.failed[name] = p.on // a runtime asks again
	}
}

// checkVerb is the CHECK that a runtime sends for a pod that runs.
func (w *world) checkVerb(rt *rapid.T) {
	if len(w.running) == 0 {
		rt.Skip("no pod runs")
	}
	name := rapid.SampledFrom(slices.Sorted(maps.Keys(w.running))).Draw(rt, "pod")
	n := w.running[name].on
	if err := n.Check(w.t.Context(), pod(name), ippool("p")); err != nil {
		rt.Fatalf("CHECK of %s: %v", name, err)
	}
	if err := n.Check(w.t.Context(), pod("never-added"), ippool("p")); !errors.Is(err, claim.ErrNotHeld) {
		rt.Fatalf("CHECK of a pod that never was: %v", err)
	}
}

// cleanUp is the DEL that a runtime sends after an ADD or a DEL that failed.
func (w *world) cleanUp(rt *rapid.T) {
	if len(w.failed) == 0 {
		rt.Skip("nothing failed")
	}
	name := rapid.SampledFrom(slices.Sorted(maps.Keys(w.failed))).Draw(rt, "pod")
	n := w.failed[name]
	if !process(n, func() { n.mustDel(w.t, name) }) {
		rt.Fatalf("DEL of %s did not end", name)
	}
	delete(w.failed, name)
}

// check wants every running pod to be the one holder of its address.
func (w *world) check(rt *rapid.T) {
	for name, p := range w.running {
		a, err := w.cluster.client.IPAllocations(w.cluster.ns).Get(w.t.Context(), "p."+p.addr, metav1.GetOptions{})
		if err != nil {
			rt.Fatalf("%s runs with %s, of which the API server says: %v", name, p.addr, err)
		}
		if a.Spec.ContainerID != pod(name).ContainerID || a.Spec.NodeName != p.on.Node {
			rt.Fatalf("%s runs with %s, which is held by %+v", name, p.addr, a.Spec)
		}
	}
}

// end deletes every pod, as a runtime would, and wants nothing to be held.
func (w *world) end(rt *rapid.T) {
	w.undisturb()
	for name, p := range w.running {
		p.on.restart()
		p.on.mustDel(w.t, name)
	}
	for name, n := range w.failed {
		n.restart()
		n.mustDel(w.t, name)
	}
	list, err := w.cluster.client.IPAllocations(w.cluster.ns).List(w.t.Context(), metav1.ListOptions{})
	if err != nil {
		rt.Fatal(err)
	}
	for _, a := range list.Items {
		rt.Errorf("%s leaked: %+v", a.Spec.Address, a.Spec)
	}
	for _, n := range w.nodes {
		debts, err := claim.NewHint(n.dir).Debts()
		// One without a UID is kept for a while: its create may still be carried out.
		debts = slices.DeleteFunc(debts, func(held claim.Held) bool { return held.UID == "" })
		if err != nil || len(debts) > 0 {
			rt.Errorf("node %s still owes %v, %v", n.Node, debts, err)
		}
	}
}

// kill ends the process that makes a request: nothing after it is carried out.
func kill() { runtime.Goexit() }
