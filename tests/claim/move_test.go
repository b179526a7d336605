// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/claim"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// migrate makes the pod that a migration starts for the machine of claim "vm.net", as KubeVirt
// does.
func (w *workload) migrate(t testing.TB, name string) *corev1.Pod {
	t.Helper()
	ref := rig.Pod(t, w.kube, w.ns, name, "", func(p *corev1.Pod) {
		p.Annotations = map[string]string{ledger.AnnotationNetworks: `[{"name": "net", "ipam-claim-reference": "vm.net"}, {"name": "net"}]`}
		p.Labels = map[string]string{"kubevirt.io/migrationJobUID": name}
	})
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ref.Namespace, Name: ref.Name, UID: ref.UID}}
}

// machine is a virtual machine that runs in a pod on a node.
type machine struct {
	*workload

	a, b *node
	pod  *corev1.Pod // on a
	addr string
}

func newMachine(t *testing.T, spec v1alpha1.IPPoolSpec) *machine {
	t.Helper()
	w := claimed(t, spec, "a", "b", "c")
	rig.IPAMClaim(t, w.rest(), w.ns, "vm.net", "net")
	m := &machine{workload: w, a: newNode(t, w.ns, "a"), b: newNode(t, w.ns, "b"), pod: w.launch(t, "source", "vm.net")}
	m.addr = m.a.mustAddPod(t, m.pod)
	return m
}

// newMove is a machine that moves from node a to a pod on node b.
func newMove(t *testing.T) (m *machine, target *corev1.Pod) {
	t.Helper()
	m = newMachine(t, blocksOf16)
	target = m.migrate(t, "target")
	m.b.mustAddPod(t, target)
	return m, target
}

// wantMoving checks who holds the machine's address, and who is next; "" stands for nobody.
func (m *machine) wantMoving(t *testing.T, holder, next string) {
	t.Helper()
	a := m.get(t, m.nameOf(t, m.addr))
	got := [2]string{}
	if a.Spec.Held() {
		got[0] = a.Spec.PodRef.Name
	}
	if a.Spec.Next != nil {
		got[1] = a.Spec.Next.PodRef.Name
	}
	if got != [2]string{holder, next} {
		t.Errorf("%s is held by %q and moves to %q, want %q and %q", m.addr, got[0], got[1], holder, next)
	}
	for key, want := range v1alpha1.AllocationLabels(&a.Spec) {
		if a.Labels[key] != want {
			t.Errorf("label %s is %q, want %q", key, a.Labels[key], want)
		}
	}
}

func (n *node) mustCheck(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	if err := n.Check(t.Context(), sandbox(pod, "net1"), ippool("p")); err != nil {
		t.Errorf("CHECK of %s: %v", pod.Name, err)
	}
}

// A machine moves there and back. Both of its pods have its address meanwhile, in five requests
// of which one is a write, and nobody else ever gets it.
func TestMigration(t *testing.T) {
	for name, spec := range keeping {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, spec)
			from, to, source := m.a, m.b, m.pod
			for round := range 3 {
				target := m.migrate(t, fmt.Sprint("target-", round))
				to.restart()
				to.wire.take()
				for range 2 { // its answer was lost
					if got := to.mustAddPod(t, target); got != m.addr {
						t.Fatalf("the target got %s, the machine has %s", got, m.addr)
					}
				}
				if got := to.wire.take(); round == 2 {
					object := "ipallocations/" + m.nameOf(t, m.addr)
					first := []string{"GET ippools/p", "GET pods/" + target.Name, "GET ipamclaims/vm.net", "GET " + object}
					if want := slices.Concat(first, []string{"PATCH " + object}, first); !slices.Equal(got, want) {
						t.Errorf("requests %q, want %q", got, want)
					}
				}
				m.wantMoving(t, source.Name, target.Name)
				from.mustCheck(t, source)
				to.mustCheck(t, target)
				from.mustDelPod(t, source, "net1")
				from.mustDelPod(t, source, "net1")
				m.wantMoving(t, target.Name, "")
				to.mustCheck(t, target)
				if got, err := newNode(t, m.ns, "a").addPod(t.Context(), m.start(t, "other", ""), "net1"); got == m.addr {
					t.Fatalf("another pod got %s, %v", got, err)
				}
				from, to, source = to, from, target
			}
			from.mustDelPod(t, source, "net1")
			m.wantMoving(t, "", "")
		})
	}
}

// The migration fails: the target leaves, and the machine stays where it is. The next one may
// follow at once.
func TestMigrationFails(t *testing.T) {
	m := newMachine(t, blocksOf16)
	for i, to := range []*node{m.b, newNode(t, m.ns, "c"), m.b} {
		target := m.migrate(t, fmt.Sprint("target-", i))
		to.mustAddPod(t, target)
		m.wantMoving(t, "source", target.Name)
		to.mustDelPod(t, target, "net1")
		to.mustDelPod(t, target, "net1")
		m.wantMoving(t, "source", "")
	}
	m.a.mustCheck(t, m.pod)
}

