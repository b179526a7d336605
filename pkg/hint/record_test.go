// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package hint

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// recorded is an entry as an ADD enters it.
func recorded(att Attachment, addr netip.Addr, uid types.UID, version uint64) Entry {
	e := heldBy(att, addr, uid)
	started := metav1.NewMicroTime(time.Now().UTC().Truncate(time.Microsecond))
	e.Record = &Record{ResourceVersion: version, Spec: v1alpha1.IPAllocationSpec{
		PoolRef: v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "p"}, Address: addr.String(), NodeName: "n",
		PodRef:      v1alpha1.PodReference{Namespace: "default", Name: "pod", UID: "7d0c9a3e-1111-4222-8333-444455556666"},
		ContainerID: att.ContainerID, InterfaceName: att.Interface, NetworkName: "net", DeviceID: `0000:00:00.0/"\`, Requested: true, AddStartedAt: &started,
	}}
	return e
}

// What was claimed is known with all that it takes to write it again, and its claim alone
// is what other calls compare.
func TestRecord(t *testing.T) {
	h := newHint(t)
	want := recorded(podA, addr1, "u1", 42)
	h.Claimed(want)
	got := h.Recorded()
	if len(got) != 1 || got[0].UID != "u1" || got[0].Record.ResourceVersion != 42 ||
		!got[0].Record.Spec.AddStartedAt.Equal(want.Record.Spec.AddStartedAt) {
		t.Fatalf("recorded %+v", got)
	}
	got[0].Record.Spec.AddStartedAt, want.Record.Spec.AddStartedAt = nil, nil
	if !reflect.DeepEqual(got[0].Record.Spec, want.Record.Spec) {
		t.Errorf("recorded %+v, want %+v", got[0].Record.Spec, want.Record.Spec)
	}
	if k := h.Known("p", podA, v1alpha1.PodReference{}); len(k.Holding) != 1 || k.Holding[0].UID != "u1" || k.Latest != 42 || !k.Entered[k.Holding[0].Address] {
		t.Errorf("known %+v", k)
	}
	h.NotClaimed(heldBy(podA, addr1, "u2"))
	h.NotClaimed(heldBy(podB, addr1, "u1"))
	if len(h.Recorded()) != 1 {
		t.Error("another's claim was removed")
	}
	h.NotClaimed(heldBy(podA, addr1, "u1"))
	if left := h.Recorded(); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

// An entry is never too long for a symbolic link, whatever is in it.
func TestLongestRecord(t *testing.T) {
	h := newHint(t)
	e := recorded(Attachment{strings.Repeat("c", 256), strings.Repeat("i", 15)}, addr1, "u1", 1)
	e.Record.Spec.DeviceID = strings.Repeat("\x01", 1000)
	h.Claimed(e)
	if found, _ := h.Holding(e.Attachment); len(found) != 1 {
		t.Errorf("found %v", found)
	}
	if h.AllRecorded() {
		t.Error("a record that has no room is there")
	}
}

// A loss is noted, and mended unless a DEL came meanwhile. A rebuild does not drop it.
func TestLostAndRestored(t *testing.T) {
	h := newHint(t)
	h.Claimed(recorded(podA, addr1, "u1", 42))
	h.Claimed(recorded(podB, addr2, "u2", 43))
	r := h.Rebuild(t.Context(), time.Now())
	missing := r.Missing(nil)
	if len(missing) != 2 {
		t.Fatalf("missing %v", missing)
	}
	for _, e := range missing {
		if !h.Lost(e, "") {
			t.Error("not noted:", e)
		}
	}
	r.Enter(time.Now().Add(time.Hour), nil)
	r.End()
	if lost := h.LostAt("p", addr1); lost == nil || lost.Attachment != podA {
		t.Errorf("lost %+v", lost)
	}
	if latest := h.Known("p", podA, v1alpha1.PodReference{}).Latest; latest != 0 {
		t.Errorf("latest %d: what is lost is evidence again", latest)
	}
	again := recorded(podA, addr1, "u3", 7)
	if !h.Restored(again) || h.LostAt("p", addr1) != nil {
		t.Error("not restored")
	}
	found, _ := h.Holding(podB) // its DEL
	if len(found) != 1 || found[0].UID != "" || !h.Releasing(found[0]) {
		t.Errorf("B holds %v", found)
	}
	if h.Restored(recorded(podB, addr2, "u4", 8)) {
		t.Error("restored although its DEL has come")
	}
}

// A DEL has read what its attachment holds, and then that is found to be lost: the note of
// the release removes the claim nevertheless.
func TestLostUnderADel(t *testing.T) {
	h := newHint(t)
	e := recorded(podA, addr1, "u1", 42)
	h.Claimed(e)
	if !h.Lost(e, "") || !h.Releasing(e) {
		t.Fatal("not noted")
	}
	if lost := h.LostAt("p", addr1); lost != nil {
		t.Errorf("still lost: %v", lost)
	}
	if h.Restored(recorded(podA, addr1, "u3", 7)) {
		t.Error("restored although its DEL has come")
	}
}

// What was there before the node's last start is not missed.
func TestDeadAreNotMissed(t *testing.T) {
	h := newHint(t)
	h.Claimed(recorded(podA, addr1, "u1", 42))
	file := h.path("claims", heldBy(podA, addr1, "").fileName())
	text, err := os.Readlink(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(strings.Replace(text, " "+shortBoot()+" ", " 00000000 ", 1), file); err != nil {
		t.Fatal(err)
	}
	if left := h.Recorded(); len(left) != 0 {
		t.Errorf("recorded %v", left)
	}
	if found, _ := h.Holding(podA); len(found) != 1 {
		t.Errorf("its DEL finds %v", found)
	}
	if latest := h.Known("p", podA, v1alpha1.PodReference{}).Latest; latest != 0 {
		t.Errorf("latest %d", latest)
	}
}

// An epoch tells pools of one name apart, and what the operator says of one.
func TestEpoch(t *testing.T) {
	h := newHint(t)
	ref := v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "p"}
	if got := h.Epoch(ref); got != "" {
		t.Errorf("epoch %q", got)
	}
	h.SetEpoch(ref, EpochText("u1", "word"))
	if got := h.Epoch(ref); got != EpochText("u1", "word") || got == EpochText("u1", "") || got == EpochText("u2", "word") {
		t.Errorf("epoch %q", got)
	}
}

// An earlier version of the plugin enters its claims where this one does not look. If it
// was here, nothing is complete until the API server has been asked.
func TestEarlierVersionWasHere(t *testing.T) {
	h := newHint(t)
	r := h.Rebuild(t.Context(), time.Time{})
	r.Enter(time.Now(), nil)
	r.End()
	if !h.Complete() {
		t.Fatal("not complete")
	}
	must(t, os.MkdirAll(filepath.Join(h.root, "claims"), 0o700))
	must(t, os.Symlink("c/net1/uid", filepath.Join(h.root, "claims", "p.10.0.0.1")))
	// If that comes back, it believes no longer that it knows everything.
	mark := filepath.Join(h.root, "claims", ".complete")
	must(t, os.Symlink("/", mark))
	if h.Claiming(heldBy(podA, addr1, "")) {
		t.Fatal("the address is taken")
	}
	if _, err := os.Lstat(mark); err == nil {
		t.Error("the earlier version is still told that its hint is complete")
	}
	h.NotClaimed(heldBy(podA, addr1, ""))
	if _, complete := h.Holding(podA); complete || h.Complete() {
		t.Error("complete without what the earlier version has claimed")
	}
	r = h.Rebuild(t.Context(), time.Time{})
	r.Enter(time.Now(), []Entry{heldBy(podA, addr1, "u1")})
	r.End()
	if got, complete := h.Holding(podA); !complete || len(got) != 1 {
		t.Errorf("%v, complete %t", got, complete)
	}
}

// What is released while the list is under way is not entered again, although it is listed.
func TestReleasedWhileRebuilding(t *testing.T) {
	h := newHint(t)
	r := h.Rebuild(t.Context(), time.Time{})
	r.Enter(time.Now(), nil)
	r.End()
	release := func(e Entry) {
		h.Releasing(e)
		h.Released(e)
	}
	old, young := heldBy(podA, addr1, "u1"), heldBy(podB, addr2, "u2")
	young.Record = &Record{}
	h.Claimed(old)
	r = h.Rebuild(t.Context(), time.Now())
	at := time.Now()
	young.Record.Spec.AddStartedAt = &metav1.MicroTime{Time: at}
	h.Claimed(young)
	release(old)
	release(young)
	lost := heldBy(podB, addr6, "u3") // the hint had lacked it
	r.Enter(at, []Entry{old, young, lost})
	r.End()
	if got, _ := h.Holding(podA); len(got) != 0 {
		t.Errorf("the hint has what was released: %v", got)
	}
	if got, complete := h.Holding(podB); len(got) != 1 || got[0].Address != addr6 || !complete {
		t.Errorf("the hint has %v, complete %t", got, complete)
	}
}

// A claim that is only entered beside another's entry gets its own when it is listed, although
// the hint had it.
func TestSecondEntryIsCompleted(t *testing.T) {
	h := newHint(t)
	h.Elsewhere(heldBy(podB, addr1, ""))
	h.ClaimingRequested(heldBy(podA, addr1, "")) // killed after its create
	e := recorded(podA, addr1, "u1", 42)
	rebuild(t, h, e)
	if got := h.Recorded(); len(got) != 1 || got[0].UID != "u1" || got[0].Attachment != podA {
		t.Errorf("recorded is %v", got)
	}
}

// While what an earlier version has left is being taken over, nothing is complete: it knew no
// namespaces.
func TestIncompleteWhileTakingOver(t *testing.T) {
	h := newHint(t)
	r := h.Rebuild(t.Context(), time.Time{})
	r.Enter(time.Now(), nil)
	r.End()
	must(t, os.MkdirAll(filepath.Join(h.root, "claims", "p"), 0o700))
	must(t, os.Symlink("c1/net1", filepath.Join(h.root, "claims", "p", "10.0.0.1")))
	other := Open(h.root, siteA, "other", slog.New(slog.DiscardHandler))
	must(t, os.MkdirAll(other.path("claims"), 0o700))
	must(t, os.Symlink(markText(), other.path("claims", completeMark)))
	r = h.Rebuild(t.Context(), time.Time{})
	if h.Complete() || other.Complete() {
		t.Error("complete without what the earlier version has claimed")
	}
	r.Enter(time.Now(), nil)
	r.End()
	if !h.Complete() {
		t.Error("not complete")
	}
}
