// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"pgregory.net/rapid"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/claim"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// world is a cluster in the small, and the model of it: which container is live
// with which address. Nodes share a pool; kubelets, runtimes and users act at
// random; controllers come and go; messages are lost, and some arrive late.
type world struct {
	t       *testing.T
	cluster *cluster
	shape   shape
	pools   []string // names
	kube    kubernetes.Interface
	log     *bytes.Buffer

	nodes    []*node
	cut      map[*node]bool    // nodes that nobody hears of
	next     int               // number of the next pod
	pods     []*simPod         // that a kubelet still has to do with
	owner    map[string]string // live container of an address
	late     []*http.Request   // were sent, and have not arrived yet
	replicas []*replica        // controllers
	resting  bool              // something is released and not deleted, as holders has seen
}

// simPod is a pod, and what its kubelet knows of it.
type simPod struct {
	name    string
	uid     types.UID
	on      *node
	pool    string
	wants   string // a requested address
	sandbox int
	addr    string // while its sandbox is live
	ending  bool   // is to be deleted
	gone    bool   // its object has been deleted, though it lives
}

func (p *simPod) container() string { return fmt.Sprintf("%s-%d", p.name, p.sandbox) }

func (p *simPod) attachment() hint.Attachment {
	return hint.Attachment{ContainerID: p.container(), Interface: "net1"}
}

var nodeNames = []string{"a", "b", "c"}

// soak is split evenly between the kinds of histories.
var soak = flag.Duration("soak", 0, "go on with new histories for that long")

// soaked reports whether a kind of histories that began then has had its part.
func soaked(began time.Time) bool {
	const kinds = 4
	return time.Since(began) >= *soak/kinds
}

// tally is what all histories together came to.
var tally struct{ histories, claimed, released, lostDELs, late, faults, reboots, hints, records, cuts, controllers atomic.Int64 }

// TestHistories drives random histories and wants three things of every one: an
// address has one live container, a live container's address is its own in the
// API, and once every pod is gone nothing is held. `make soak` runs it for long.
func TestHistories(t *testing.T) {
	kube, err := kubernetes.NewForConfig(env.Config)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range nodeNames {
		if _, err := kube.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = kube.CoreV1().Nodes().Delete(context.Background(), name, metav1.DeleteOptions{}) })
	}
	if testing.Short() {
		if err := flag.Set("rapid.checks", "4"); err != nil {
			t.Fatal(err)
		}
	}
	for began := time.Now(); !t.Failed(); {
		rapid.Check(t, func(rt *rapid.T) { play(t, rt, kube) })
		if soaked(began) {
			break
		}
	}
	t.Logf("histories %d, addresses claimed %d and released %d, faulty calls %d, late messages %d, DELs lost %d, "+
		"reboots %d, hints lost %d, records lost %d, nodes cut off %d, controllers started %d",
		tally.histories.Load(), tally.claimed.Load(), tally.released.Load(), tally.faults.Load(), tally.late.Load(), tally.lostDELs.Load(),
		tally.reboots.Load(), tally.hints.Load(), tally.records.Load(), tally.cuts.Load(), tally.controllers.Load())
}

func play(t *testing.T, rt *rapid.T, kube kubernetes.Interface) {
	tally.histories.Add(1)
	w := newWorld(t, kube, rapid.SampledFrom(shapes).Draw(rt, "pools"))
	defer w.stopControllers()
	rt.Cleanup(func() {
		if rt.Failed() {
			rt.Logf("what the plugins said:\n%s", w.log)
		}
	})
	rt.Repeat(w.actions())
	w.end(rt)
}

// actions are what may happen next; some have several names, and are likelier.
func (w *world) actions() map[string]func(*rapid.T) {
	actions := map[string]func(*rapid.T){
		"CHECK":               w.checkVerb,
		"GC":                  w.gc,
		"lose a hint":         w.loseHint,
		"reboot":              w.reboot,
		"lose the record":     w.loseRecord,
		"cut a node off":      w.cutOff,
		"clock":               func(*rapid.T) { w.nextSecond() },
		"controller starts":   w.startController,
		"controller killed":   w.killController,
		"controller's caches": w.toggleLag,
		"same ADD again":      w.sameAddAgain,
		"":                    w.check,
	}
	for i := range 4 {
		actions[fmt.Sprint("run a pod ", i)] = w.runPod
		actions[fmt.Sprint("try again ", i)] = w.tryAgain
	}
	for i := range 2 {
		actions[fmt.Sprint("delete a pod ", i)] = w.deletePod
		actions[fmt.Sprint("late message ", i)] = w.arrive
		actions[fmt.Sprint("reconnect a node ", i)] = w.reconnect
	}
	return actions
}

