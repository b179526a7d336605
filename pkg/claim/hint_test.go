// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

var (
	addr1 = netip.MustParseAddr("10.0.0.1")
	addr2 = netip.MustParseAddr("10.0.0.2")
	addr6 = netip.MustParseAddr("fd00::1")
	podA  = Attachment{ContainerID: "aaaa", Interface: "net1"}
	podB  = Attachment{ContainerID: "bbbb", Interface: "net1"}
)

func heldBy(att Attachment, a netip.Addr, uid types.UID) Held {
	return Held{Attachment: att, Pool: "p", Address: a, UID: uid}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func rebuild(t *testing.T, h *Hint, all ...Held) {
	t.Helper()
	mark, err := h.startRebuild()
	must(t, err)
	must(t, h.Rebuild(mark, all))
}

func find(t *testing.T, h *Hint, att Attachment) []Held {
	t.Helper()
	found, err := h.Find(att)
	must(t, err)
	slices.SortFunc(found, func(a, b Held) int { return a.Address.Compare(b.Address) })
	return found
}

// age makes an entry of the hint as old as if d had passed.
func age(t *testing.T, h *Hint, d time.Duration, parts ...string) {
	t.Helper()
	at := time.Now().Add(-d)
	tv := unix.NsecToTimeval(at.UnixNano())
	must(t, unix.Lutimes(h.path(parts...), []unix.Timeval{tv, tv})) // of the link itself
}

func TestHoldIsWonByOne(t *testing.T) {
	h := NewHint(t.TempDir())
	var won atomic.Int64
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			ok, err := h.Hold("p", addr1, Attachment{ContainerID: string(rune('a' + i)), Interface: "net1"})
			if err != nil {
				t.Error(err)
			}
			if ok {
				won.Add(1)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d of 50 hold one address, want 1", won.Load())
	}
}

func TestFindSeesAllPoolsAndNobodyElses(t *testing.T) {
	h := NewHint(t.TempDir())
	must(t, h.Set(heldBy(podA, addr1, "u1")))
	must(t, h.Set(Held{Attachment: podA, Pool: "q", Address: addr6, UID: "u2"}))
	must(t, h.Set(heldBy(podB, addr2, "u3")))
	must(t, h.SetElsewhere(heldBy(podB, netip.MustParseAddr("10.0.0.3"), "")))
	got := find(t, h, podA)
	want := []Held{heldBy(podA, addr1, "u1"), {Attachment: podA, Pool: "q", Address: addr6, UID: "u2"}}
	if !slices.Equal(got, want) {
		t.Errorf("Find = %v, want %v", got, want)
	}
	if got := find(t, h, Attachment{ContainerID: "aaaa", Interface: "net2"}); len(got) != 0 {
		t.Errorf("another interface of the container holds %v", got)
	}
}

// An entry that has become another's since it was read must survive.
func TestDropLeavesWhatHasChanged(t *testing.T) {
	h := NewHint(t.TempDir())
	must(t, h.Set(heldBy(podB, addr1, "u2")))
	must(t, h.Drop(heldBy(podA, addr1, "u1")))
	must(t, h.SetElsewhere(heldBy(podA, addr1, "")))
	if got := find(t, h, podB); len(got) != 1 {
		t.Errorf("the new holder's entry is gone: %v", got)
	}
}

// A process that was killed after its create must be found by the DEL, also where
// it asked for an address that another process had entered.
func TestHoldRequested(t *testing.T) {
	h := NewHint(t.TempDir())
	if free, err := h.Hold("p", addr1, podA); !free || err != nil {
		t.Fatal(free, err)
	}
	b := heldBy(podB, addr1, "")
	must(t, h.HoldRequested(b))
	must(t, h.HoldRequested(b)) // asked again
	if got := find(t, h, podB); !slices.Equal(got, []Held{b}) {
		t.Errorf("B may hold %v", got)
	}
	if len(find(t, h, podA)) != 1 {
		t.Error("A's entry is gone")
	}
	must(t, h.Set(heldBy(podB, addr1, "u2")))
	if got := find(t, h, podB); !slices.Equal(got, []Held{heldBy(podB, addr1, "u2")}) {
		t.Errorf("B holds %v", got)
	}
	must(t, h.HoldRequested(b))
	must(t, h.Releasing(heldBy(podB, addr1, "u2")))
	must(t, h.Paid(heldBy(podB, addr1, "u2")))
	if got := find(t, h, podB); len(got) != 0 {
		t.Errorf("released, and yet B may hold %v", got)
	}
}

func TestRelease(t *testing.T) {
	h := NewHint(t.TempDir())
	held := heldBy(podA, addr1, "u1")
	must(t, h.Set(held))
	must(t, h.Releasing(held))
	if got := find(t, h, podA); !slices.Equal(got, []Held{held}) {
		t.Errorf("a DEL that is asked for again finds %v", got)
	}
	if got, err := h.FindIn("p", podA); err != nil || len(got) != 0 {
		t.Errorf("an ADD would use an address that is being released: %v, %v", got, err)
	}
	if un, err := h.unsettled(); err != nil || un[held.key()] == nil {
		t.Errorf("unsettled = %v, %v: the address looks free", un, err)
	}
	debts := func() []Held { d, err := h.Debts(); must(t, err); return d }
	if d := debts(); len(d) != 0 {
		t.Errorf("another process would release too: %v", d)
	}
	must(t, h.Owe(held))
	if d := debts(); !slices.Equal(d, []Held{held}) {
		t.Errorf("debts = %v, want %v", d, held)
	}
	must(t, h.Paid(held))
	must(t, h.Paid(held)) // another process was faster
	if d := debts(); len(d) != 0 {
		t.Errorf("debts after payment = %v", d)
	}
}

// A note's name has what it is about, and fits into a file's.
func TestNoteNames(t *testing.T) {
	long := strings.Repeat("p", 213)
	for _, held := range []Held{
		heldBy(podA, addr1, "u1"), heldBy(podA, addr6, "u1"),
		{Attachment: podA, Pool: "p6.fd00", Address: addr6}, {Attachment: podA, Pool: "10.0.0", Address: addr1},
		{Attachment: podA, Pool: long, Address: netip.MustParseAddr("fd00:1234:1234:1234:1234:1234:1234:1234")},
	} {
		name := noteName(held)
		poolName, addr, err := parseNoteName(name)
		if err != nil || poolName != held.Pool || addr != held.Address || len(name) > 255 {
			t.Errorf("%q (%d) is %q, %s, %v", name, len(name), poolName, addr, err)
		}
	}
	for _, name := range []string{"", "@", "x", ".", strings.Repeat("0", 32), "." + strings.Repeat("0", 32), "p." + strings.Repeat("0", 31)} {
		if poolName, addr, err := parseNoteName(name); err == nil {
			t.Errorf("%q is %q, %s", name, poolName, addr)
		}
	}
}

// A process that was killed while it released must not take the address along.
func TestReleaseOfADeadProcessIsOwed(t *testing.T) {
	h := NewHint(t.TempDir())
	held := heldBy(podA, addr6, "u1")
	must(t, h.Set(held))
	must(t, h.Releasing(held))
	age(t, h, settleTime+time.Second, "releasing", noteName(held))
	debts, err := h.Debts()
	must(t, err)
	if !slices.Equal(debts, []Held{held}) {
		t.Errorf("debts = %v, want %v", debts, held)
	}
}

func TestSync(t *testing.T) {
	all := func(netip.Addr) bool { return true }
	for _, tc := range []struct {
		name         string
		entry        func(h *Hint) error
		old          time.Duration
		listed       map[netip.Addr]bool
		stays        bool
		wantComplete bool
	}{
		{"claim that is listed", func(h *Hint) error { return h.Set(heldBy(podA, addr1, "u1")) }, time.Hour, map[netip.Addr]bool{addr1: true}, true, true},
		{"claim that is no more", func(h *Hint) error { return h.Set(heldBy(podA, addr1, "u1")) }, time.Hour, nil, false, true},
		{"claim newer than the list", func(h *Hint) error { return h.Set(heldBy(podA, addr1, "u1")) }, 0, nil, true, true},
		{"claim from the future, of which there is none", func(h *Hint) error { return h.Set(heldBy(podA, addr1, "u1")) }, -time.Hour, nil, false, true},
		{"claim about to be made", func(h *Hint) error { _, err := h.Hold("p", addr1, podA); return err }, time.Minute, nil, true, true},
		{"claim of a process that died", func(h *Hint) error { _, err := h.Hold("p", addr1, podA); return err }, settleTime + time.Second, nil, false, true},
		{"claim made under a clock that is ahead", func(h *Hint) error { _, err := h.Hold("p", addr1, podA); return err }, -time.Hour, nil, false, true},
		{"elsewhere and still", func(h *Hint) error { return h.SetElsewhere(heldBy(podA, addr1, "")) }, 0, map[netip.Addr]bool{addr1: false}, true, true},
		{"elsewhere and free again", func(h *Hint) error { return h.SetElsewhere(heldBy(podA, addr1, "")) }, 0, nil, false, true},
		{"seen for the first time", func(*Hint) error { return nil }, 0, map[netip.Addr]bool{addr1: false}, true, true},
		{"our own, of which the hint knows nothing", func(*Hint) error { return nil }, 0, map[netip.Addr]bool{addr1: true}, true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := NewHint(t.TempDir())
			rebuild(t, h)
			must(t, tc.entry(h))
			entry := h.path("claims", "p", addr1.String())
			if _, err := os.Lstat(entry); err == nil {
				age(t, h, tc.old, "claims", "p", addr1.String())
			}
			must(t, h.Sync("p", time.Now(), all, tc.listed))
			if _, err := os.Lstat(entry); (err == nil) != tc.stays {
				t.Errorf("entry is there: %v, want %v", err == nil, tc.stays)
			}
			if h.Complete() != tc.wantComplete {
				t.Errorf("complete = %v, want %v", h.Complete(), tc.wantComplete)
			}
		})
	}
}