// At most two pods have the address. A third one is told who has it.
func TestMigrationToAThird(t *testing.T) {
	m := newMachine(t, blocksOf16)
	c := newNode(t, m.ns, "c")
	first, second := m.migrate(t, "first"), m.migrate(t, "second")
	m.b.mustAddPod(t, first)
	_, err := c.addPod(t.Context(), second, "net1")
	for _, words := range []string{"source on node a", "moves to pod " + m.ns + "/first on node b"} {
		if !errors.Is(err, claim.ErrKept) || !strings.Contains(err.Error(), words) {
			t.Errorf("%v, want %q", err, words)
		}
	}
	m.wantMoving(t, "source", "first")
	// Another sandbox of the target's pod takes the place of the one before.
	again := requestOf(first, "net1", "p")
	again.ContainerID = "later"
	if _, err := m.b.Allocate(t.Context(), again); !errors.Is(err, claim.ErrKept) { // the first one may be running still
		t.Errorf("a second sandbox at once: %v", err)
	}
	name := m.nameOf(t, m.addr)
	m.b.later(m.get(t, name).UID)
	began := fmt.Sprintf(`{"spec":{"next":{"addStartedAt":%q}}}`, time.Now().Add(-time.Hour).UTC().Format(metav1.RFC3339Micro))
	if _, err := m.client.IPAllocations(m.ns).Patch(t.Context(), name, types.MergePatchType, []byte(began), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	m.b.restart()
	if _, err := m.b.Allocate(t.Context(), again); err != nil {
		t.Errorf("a later sandbox: %v", err)
	}
	if next := m.get(t, name).Spec.Next; next == nil || next.ContainerID != "later" {
		t.Errorf("next is %+v", next)
	}
	m.b.mustDelPod(t, first, "net1") // of the first sandbox, which comes late
	m.wantMoving(t, "source", "first")
	if err := m.b.Release(t.Context(), again.Attachment); err != nil {
		t.Fatal(err)
	}
	m.wantMoving(t, "source", "")
	if got := c.mustAddPod(t, second); got != m.addr {
		t.Errorf("got %s", got)
	}
}

// What cannot move is told why, and nothing changes.
func TestMigrationRefused(t *testing.T) {
	m := newMachine(t, blocksOf16)
	before := m.get(t, m.nameOf(t, m.addr)).ResourceVersion
	if _, err := m.a.addPod(t.Context(), m.migrate(t, "same-node"), "net1"); !errors.Is(err, claim.ErrKept) {
		t.Errorf("on the source's node: %v", err)
	}
	if _, err := m.b.addPod(t.Context(), m.launch(t, "no-migration", "vm.net"), "net1"); !errors.Is(err, claim.ErrKept) {
		t.Errorf("a second pod of the claim: %v", err)
	}
	if now := m.get(t, m.nameOf(t, m.addr)).ResourceVersion; now != before {
		t.Error("the allocation was changed")
	}
	m.a.mustDelPod(t, m.pod, "net1")
	m.free(t, "p", m.addr)
	for range 2 { // once with a proposal of somebody's
		if _, err := m.b.addPod(t.Context(), m.migrate(t, "from-nothing"), "net1"); !isRequestError(err) || !strings.Contains(err.Error(), m.ns+"/vm.net") {
			t.Errorf("a machine without an address: %v", err)
		}
		if held := len(m.all(t)); held > 1 {
			t.Errorf("%d allocations", held)
		}
		_ = m.kube.CoreV1().Pods(m.ns).Delete(t.Context(), "from-nothing", metav1.DeleteOptions{GracePeriodSeconds: new(int64)})
		n := newNode(t, m.ns, "c")
		n.wire.setLose(func(req *http.Request) loss {
			if req.Method == http.MethodPatch {
				return request
			}
			return nothing
		})
		if _, err := n.addPod(shortly(t), m.launch(t, fmt.Sprint("killed-", time.Now().UnixNano()), "vm.net"), "net1"); err == nil {
			t.Fatal("a takeover without a request")
		}
	}
}

// The CRD is of an earlier version: its API server drops the field, and says that all is well.
func TestMigrationWithAnEarlierCRD(t *testing.T) {
	m := newMachine(t, blocksOf16)
	now := m.get(t, m.nameOf(t, m.addr))
	now.APIVersion, now.Kind = v1alpha1.GroupVersion.String(), "IPAllocation"
	data, err := json.Marshal(now)
	if err != nil {
		t.Fatal(err)
	}
	m.b.wire.setAnswer(func(req *http.Request) *page {
		if req.Method != http.MethodPatch {
			return nil
		}
		return &page{http.StatusOK, "application/json", string(data)}
	})
	if _, err := m.b.addPod(t.Context(), m.migrate(t, "target"), "net1"); err == nil || !strings.Contains(err.Error(), "apply the CRD of IPAllocations of this version") {
		t.Error(err)
	}
	m.wantMoving(t, "source", "")
}

// Both pods end at once, or one while the other's ADD runs: the address is kept for the
// claim, and nobody's, whatever the order.
func TestMigrationEndsAtOnce(t *testing.T) {
	m := newMachine(t, blocksOf16)
	for round := range 30 {
		target := m.migrate(t, fmt.Sprint("target-", round))
		var calls sync.WaitGroup
		if round%2 == 0 {
			m.b.mustAddPod(t, target)
		} else {
			calls.Go(func() { _, _ = m.b.addPod(t.Context(), target, "net1") })
		}
		calls.Go(func() { m.a.mustDelPod(t, m.pod, "net1") })
		if round%2 == 0 {
			calls.Go(func() { m.b.mustDelPod(t, target, "net1") })
		}
		calls.Wait()
		if round%2 == 1 {
			m.b.mustDelPod(t, target, "net1")
		}
		m.wantMoving(t, "", "")
		if all := m.all(t); len(all) != 1 {
			t.Fatalf("%d allocations", len(all))
		}
		m.pod = m.launch(t, fmt.Sprint("source-", round), "vm.net")
		if got := m.a.mustAddPod(t, m.pod); got != m.addr {
			t.Fatalf("got %s", got)
		}
	}
}

// The API server is away for the DEL of either pod: a later call of the node ends it.
func TestMigrationWhileTheServerIsAway(t *testing.T) {
	for _, lost := range []string{"source", "target"} {
		t.Run(lost, func(t *testing.T) {
			m, target := newMove(t)
			n, pod, holder := m.a, m.pod, "target"
			if lost == "target" {
				n, pod, holder = m.b, target, "source"
			}
			n.wire.setLose(down)
			if err := n.Release(shortly(t), sandbox(pod, "net1")); err != nil {
				t.Fatal(err)
			}
			m.wantMoving(t, "source", "target")
			n.wire.setLose(nil)
			n.restart()
			if err := n.Ready(t.Context(), ippool("p")); err != nil {
				t.Fatal(err)
			}
			m.wantMoving(t, holder, "")
		})
	}
}

// The answer to a join is lost, or the target's process dies around it.
func TestMigrationWithoutAnswer(t *testing.T) {
	for _, what := range []loss{request, response, half} {
		t.Run(fmt.Sprint(what), func(t *testing.T) {
			m := newMachine(t, blocksOf16)
			target := m.migrate(t, "target")
			m.b.mustAddPod(t, m.start(t, "warm", ""))
			m.b.wire.setLose(loseFirst(http.MethodPatch, what))
			if got := m.b.mustAddPod(t, target); got != m.addr {
				t.Errorf("got %s", got)
			}
			m.wantMoving(t, "source", "target")
			m.b.mustDelPod(t, target, "net1")
			m.wantMoving(t, "source", "")
			// All answers are lost: the call fails, and its join is undone by a later one.
			m.b.wire.setLose(func(req *http.Request) loss {
				if req.Method == http.MethodPatch {
					return what
				}
				return nothing
			})
			second := m.migrate(t, "second")
			if _, err := m.b.addPod(shortly(t), second, "net1"); err == nil && what == request {
				t.Error("a join that was never sent")
			}
			m.b.wire.setLose(nil)
			m.b.mustDelPod(t, second, "net1")
			m.wantMoving(t, "source", "")
		})
	}
}

// A runtime collects what it does not know any more: the target's attachment leaves.
func TestMigrationIsCollected(t *testing.T) {
	m, target := newMove(t)
	later := time.Now().Add(time.Minute)
	if err := m.b.Collect(t.Context(), "net", []hint.Attachment{sandbox(target, "net1")}, later); err != nil {
		t.Fatal(err)
	}
	m.wantMoving(t, "source", "target")
	if err := m.b.Collect(t.Context(), "net", nil, later); err != nil {
		t.Fatal(err)
	}
	m.wantMoving(t, "source", "")
}

// The hint is made again while a machine moves: what the node has joined stays there.
func TestMigrationAndTheHint(t *testing.T) {
	m, target := newMove(t)
	if err := m.b.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.b.mustCheck(t, target)
	m.a.mustDelPod(t, m.pod, "net1")
	if err := m.b.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.wantMoving(t, "target", "")
	m.b.mustDelPod(t, target, "net1")
	m.wantMoving(t, "", "")
}

// The target's node has started again: its DEL finds what it has joined.
func TestMigrationAndAReboot(t *testing.T) {
	m, target := newMove(t)
	reboot(t, m.b)
	m.b.mustDelPod(t, target, "net1")
	m.wantMoving(t, "source", "")
}

// reboot makes the hint of a node one of long before its last start.
func reboot(t *testing.T, n *node) {
	t.Helper()
	err := errors.Join(rig.Reboot(n.path()), rig.Links(n.path(), func(path, _ string) error {
		lutimes(t, path, time.Now().Add(-time.Hour))
		return nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	n.restart()
}

// The record is lost while a machine moves. Both nodes write again what they have, and both
// pods have the address then, whoever comes first.
func TestMigrationIsRestored(t *testing.T) {
	for _, first := range []string{"source", "target"} {
		t.Run(first, func(t *testing.T) {
			m, target := newMove(t)
			m.sayLostBy(t, "before") // both have seen the pool
			for _, n := range []*node{m.a, m.b} {
				if err := n.Look(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			m.free(t, "p", m.addr)
			m.sayLost(t)
			nodes, holder, next := []*node{m.a, m.b}, "source", "target"
			if first == "target" {
				slices.Reverse(nodes)
				holder, next = next, holder
			}
			for _, n := range nodes {
				if err := n.Look(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			m.wantMoving(t, holder, next)
			m.a.mustDelPod(t, m.pod, "net1")
			m.wantMoving(t, "target", "")
			m.b.mustDelPod(t, target, "net1")
			m.wantMoving(t, "", "")
		})
	}
}

// Machines move between three nodes while pods end at any time, and plugins are killed before
// and after their requests. At no time the address is free, or on three; whoever was told it has
// it until its DEL; and when all have ended, it is kept and nobody's.
func TestMigrationHistories(t *testing.T) {
	histories := 40
	if testing.Short() {
		histories = 8
	}
	began := time.Now()
	for i := 0; i < histories || !soaked(began); i++ {
		seed := rand.Uint64()
		t.Run(fmt.Sprint(seed), func(t *testing.T) { moveHistory(t, rand.New(rand.NewPCG(seed, 0))) })
	}
}

func moveHistory(t *testing.T, random *rand.Rand) {
	m := newMachine(t, v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/28"})
	name := m.nameOf(t, m.addr)
	uid := m.get(t, name).UID
	nodes := []*node{m.a, m.b, newNode(t, m.ns, "c")}
	type running struct {
		*node
		*corev1.Pod
	}
	live := []running{{m.a, m.pod}}
	for round := range 12 {
		var mu sync.Mutex
		var still, ended []running
		var calls sync.WaitGroup
		for _, r := range live {
			if random.IntN(3) > 0 {
				still = append(still, r)
				continue
			}
			r.wire.setLose(dieSometimes(random.Uint64()))
			ended = append(ended, r)
			calls.Go(func() { _ = r.Release(shortly(t), sandbox(r.Pod, "net1")) })
		}
		for i := range 1 + random.IntN(2) {
			n := nodes[random.IntN(len(nodes))]
			pod := m.migrate(t, fmt.Sprintf("target-%d-%d", round, i))
			n.wire.setLose(dieSometimes(random.Uint64()))
			calls.Go(func() {
				to := &ended // also if it is killed: the runtime says DEL then
				defer func() {
					mu.Lock()
					defer mu.Unlock()
					*to = append(*to, running{n, pod})
				}()
				got, err := n.addPod(shortly(t), pod, "net1")
				if err == nil {
					to = &still
				}
				if err == nil && got != m.addr {
					t.Errorf("%s got %s, the machine has %s", pod.Name, got, m.addr)
				}
			})
		}
		calls.Wait()
		for _, n := range nodes {
			n.wire.setLose(nil)
			n.restart()
		}
		for _, r := range ended {
			r.mustDelPod(t, r.Pod, "net1")
		}
		a := m.get(t, name)
		if a.UID != uid || len(m.all(t)) != 1 {
			t.Fatalf("the address was free, or there are two: %v", m.all(t))
		}
		has := 0
		if a.Spec.Held() {
			has++
		}
		if a.Spec.Next != nil {
			has++
		}
		if len(still) != has {
			t.Fatalf("round %d: %d pods have the address, and the record has %d: %+v", round, len(still), has, a.Spec)
		}
		for _, r := range still {
			r.mustCheck(t, r.Pod)
		}
		live = still
	}
	for _, r := range live {
		r.mustDelPod(t, r.Pod, "net1")
	}
	m.wantMoving(t, "", "")
}