// shape is the pools that the nodes share; all have one domain, "p".
type shape map[string]v1alpha1.IPPoolSpec

// shapes have some 14 addresses each, for three nodes.
var shapes = []shape{
	{"p": {Subnet: "10.0.0.0/24", PerNodeBlockSize: 4}},
	{"p": {Subnet: "10.0.0.0/28"}},
	{"p": {Subnet: "10.0.0.0/28", PerNodeBlockSize: 3, Overflow: v1alpha1.OverflowSubnet}},
	{"p": {Subnet: "10.0.0.0/28"}, "q": {Subnet: "10.0.0.0/24", PerNodeBlockSize: 4, PoolAccess: v1alpha1.PoolAccess{Domain: "p"}}},
	{"p": {Subnet: "10.0.0.0/24", PerNodeBlockSize: 4, PoolAccess: rests}},
	{"p": {Subnet: "10.0.0.0/28", PoolAccess: rests}},
}

// rests is for addresses that rest after their release, sometimes until the next call.
var rests = v1alpha1.PoolAccess{ReleaseCooldown: &metav1.Duration{Duration: time.Second}}

// make creates the pools, and returns their names.
func (s shape) make(t *testing.T, c *cluster, nodes ...string) []string {
	t.Helper()
	names := slices.Sorted(maps.Keys(s))
	for _, name := range names {
		rig.IPPool(t, c.client, c.ns, name, s[name], nodes...)
	}
	return names
}

func newWorld(t *testing.T, kube kubernetes.Interface, pools shape) *world {
	w := &world{
		t: t, kube: kube, log: &bytes.Buffer{}, cluster: emptyCluster(t),
		owner: map[string]string{}, cut: map[*node]bool{},
	}
	w.shape, w.pools = pools, pools.make(t, w.cluster, nodeNames...)
	for _, name := range nodeNames {
		n := newNode(t, w.cluster.ns, name)
		n.Log = slog.New(slog.NewTextHandler(w.log, nil)).With("node", name)
		w.nodes = append(w.nodes, n)
	}
	return w
}

func (w *world) pick(rt *rapid.T) *node { return rapid.SampledFrom(w.nodes).Draw(rt, "node") }

// pod draws a pod of some kind; the action does not apply where there is none.
func (w *world) pod(rt *rapid.T, kind func(*simPod) bool) *simPod {
	found := slices.DeleteFunc(slices.Clone(w.pods), func(p *simPod) bool { return !kind(p) })
	if len(found) == 0 {
		rt.Skip("no such pod")
	}
	return rapid.SampledFrom(found).Draw(rt, "pod")
}

func live(p *simPod) bool { return p.addr != "" }
func dead(p *simPod) bool { return p.addr == "" }

// delayed is one more way to lose a request: the connection is dead from then on,
// the client gives up, and much later the server gets what was sent.
const delayed = killedAfter + 1

// process runs f as a process of the plugin on n, one of whose first requests
// may end badly. It reports whether the process lived.
func (w *world) process(rt *rapid.T, n *node, f func(ctx context.Context) error) (err error, lived bool) {
	what := rapid.SampledFrom([]loss{nothing, nothing, nothing, request, response, half, killedBefore, killedAfter, delayed}).Draw(rt, "fault")
	nth := 0
	if what != nothing {
		tally.faults.Add(1)
		nth = rapid.IntRange(1, 3).Draw(rt, "nth request")
	}
	limit := 20 * time.Second
	if w.cut[n] || what == delayed { // it would fail all the same
		limit = 200 * time.Millisecond
	}
	return w.runProcess(n, limit, w.fault(n, what, nth), f)
}

func (w *world) fault(n *node, what loss, nth int) func(*http.Request) loss {
	seen := 0
	return func(req *http.Request) loss {
		seen++
		switch {
		case w.cut[n] || what == delayed && seen > nth:
			return request
		case seen != nth:
			return nothing
		case what == delayed:
			w.late = append(w.late, again(req))
			return request
		}
		return what
	}
}

