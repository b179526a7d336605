// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package loss

import (
	"errors"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apitypes "k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// tryAgainLater is the CNI code of what a later try may mend.
const tryAgainLater = 11

// lost is what pods are told that wait after a loss.
const lost = "allocations were lost"

func wantLater(t *testing.T, err error, words string) {
	t.Helper()
	var cniErr *types.Error
	if !errors.As(err, &cniErr) || cniErr.Code != tryAgainLater || !has(cniErr.Error(), words) {
		t.Errorf("error %v, want code %d and %q", err, tryAgainLater, words)
	}
}

// CRDs are deleted and applied again under live containers, and pools with them. The
// first ADD of a node writes again what the node holds; a quiet node does so when its
// installer looks.
func TestCRDsDeletedAndAppliedAgain(t *testing.T) {
	c := newCluster(t, "a", "b", "quiet")
	a, b, quiet := c.nodes["a"], c.nodes["b"], c.nodes["quiet"]
	for _, n := range c.nodes {
		n.mustAdd(t, n.name+"1", "")
		n.mustAdd(t, n.name+"2", "")
	}
	a.mustAdd(t, "a-static", "10.0.0.200")
	quiet.mustAdd(t, "quiet-static", "10.0.0.201")
	started := c.record(t)["10.0.0.200"].Spec.AddStartedAt

	remakeCRDs(t)
	c.served(t)
	c.pool(t)
	for n, requested := range map[*node]string{a: "10.0.0.201", b: ""} {
		_, err := n.add(t, n.name+"3", requested)
		wantLater(t, err, lost)
	}
	c.want(t, a, b)
	quiet.look(t)
	c.want(t, a, b, quiet)
	a.afterGrace(t)
	b.afterGrace(t)
	_, err := a.add(t, "a4", a.live["a1"])
	wantLater(t, err, "is held by pod default/pod-of-a1")
	_, err = a.add(t, "a5", "10.0.0.201")
	wantLater(t, err, "is held by pod default/pod-of-quiet-static")
	a.mustAdd(t, "a6", "")
	b.mustAdd(t, "b6", "")
	c.want(t, a, b, quiet)
	if again := c.record(t)["10.0.0.200"].Spec; !again.Restored || !again.Requested || !again.AddStartedAt.Equal(started) {
		t.Errorf("asserted again is %+v, want it as it was, since %s", again, started)
	}

	for _, n := range c.nodes {
		for container := range n.live {
			n.mustDel(t, container)
		}
	}
	if left := c.record(t); len(left) > 0 {
		t.Errorf("left after all DELs: %v", left)
	}
}

// The allocations and the pools of a namespace are deleted, as with the namespace, and
// applied again. A node that reboots meanwhile asserts nothing: its containers are dead,
// and their DELs succeed. What was released between the loss and the look stays released.
func TestNamespaceEmptiedAndOneNodeReboots(t *testing.T) {
	c := newCluster(t, "a", "rebooted")
	a, rebooted := c.nodes["a"], c.nodes["rebooted"]
	a.mustAdd(t, "a1", "")
	a.mustAdd(t, "a2", "")
	rebooted.mustAdd(t, "r1", "")
	rebooted.mustAdd(t, "r2", "10.0.0.200")

	c.empty(t)
	a.mustDel(t, "a2")
	rebooted.reboot(t)
	c.remakePool(t)
	a.look(t)
	rebooted.look(t)
	c.want(t, a)
	if record := c.record(t); len(record) != 1 {
		t.Errorf("asserted again: %v, want what lives on a alone", record)
	}
	rebooted.mustAdd(t, "r3", "")
	rebooted.mustDel(t, "r1")
	rebooted.mustDel(t, "r2")
	c.want(t, a, rebooted)
	if record := c.record(t); len(record) != 2 {
		t.Errorf("the record has %v", record)
	}
}

// Pools alone are deleted and made again: nothing is lost, and nothing changes.
func TestPoolsDeletedAndMadeAgain(t *testing.T) {
	c := newCluster(t, "a", "b")
	a, b := c.nodes["a"], c.nodes["b"]
	a.mustAdd(t, "a1", "")
	b.mustAdd(t, "b1", "")
	before := c.record(t)
	c.remakePool(t)
	a.mustAdd(t, "a2", "")
	b.look(t)
	c.want(t, a, b)
	for addr, alloc := range before {
		if now := c.record(t)[addr]; now.UID != alloc.UID {
			t.Errorf("%s was %s, and is %s", addr, alloc.UID, now.UID)
		}
	}
}

// etcd is set back to a snapshot. Since then, containers have started, ended and moved.
func TestEtcdSetBack(t *testing.T) {
	c := newCluster(t, "a", "b", "quiet")
	a, b, quiet := c.nodes["a"], c.nodes["b"], c.nodes["quiet"]
	a.mustAdd(t, "a-before", "")
	a.mustAdd(t, "a-ends", "")
	a.mustAdd(t, "moves", "10.0.0.200")
	snapshot := env.Snapshot(t)
	env.Revise(t, 300)
	quiet.mustAdd(t, "quiet-since", "")
	b.mustAdd(t, "b-since", "")
	a.mustDel(t, "a-ends")
	a.mustDel(t, "moves")
	b.mustAdd(t, "moved", "10.0.0.200")
	a.mustAdd(t, "a-since", "")
	env.Restore(t, snapshot)

	// The record lacks a-since: whoever asks for its address has it, and gives it back.
	_, err := a.add(t, "wants", a.live["a-since"])
	wantLater(t, err, lost)
	quiet.look(t)
	c.want(t, a, quiet)
	a.afterGrace(t)
	_, err = a.add(t, "wants", a.live["a-since"])
	wantLater(t, err, "is held by pod default/pod-of-a-since")
	a.mustAdd(t, "a-new", "")

	// The record says that the address is still on a, and b knows better.
	_, err = b.add(t, "b-new", "")
	wantLater(t, err, lost)
	said := b.log(t)
	if !has(said, "10.0.0.200") || !has(said, "held twice") || !has(said, "pod-of-moves") {
		t.Error("b does not say that 10.0.0.200 is in doubt:\n", said)
	}
	if holder := c.record(t)["10.0.0.200"].Spec.ContainerID; holder != "moves" {
		t.Errorf("10.0.0.200 is %s's, want that nothing is taken away", holder)
	}
	// The controller frees what was resurrected; then b has it.
	if err := c.IPAM.IPAllocations(c.NS).Delete(t.Context(), "p.10.0.0.200", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	b.look(t)
	c.want(t, a, b, quiet)
	if _, ok := c.record(t)[c.lastOf(t, "a-ends")]; !ok {
		t.Error("what ended since the snapshot is not in the record: the test proves nothing")
	}
}

// A backup was restored with its revision bumped: no resource version tells, and the
// installers see nothing. The operator says it, by an annotation on the pool.
func TestEtcdSetBackWithBumpedRevision(t *testing.T) {
	c := newCluster(t, "a", "quiet")
	a, quiet := c.nodes["a"], c.nodes["quiet"]
	a.mustAdd(t, "a-before", "")
	snapshot := env.Snapshot(t)
	env.Revise(t, 300)
	a.mustAdd(t, "a-since", "")
	quiet.mustAdd(t, "quiet-since", "")
	env.Restore(t, snapshot)
	env.Revise(t, 1000)
	a.look(t)
	quiet.look(t)
	if _, err := c.IPAM.IPPools(c.NS).Patch(t.Context(), "p", apitypes.MergePatchType,
		[]byte(`{"metadata":{"annotations":{"`+v1alpha1.AnnotationRecordLost+`":"2026-11-25"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	c.seen(t)
	_, err := a.add(t, "a-new", "")
	wantLater(t, err, lost)
	quiet.look(t)
	c.want(t, a, quiet)
}

// The hint has lost that it is complete, and so has the record what it had: the DEL that
// lists what the node holds drops nothing of what lives.
func TestRebuildAfterALoss(t *testing.T) {
	c := newCluster(t, "a")
	a := c.nodes["a"]
	for _, name := range []string{"a1", "a2", "a3"} {
		a.mustAdd(t, name, "")
	}
	a.mustDel(t, "a3")
	c.empty(t)
	c.remakePool(t)
	a.forget(t)
	a.mustDel(t, "a2")
	c.want(t, a)
	a.afterGrace(t)
	for _, name := range []string{"a4", "a5", "a6"} {
		a.mustAdd(t, name, "")
	}
	c.want(t, a)
}

// A block is full when etcd is set back. The list that says what is free lacks what
// lives, and nothing of that is given.
func TestFullBlockAfterEtcdIsSetBack(t *testing.T) {
	c := newCluster(t, "a")
	a := c.nodes["a"]
	a.mustAdd(t, "before", "")
	snapshot := env.Snapshot(t)
	env.Revise(t, 300)
	var err error
	for i := 0; err == nil; i++ {
		_, err = a.add(t, "since-"+string(rune('a'+i)), "")
	}
	wantLater(t, err, "no free addresses")
	a.mustDel(t, "since-a")
	env.Restore(t, snapshot)
	_, err = a.add(t, "next", "")
	wantLater(t, err, lost)
	c.want(t, a)
	a.afterGrace(t)
	a.mustAdd(t, "next", "")
	_, err = a.add(t, "one-too-many", "")
	wantLater(t, err, "no free addresses")
	c.want(t, a)
}

// A node that was away during the loss finds that another has its address by now. It
// takes nothing away, and says so.
func TestNodeThatWasAway(t *testing.T) {
	c := newCluster(t, "a", "away")
	a, away := c.nodes["a"], c.nodes["away"]
	away.mustAdd(t, "w1", "10.0.0.200")
	away.mustAdd(t, "w2", "")
	c.empty(t)
	c.remakePool(t)
	addr := away.live["w1"]
	delete(away.live, "w1") // what cannot be known
	a.mustAdd(t, "a1", addr)
	said := away.look(t)
	if !has(said, "held twice") || !has(said, addr) || !has(said, "pod-of-a1") {
		t.Error("the installer does not say who has the address:\n", said)
	}
	if !has(away.look(t), "held twice") {
		t.Error("the installer says it only once")
	}
	c.want(t, a, away)
	// While w1 lives, nobody else on its node is given its address, whoever frees it.
	a.mustDel(t, "a1")
	away.live["w1"] = addr
	away.afterGrace(t)
	_, err := away.add(t, "w3", addr)
	wantLater(t, err, "container w1 of this node answers on it")
	away.look(t)
	c.want(t, away)
}

// What a reservation has got before its node has written it again goes to the container if
// it is of the reservation's pod; else both are named, and nothing is taken away.
func TestReservedBeforeItIsWrittenAgain(t *testing.T) {
	c := newCluster(t, "a")
	a := c.nodes["a"]
	for container, addr := range map[string]string{"mine": "10.0.0.20", "foreign": "10.0.0.21"} {
		if got := a.mustAdd(t, container, addr); got != addr {
			t.Fatal(got)
		}
	}
	c.empty(t)
	c.remakePool(t)
	for addr, pod := range map[string]string{"10.0.0.20": "pod-of-mine", "10.0.0.21": ""} {
		kept := &v1alpha1.IPAllocation{ObjectMeta: metav1.ObjectMeta{Name: "p." + addr}, Spec: v1alpha1.IPAllocationSpec{
			PoolRef: v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "p"}, Address: addr,
			Owner: &v1alpha1.AllocationOwner{APIGroup: v1alpha1.GroupName, Kind: v1alpha1.KindIPReservation, Namespace: c.NS, Name: "r", UID: "u"},
		}}
		if pod != "" {
			kept.Spec.PodRef = v1alpha1.PodReference{Namespace: "default", Name: pod}
		}
		if _, err := c.IPAM.IPAllocations(c.NS).Create(t.Context(), kept, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if said := a.look(t); !has(said, "10.0.0.21") || !has(said, "held twice") || !has(said, "reserved for") {
		t.Errorf("the installer says %s", said)
	}
	record := c.record(t)
	if mine := record["10.0.0.20"].Spec; mine.ContainerID != "mine" || !mine.Held() || mine.Owner == nil || !mine.Restored {
		t.Errorf("10.0.0.20 is %+v", mine)
	}
	if foreign := record["10.0.0.21"].Spec; foreign.ContainerID != "" {
		t.Errorf("10.0.0.21 is %+v", foreign)
	}
	a.mustDel(t, "mine")
	a.mustDel(t, "foreign")
	record = c.record(t)
	if mine := record["10.0.0.20"].Spec; !mine.Released() {
		t.Errorf("10.0.0.20 is %+v", mine)
	}
	if _, stays := record["10.0.0.21"]; !stays {
		t.Error("the DEL has ended the reservation")
	}
}