func TestSyncMarksOnlyWhatIsInside(t *testing.T) {
	h := NewHint(t.TempDir())
	must(t, h.Sync("p", time.Now(), func(a netip.Addr) bool { return a == addr1 }, map[netip.Addr]bool{addr1: false, addr2: false}))
	names, err := h.names("claims", "p")
	must(t, err)
	if !slices.Equal(names, []string{addr1.String()}) {
		t.Errorf("marked %v, want %v", names, addr1)
	}
}

func TestRebuildMakesCompleteAndLeavesReleasesAlone(t *testing.T) {
	h := NewHint(filepath.Join(t.TempDir(), "new"))
	if h.Complete() {
		t.Fatal("a directory that is not there is complete")
	}
	released := heldBy(podB, addr2, "u2")
	must(t, h.Releasing(released))
	rebuild(t, h, heldBy(podA, addr1, "u1"), released)
	if !h.Complete() {
		t.Error("not complete after a rebuild")
	}
	if len(find(t, h, podA)) != 1 || len(inPool(t, h, podB)) != 0 {
		t.Errorf("A holds %v, B holds %v", find(t, h, podA), inPool(t, h, podB))
	}
}

func inPool(t *testing.T, h *Hint, att Attachment) []Held {
	t.Helper()
	found, err := h.FindIn("p", att)
	must(t, err)
	return found
}