// runProcess runs f as a process of the plugin on n with these faults and no
// others.
func (w *world) runProcess(n *node, limit time.Duration, faults func(*http.Request) loss, f func(ctx context.Context) error) (err error, lived bool) {
	n.restart()
	n.wire.setLose(faults)
	defer n.wire.setLose(nil)
	ctx, cancel := context.WithTimeout(w.t.Context(), limit)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		err = f(ctx)
		lived = true
	}()
	<-done
	return err, lived
}

// again is a copy of a request, to be sent another time.
func again(req *http.Request) *http.Request {
	c := req.Clone(context.Background())
	if req.GetBody != nil {
		c.Body, _ = req.GetBody() // of a buffer: cannot fail
	}
	return c
}

func (w *world) runPod(rt *rapid.T) {
	n, wants := w.pick(rt), ""
	if rapid.IntRange(0, 3).Draw(rt, "requests an address") == 0 {
		wants = fmt.Sprint("10.0.0.", rapid.IntRange(1, 12).Draw(rt, "host"))
	}
	w.runPodOn(rt, n, wants)
}

func (w *world) runPodOn(rt *rapid.T, n *node, wants string) {
	w.next++
	p := &simPod{name: fmt.Sprint("pod", w.next), on: n, pool: rapid.SampledFrom(w.pools).Draw(rt, "pool"), wants: wants}
	obj, err := w.kube.CoreV1().Pods(w.cluster.ns).Create(w.t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: p.name},
		Spec:       corev1.PodSpec{NodeName: n.Ledger.Node, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		rt.Fatal(err)
	}
	p.uid = obj.UID
	w.pods = append(w.pods, p)
	p.sandbox = 1
	w.add(rt, p)
}

func (w *world) add(rt *rapid.T, p *simPod) {
	req := claim.Request{
		Attachment: p.attachment(), Pools: ippool(p.pool), Network: "net",
		Pod: v1alpha1.PodReference{Namespace: w.cluster.ns, Name: p.name, UID: p.uid},
	}
	if p.wants != "" {
		req.Want.Addresses = []netip.Addr{netip.MustParseAddr(p.wants)}
	}
	var claims []claim.Claim
	err, lived := w.process(rt, p.on, func(ctx context.Context) (err error) {
		claims, err = p.on.Allocate(ctx, req)
		return err
	})
	if err != nil || !lived {
		return
	}
	p.addr = claims[0].Address.String()
	if other, ok := w.owner[p.addr]; ok {
		rt.Fatalf("%s was given to %s while %s answers on it", p.addr, p.container(), other)
	}
	if p.wants != "" && p.addr != p.wants {
		rt.Fatalf("%s asked for %s and got %s", p.name, p.wants, p.addr)
	}
	w.owner[p.addr] = p.container()
	tally.claimed.Add(1)
}

// del is the DEL of a pod's sandbox. It reports whether the runtime believes it.
func (w *world) del(rt *rapid.T, p *simPod) bool {
	err, lived := w.process(rt, p.on, func(ctx context.Context) error { return p.on.Release(ctx, p.attachment()) })
	if err != nil || !lived {
		return false
	}
	tally.released.Add(1)
	return true
}

// tryAgain is what a kubelet does with a pod without a live sandbox.
func (w *world) tryAgain(rt *rapid.T) {
	p := w.pod(rt, dead)
	if !w.del(rt, p) {
		return
	}
	if p.ending {
		w.forget(rt, p)
		return
	}
	p.sandbox++
	w.add(rt, p)
}

// sameAddAgain is not what containerd does, but a runtime may.
func (w *world) sameAddAgain(rt *rapid.T) {
	w.add(rt, w.pod(rt, func(p *simPod) bool { return dead(p) && !p.ending }))
}

func (w *world) deletePod(rt *rapid.T) {
	p := w.pod(rt, func(p *simPod) bool { return live(p) && !w.cut[p.on] })
	w.kill(p)
	p.ending = true
	if rapid.IntRange(0, 3).Draw(rt, "DEL is lost") == 0 {
		tally.lostDELs.Add(1)
		w.forget(rt, p)
	} else if w.del(rt, p) {
		w.forget(rt, p)
	}
}

// kill ends a pod's sandbox.
func (w *world) kill(p *simPod) {
	delete(w.owner, p.addr)
	p.addr = ""
}

// forget is a pod of which nothing is left on its node.
func (w *world) forget(rt *rapid.T, p *simPod) {
	if !p.gone {
		w.deleteObject(rt, p)
	}
	w.pods = slices.DeleteFunc(w.pods, func(o *simPod) bool { return o == p })
}