func TestViewAndLast(t *testing.T) {
	h := NewHint(t.TempDir())
	ref := v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "p"}
	if h.LoadView(ref) != nil || h.Last(ref).IsValid() {
		t.Error("a new hint knows of a pool")
	}
	must(t, h.SaveView(ref, &View{Version: "v1", Block: &pool.Block{Pool: ref, Subnet: netip.MustParsePrefix("10.0.0.0/8")}}))
	must(t, h.SetLast(ref, addr1))
	if v := h.LoadView(ref); v == nil || v.Version != "v1" || v.Block.Subnet.String() != "10.0.0.0/8" {
		t.Errorf("view = %+v", v)
	}
	if h.Last(ref) != addr1 {
		t.Errorf("last = %s", h.Last(ref))
	}
	other := v1alpha1.PoolReference{Kind: v1alpha1.PoolKindCIDRPool, Name: "p"}
	if h.LoadView(other) != nil || h.Last(other).IsValid() {
		t.Error("two kinds of one name share a view")
	}
	must(t, os.WriteFile(h.path("pools", "ippool.p.json"), []byte(`{"version":"v1","blo`), 0o600))
	if h.LoadView(ref) != nil {
		t.Error("half a file was read as a view")
	}
}

func TestNothingIsReadableByOthers(t *testing.T) {
	h := NewHint(filepath.Join(t.TempDir(), "hint"))
	ref := v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "p"}
	rebuild(t, h, heldBy(podA, addr1, "u1"))
	must(t, h.Releasing(heldBy(podA, addr1, "u1")))
	must(t, h.Owe(heldBy(podA, addr1, "u1")))
	must(t, h.SaveView(ref, &View{Version: "v1", Block: &pool.Block{Pool: ref}}))
	must(t, filepath.WalkDir(h.dir, func(path string, d os.DirEntry, err error) error {
		must(t, err)
		info, err := d.Info()
		must(t, err)
		if info.Mode()&os.ModeSymlink == 0 && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %s", path, info.Mode())
		}
		return nil
	}))
}

// What the API server said when a rebuild began may be old by the time that it is
// entered.
func TestRebuildLeavesLaterEntries(t *testing.T) {
	h := NewHint(t.TempDir())
	later := heldBy(podB, addr1, "u2")
	must(t, h.Set(later))
	_, err := h.Hold("p", addr2, podA)
	must(t, err)
	rebuild(t, h, heldBy(podA, addr1, "u1"), heldBy(podA, addr2, "u3"))
	if got := find(t, h, podB); !slices.Equal(got, []Held{later}) {
		t.Errorf("B holds %v, want %v", got, later)
	}
	if got := find(t, h, podA); !slices.Equal(got, []Held{heldBy(podA, addr1, ""), heldBy(podA, addr2, "u3")}) {
		t.Errorf("A may hold %v", got)
	}
}

// An entry that could not be made while a rebuild was under way is not in it.
func TestRebuildIsNotCompleteWhereAnEntryIsMissing(t *testing.T) {
	h := NewHint(t.TempDir())
	mark, err := h.startRebuild()
	must(t, err)
	h.forget() // of another call, whose disk was full
	must(t, h.Rebuild(mark, []Held{heldBy(podA, addr1, "u1")}))
	if h.Complete() {
		t.Error("complete")
	}
	rebuild(t, h)
	if !h.Complete() {
		t.Error("not complete after another rebuild")
	}
}

// Whatever was written last before the power went may be lost.
func TestHintIsNotCompleteAfterAReboot(t *testing.T) {
	h := NewHint(t.TempDir())
	rebuild(t, h)
	must(t, os.Remove(h.path("claims", completeMark)))
	must(t, os.Symlink("another-boot", h.path("claims", completeMark)))
	if h.Complete() {
		t.Error("complete")
	}
}

// What is no entry keeps no address for ever, and hides no entries.
func TestGarbage(t *testing.T) {
	h := NewHint(t.TempDir())
	rebuild(t, h, heldBy(podA, addr1, "u1"))
	must(t, os.Remove(h.path("claims", "p", addr1.String())))
	addr3, addr4 := netip.MustParseAddr("10.0.0.3"), netip.MustParseAddr("10.0.0.4")
	must(t, os.WriteFile(h.path("claims", "p", addr2.String()), []byte("torn"), 0o600))
	must(t, os.MkdirAll(h.path("claims", "p", addr3.String(), "x"), 0o700))
	must(t, os.Symlink("who/knows", h.path("claims", "p", addr4.String())))
	age(t, h, time.Hour, "claims", "p", addr4.String())
	must(t, os.WriteFile(h.path("claims", "file"), nil, 0o600))
	must(t, os.WriteFile(h.path("claims", "p", "x.tmp1-1"), nil, 0o600))
	must(t, os.WriteFile(h.path("owed"), nil, 0o600))
	must(t, os.WriteFile(h.path("releasing"), nil, 0o600))
	must(t, h.Set(heldBy(podB, addr1, "u1")))
	if got := find(t, h, podB); len(got) != 1 {
		t.Errorf("B holds %v", got)
	}
	must(t, h.Sync("p", time.Now(), func(netip.Addr) bool { return true }, map[netip.Addr]bool{addr1: true}))
	for _, addr := range []netip.Addr{addr2, addr3, addr4} {
		if free, err := h.Hold("p", addr, podA); !free || err != nil {
			t.Errorf("%s is free: %v, %v", addr, free, err)
		}
	}
}