func (w *world) deleteObject(rt *rapid.T, p *simPod) {
	err := w.kube.CoreV1().Pods(w.cluster.ns).Delete(w.t.Context(), p.name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)})
	if err != nil && !apierrors.IsNotFound(err) {
		rt.Fatal(err)
	}
}

// checkVerb is the CHECK that a runtime sends for a pod that runs.
func (w *world) checkVerb(rt *rapid.T) {
	p := w.pod(rt, func(p *simPod) bool { return live(p) && !w.cut[p.on] })
	if err := p.on.Check(w.t.Context(), p.attachment(), ippool(p.pool)); err != nil {
		rt.Fatalf("CHECK of %s: %v", p.container(), err)
	}
	if err := p.on.Check(w.t.Context(), pod("never-added"), ippool("p")); !errors.Is(err, claim.ErrNotHeld) {
		rt.Fatalf("CHECK of a pod that never was: %v", err)
	}
}

func (w *world) gc(rt *rapid.T) {
	n := w.pick(rt)
	var valid []hint.Attachment
	for _, p := range w.pods {
		if p.on == n && live(p) {
			valid = append(valid, p.attachment())
		}
	}
	_, _ = w.process(rt, n, func(ctx context.Context) error { return n.Collect(ctx, "net", valid, time.Now().Add(time.Minute)) })
}

func (w *world) loseHint(rt *rapid.T) {
	tally.hints.Add(1)
	w.pick(rt).loseHint(w.t)
}

// loseRecord deletes the record and the pool, and makes the pool again. Before it, every
// hint is what its node holds, its installer has looked, and no create is on its way:
// whatever else a loss brings is not the model's to say. After it a node that has lost something may start a pod
// before anything else; then all installers look, and the grace is over.
func (w *world) loseRecord(rt *rapid.T) {
	if len(w.cut) > 0 {
		rt.Skip("what a node that is cut off holds is not known")
	}
	w.stopControllers()
	for len(w.late) > 0 {
		w.arrive(rt)
	}
	for _, n := range w.nodes {
		n.hint().Forget()
		if err := w.release(n, pod("never-added")); err != nil {
			rt.Fatal(err)
		}
		if err := n.Look(w.t.Context()); err != nil { // a hint that was lost knows the pool again
			rt.Fatal(err)
		}
	}
	tally.records.Add(1)
	w.cluster.loseRecord(w.t, w.shape, nodeNames...)
	if slices.ContainsFunc(w.pods, live) && rapid.Bool().Draw(rt, "an ADD finds it") {
		w.runPodOn(rt, w.pod(rt, live).on, "") // of a node that has lost something
	}
	for _, n := range w.nodes {
		look := func(ctx context.Context) error { return n.Look(ctx) }
		_, _ = w.process(rt, n, look)
		if err, _ := w.runProcess(n, 20*time.Second, nil, look); err != nil {
			rt.Fatalf("the look of %s: %v", n.Ledger.Node, err)
		}
		_ = os.Remove(n.path("lost")) // the grace
	}
}

// reboot ends all sandboxes of a node. The kubelet goes on with its pods.
func (w *world) reboot(rt *rapid.T) {
	n := w.pick(rt)
	tally.reboots.Add(1)
	for _, p := range w.pods {
		if p.on == n {
			w.kill(p)
			p.ending = p.ending || p.gone
		}
	}
}

// cutOff is a node that the rest of the cluster does not hear of any more, whose
// containers live on. Whoever does not wait deletes a pod of it by force.
func (w *world) cutOff(rt *rapid.T) {
	if len(w.cut) > 0 {
		rt.Skip("one is enough")
	}
	n := w.pick(rt)
	w.taint(rt, n, corev1.Taint{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute})
	w.cut[n] = true
	tally.cuts.Add(1)
	for _, p := range w.pods {
		if p.on == n && !p.gone && rapid.Bool().Draw(rt, "force "+p.name) {
			w.deleteObject(rt, p)
			p.gone = true
			p.ending = p.ending || dead(p)
		}
	}
}

// reconnect is such a node that is back: its kubelet stops what should not be
// there before the cluster takes the node for healthy.
func (w *world) reconnect(rt *rapid.T) {
	for n := range w.cut {
		w.heal(rt, n)
		return
	}
	rt.Skip("none is cut off")
}

func (w *world) heal(rt *rapid.T, n *node) {
	for _, p := range w.pods {
		if p.on == n && p.gone {
			w.kill(p)
			p.ending = true
		}
	}
	delete(w.cut, n)
	w.taint(rt, n)
}

func (w *world) taint(rt *rapid.T, n *node, taints ...corev1.Taint) {
	obj, err := w.kube.CoreV1().Nodes().Get(w.t.Context(), n.Ledger.Node, metav1.GetOptions{})
	if err == nil {
		obj.Spec.Taints = taints
		_, err = w.kube.CoreV1().Nodes().Update(w.t.Context(), obj, metav1.UpdateOptions{})
	}
	if err != nil {
		rt.Fatal(err)
	}
}

// arrive delivers a request that its client has given up.
func (w *world) arrive(rt *rapid.T) {
	if len(w.late) == 0 {
		rt.Skip("nothing is late")
	}
	i := rapid.IntRange(0, len(w.late)-1).Draw(rt, "which")
	req := w.late[i]
	w.late = slices.Delete(w.late, i, i+1)
	tally.late.Add(1)
	resp, err := w.nodes[0].wire.next.RoundTrip(req)
	if err != nil {
		rt.Fatal(err)
	}
	_ = resp.Body.Close()
}

// nextSecond returns when creation times, which are whole seconds, differ from
// those before.
func (*world) nextSecond() { time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second))) }

// check wants every live container to be the one holder of its address.
func (w *world) check(rt *rapid.T) {
	holders := w.holders(rt)
	for _, p := range w.pods {
		if live(p) && holders[p.addr] != p.container()+" on "+p.on.Ledger.Node {
			rt.Fatalf("%s on %s answers on %s, which is held by %q", p.container(), p.on.Ledger.Node, p.addr, holders[p.addr])
		}
	}
}

// holders are containers and nodes by address.
func (w *world) holders(rt *rapid.T) map[string]string {
	list, err := w.cluster.client.IPAllocations(w.cluster.ns).List(w.t.Context(), metav1.ListOptions{})
	if err != nil {
		rt.Fatal(err)
	}
	held := map[string]string{}
	w.resting = false
	for _, a := range list.Items {
		if !a.Spec.Held() {
			w.resting = true
			continue
		}
		held[a.Spec.Address] = a.Spec.ContainerID + " on " + a.Spec.NodeName
	}
	return held
}

// end reconnects all nodes, lets all messages arrive, deletes every pod as a
// kubelet would, and wants nothing to be held, or owed.
func (w *world) end(rt *rapid.T) {
	w.stopControllers()
	for _, n := range w.nodes {
		w.heal(rt, n)
	}
	for len(w.late) > 0 {
		w.arrive(rt)
	}
	for _, p := range slices.Clone(w.pods) {
		if err := w.release(p.on, p.attachment()); err != nil {
			rt.Fatalf("DEL of %s: %v", p.container(), err)
		}
		tally.released.Add(1)
		w.forget(rt, p)
	}
	for _, n := range w.nodes { // the next call on a node pays what it owes
		if err := w.release(n, pod("never-added")); err != nil {
			rt.Fatal(err)
		}
		// One without a UID is kept for a while: its create may still be carried out.
		left := slices.DeleteFunc(due(n.hint()), func(e hint.Entry) bool { return e.UID == "" })
		if len(left) > 0 {
			rt.Errorf("node %s has still to release %v", n.Ledger.Node, left)
		}
	}
	w.wantReclaimed(rt)
}

// release is a DEL without faults.
func (w *world) release(n *node, att hint.Attachment) error {
	err, _ := w.runProcess(n, 20*time.Second, nil, func(ctx context.Context) error { return n.Release(ctx, att) })
	return err
}

// wantReclaimed waits until a controller has taken back what is left: of lost
// DELs, and of creates that came after their DEL.
func (w *world) wantReclaimed(rt *rapid.T) {
	if len(w.holders(rt)) == 0 && !w.resting {
		return
	}
	w.run(rt, 0)
	deadline := time.Now().Add(time.Minute)
	for {
		held := w.holders(rt)
		if len(held) == 0 && !w.resting {
			return
		}
		if time.Now().After(deadline) {
			rt.Fatalf("leaked: %v", slices.Sorted(maps.Keys(held)))
		}
		time.Sleep(20 * time.Millisecond) // between two polls
	}
}

// kill ends the process that makes a request: nothing after it is carried out.
func kill() { runtime.Goexit() }
