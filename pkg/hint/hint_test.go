// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package hint

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
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

// Sites as ledger.SiteOf makes them.
const (
	siteA = "0123456789abcdef"
	siteB = "fedcba9876543210"
)

func heldBy(att Attachment, a netip.Addr, uid types.UID) Entry {
	return Entry{Attachment: att, Domain: "p", Address: a, UID: uid}
}

func newHint(t testing.TB) *Hint {
	return Open(t.TempDir(), siteA, "ns", slog.New(slog.DiscardHandler))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func rebuild(t *testing.T, h *Hint, all ...Entry) {
	t.Helper()
	at := time.Now()
	r := h.Rebuild(t.Context(), at)
	if r == nil {
		t.Fatal("somebody else has rebuilt it")
	}
	defer r.End()
	r.Enter(at, all)
}

func find(t *testing.T, h *Hint, att Attachment) []Entry {
	t.Helper()
	found, _ := h.Holding(att)
	slices.SortFunc(found, func(a, b Entry) int { return a.Address.Compare(b.Address) })
	return found
}

func due(h *Hint) (out []Entry) {
	releases, _ := h.Pending()
	for _, r := range releases {
		if r.Due {
			out = append(out, r.Entry)
		}
	}
	return out
}

func pending(h *Hint) (out []Entry) {
	releases, _ := h.Pending()
	for _, r := range releases {
		out = append(out, r.Entry)
	}
	return out
}

// age makes an entry of the hint as old as if d had passed.
func age(t *testing.T, h *Hint, d time.Duration, parts ...string) {
	t.Helper()
	at := time.Now().Add(-d)
	tv := unix.NsecToTimeval(at.UnixNano())
	must(t, unix.Lutimes(h.path(parts...), []unix.Timeval{tv, tv})) // of the link itself
}

func TestAnEntryIsWonByOne(t *testing.T) {
	h := newHint(t)
	var won atomic.Int64
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if taken := h.Claiming(heldBy(Attachment{ContainerID: string(rune('a' + i)), Interface: "net1"}, addr1, "")); !taken {
				won.Add(1)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d of 50 have the entry, want 1", won.Load())
	}
}

func TestHoldingSeesAllPoolsAndNobodyElses(t *testing.T) {
	h := newHint(t)
	h.Claimed(heldBy(podA, addr1, "u1"))
	h.Claimed(Entry{Attachment: podA, Domain: "q", Address: addr6, UID: "u2"})
	h.Claimed(heldBy(podB, addr2, "u3"))
	h.Elsewhere(heldBy(podB, netip.MustParseAddr("10.0.0.3"), ""))
	got := find(t, h, podA)
	want := []Entry{heldBy(podA, addr1, "u1"), {Attachment: podA, Domain: "q", Address: addr6, UID: "u2"}}
	if !slices.Equal(got, want) {
		t.Errorf("Holding = %v, want %v", got, want)
	}
	if got := find(t, h, Attachment{ContainerID: "aaaa", Interface: "net2"}); len(got) != 0 {
		t.Errorf("another interface of the container holds %v", got)
	}
}

// One namespace of one cluster knows nothing of another's claims, and says so.
func TestHintsOfNamespacesAndClustersAreApart(t *testing.T) {
	root, log := t.TempDir(), slog.New(slog.DiscardHandler)
	h := Open(root, siteA, "ns", log)
	rebuild(t, h, heldBy(podA, addr1, "u1"))
	for _, other := range []*Hint{Open(root, siteA, "other", log), Open(root, siteB, "ns", log), Open(root, siteA, "../ns", log)} {
		if found, sure := other.Holding(podA); sure || len(found) > 0 {
			t.Errorf("%s: holds %v, sure %v", other.dir, found, sure)
		}
		other.ReleasingAttachment(podB)
	}
	if all := All(root, log); len(all) != 4 {
		t.Errorf("%d hints, want 4", len(all))
	}
	outside, _ := filepath.Glob(filepath.Join(root, "*"))
	if len(outside) != 4 {
		t.Errorf("below the directory: %v", outside)
	}
}

func TestRegisteredDirectoriesAreFound(t *testing.T) {
	root, dir, log := t.TempDir(), filepath.Join(t.TempDir(), "[x]*"), slog.New(slog.DiscardHandler)
	Register(root, dir, log)
	Register(root, dir, log)
	h := Open(dir, siteA, "ns", log)
	h.Claimed(heldBy(podA, addr1, "u1"))
	all := All(root, log)
	if len(all) != 1 || !all[0].Same(h) {
		t.Fatalf("found %v", all)
	}
	if got := find(t, all[0], podA); len(got) != 1 {
		t.Errorf("holds %v", got)
	}
}

// An entry that has become another's since it was read must survive.
func TestNotClaimedLeavesWhatHasChanged(t *testing.T) {
	h := newHint(t)
	h.Claimed(heldBy(podB, addr1, "u2"))
	h.NotClaimed(heldBy(podA, addr1, "u1"))
	h.Elsewhere(heldBy(podA, addr1, ""))
	if got := find(t, h, podB); len(got) != 1 {
		t.Errorf("the new holder's entry is gone: %v", got)
	}
}

// A process that was killed after its create must be found by the DEL, also if it
// asked for an address that another process had entered.
func TestClaimingRequested(t *testing.T) {
	h := newHint(t)
	if taken := h.Claiming(heldBy(podA, addr1, "")); taken {
		t.Fatal("taken")
	}
	b := heldBy(podB, addr1, "")
	h.ClaimingRequested(b)
	h.ClaimingRequested(b) // asked again
	if got := find(t, h, podB); !slices.Equal(got, []Entry{b}) {
		t.Errorf("B may hold %v", got)
	}
	if len(find(t, h, podA)) != 1 {
		t.Error("A's entry is gone")
	}
	h.Claimed(heldBy(podB, addr1, "u2"))
	if got := find(t, h, podB); !slices.Equal(got, []Entry{heldBy(podB, addr1, "u2")}) {
		t.Errorf("B holds %v", got)
	}
	h.ClaimingRequested(b)
	if !h.Releasing(heldBy(podB, addr1, "u2")) || !h.Released(heldBy(podB, addr1, "u2")) {
		t.Error("not noted")
	}
	if got := find(t, h, podB); len(got) != 0 {
		t.Errorf("released, and yet B may hold %v", got)
	}
}

func TestRelease(t *testing.T) {
	for _, e := range []Entry{heldBy(podA, addr1, "u1"), heldBy(podA, addr1, ""), heldBy(podA, addr6, "u1"), heldBy(podA, addr6, "")} {
		h := newHint(t)
		h.Claimed(e)
		if !h.Releasing(e) || !h.IsPending(e) {
			t.Fatal("not noted")
		}
		if got := find(t, h, podA); !slices.Equal(got, []Entry{e}) {
			t.Errorf("a DEL that is asked for again finds %v", got)
		}
		if got := h.HoldingIn("p", podA); len(got) != 0 {
			t.Errorf("an ADD would use an address that is being released: %v", got)
		}
		if d := due(h); len(d) != 0 {
			t.Errorf("another process would release too: %v", d)
		}
		for range 2 {
			if !h.NotReleased(e) {
				t.Error("not noted")
			}
		}
		if d := due(h); !slices.Equal(d, []Entry{e}) {
			t.Errorf("due: %v, want %v", d, e)
		}
		for range 2 { // another process was faster
			if !h.Released(e) {
				t.Error("the note is there")
			}
		}
		if d := pending(h); len(d) != 0 || h.IsPending(e) {
			t.Errorf("pending after the release: %v", d)
		}
	}
}

// If writes fail while reads work, ADD after ADD fails on one address. What is noted
// of them is bounded.
func TestUnansweredCreatesOfOneAddressAreOneNote(t *testing.T) {
	h := newHint(t)
	var last Entry
	for i := range 3 * maxUnanswered {
		last = heldBy(Attachment{ContainerID: fmt.Sprintf("%064d", i), Interface: "net1"}, addr1, "")
		if !h.Releasing(last) || !h.NotReleased(last) {
			t.Fatal("not noted")
		}
	}
	notes, err := os.ReadDir(h.path("releases"))
	must(t, err)
	if len(notes) != 1 || len(pending(h)) != maxUnanswered || !h.IsPending(last) {
		t.Errorf("%d notes about %d attachments", len(notes), len(pending(h)))
	}
	for _, e := range pending(h) {
		h.Released(e)
	}
	if notes, err = os.ReadDir(h.path("releases")); err != nil || len(notes) != 0 {
		t.Errorf("%v, %v", notes, err)
	}
}

// A note names interfaces as they are, whatever CNI allows in a name.
func TestUnansweredCreatesOfOddInterfaces(t *testing.T) {
	h := newHint(t)
	var all []Entry
	for _, name := range []string{"net1", "a;b", ";", "a@b", "é", `a"b`, "..x"} {
		e := heldBy(Attachment{ContainerID: "aaaa", Interface: name}, addr1, "")
		if !h.Releasing(e) || !h.IsPending(e) {
			t.Errorf("%q: the release is not noted", name)
		}
		all = append(all, e)
	}
	if got := pending(h); !slices.Equal(got, all) {
		t.Errorf("pending: %v, want %v", got, all)
	}
	for _, e := range all {
		h.Released(e)
	}
	if got := pending(h); len(got) > 0 {
		t.Errorf("after they were released: %v", got)
	}
}

// A node is upgraded, and rolled back, with notes on it.
func TestUnansweredCreatesOfAnEarlierVersion(t *testing.T) {
	const text = "1700000000;aaaa/net1;bbbb/net1"
	since, all := parseUnansweredText(text)
	if want := []Attachment{podA, podB}; since.Unix() != 1700000000 || !slices.Equal(all, want) {
		t.Errorf("since %v: %v", since, all)
	}
	if got := unansweredText(since, all); got != text {
		t.Errorf("written: %q", got)
	}
}

// What a DEL could not find out is found by whoever makes the hint complete.
func TestReleasingAttachment(t *testing.T) {
	h := newHint(t)
	for range 2 {
		if !h.ReleasingAttachment(podA) || !h.IsReleasingAttachment(podA) || h.IsReleasingAttachment(podB) {
			t.Fatal("not noted")
		}
	}
	h.ResolveReleases() // does not know yet
	if !h.IsReleasingAttachment(podA) {
		t.Fatal("forgotten")
	}
	rebuild(t, h, heldBy(podA, addr1, "u1"), heldBy(podB, addr2, "u2"), heldBy(podA, addr6, "u3"))
	got := due(h)
	slices.SortFunc(got, func(a, b Entry) int { return a.Address.Compare(b.Address) })
	if want := []Entry{heldBy(podA, addr1, "u1"), heldBy(podA, addr6, "u3")}; !slices.Equal(got, want) || h.IsReleasingAttachment(podA) {
		t.Errorf("due: %v, want %v", got, want)
	}
}

// A file's name has what it is about, and is not too long for one.
func TestFileNames(t *testing.T) {
	long := strings.Repeat("p", 213)
	for _, e := range []Entry{
		heldBy(podA, addr1, "u1"), heldBy(podA, addr6, "u1"),
		{Attachment: podA, Domain: "p6.fd00", Address: addr6}, {Attachment: podA, Domain: "10.0.0", Address: addr1},
		{Attachment: podA, Domain: long, Address: netip.MustParseAddr("fd00:1234:1234:1234:1234:1234:1234:1234")},
		{Attachment: podA, Domain: long, Address: addr1},
	} {
		for _, name := range []string{e.fileName(), e.secondName(), e.WithoutUID().secondName(), e.WithoutUID().noteName()} {
			got, _, err := parseFileName(name)
			if err != nil || got.Domain != e.Domain || got.Address != e.Address || len(name) > 255 {
				t.Errorf("%q (%d) is %q, %s, %v", name, len(name), got.Domain, got.Address, err)
			}
		}
	}
	for _, name := range []string{"", "@", "x", ".", strings.Repeat("0", 32), "." + strings.Repeat("0", 32), "p." + strings.Repeat("0", 31)} {
		if e, _, err := parseFileName(name); err == nil {
			t.Errorf("%q is %q, %s", name, e.Domain, e.Address)
		}
	}
}

// A process that was killed while it released must not take the address along.
func TestReleaseOfADeadProcessIsDue(t *testing.T) {
	h := newHint(t)
	e := heldBy(podA, addr6, "u1")
	h.Claimed(e)
	h.Releasing(e)
	age(t, h, InFlight+time.Second, "releases", e.noteName())
	if d := due(h); !slices.Equal(d, []Entry{e}) {
		t.Errorf("due: %v, want %v", d, e)
	}
}

func TestRebuild(t *testing.T) {
	claimed := func(h *Hint) { h.Claimed(heldBy(podA, addr1, "u1")) }
	claiming := func(h *Hint) { h.Claiming(heldBy(podA, addr1, "")) }
	own := []Entry{heldBy(podA, addr1, "u1")}
	for _, tc := range []struct {
		name   string
		entry  func(h *Hint)
		old    time.Duration
		listed []Entry
		stays  bool
	}{
		{"claim that is listed", claimed, time.Hour, own, true},
		{"claim that is gone", claimed, time.Hour, nil, false},
		{"claim newer than the list", claimed, 0, nil, true},
		{"claim from the future, of which there is none", claimed, -time.Hour, nil, false},
		{"claim about to be made", claiming, time.Minute, nil, true},
		{"claim of a process that died", claiming, InFlight + time.Second, nil, false},
		{"claim made under a clock that is ahead", claiming, -time.Hour, nil, false},
		{"elsewhere", func(h *Hint) { h.Elsewhere(heldBy(podA, addr1, "")) }, 0, nil, true},
		{"elsewhere, and its own", func(h *Hint) { h.Elsewhere(heldBy(podA, addr1, "")) }, 0, own, true},
		{"its own, of which the hint knows nothing", func(*Hint) {}, 0, own, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHint(t)
			rebuild(t, h)
			tc.entry(h)
			file := heldBy(podA, addr1, "").fileName()
			if _, err := os.Lstat(h.path("claims", file)); err == nil {
				age(t, h, tc.old, "claims", file)
			}
			rebuild(t, h, tc.listed...)
			if _, err := os.Lstat(h.path("claims", file)); (err == nil) != tc.stays {
				t.Errorf("entry is there: %v, want %v", err == nil, tc.stays)
			}
			if tc.listed != nil && len(find(t, h, podA)) != 1 {
				t.Errorf("holds %v", find(t, h, podA))
			}
			if !h.Complete() {
				t.Error("not complete")
			}
		})
	}
}

func TestRebuildMakesCompleteAndLeavesReleasesAlone(t *testing.T) {
	h := newHint(t)
	if h.Complete() {
		t.Fatal("a directory that is not there is complete")
	}
	released := heldBy(podB, addr2, "u2")
	h.Releasing(released)
	rebuild(t, h, heldBy(podA, addr1, "u1"), released)
	if !h.Complete() {
		t.Error("not complete after a rebuild")
	}
	if len(find(t, h, podA)) != 1 || len(h.HoldingIn("p", podB)) != 0 {
		t.Errorf("A holds %v, B holds %v", find(t, h, podA), h.HoldingIn("p", podB))
	}
}

// One call lists, the others wait for it and need not list.
func TestOneRebuildsAndTheOthersWait(t *testing.T) {
	h := newHint(t)
	since := time.Now()
	first := h.Rebuild(t.Context(), time.Time{})
	others := make(chan *Rebuilding)
	for range 5 {
		go func() { others <- h.Rebuild(t.Context(), time.Time{}) }()
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if r := h.Rebuild(over, time.Time{}); r != nil {
		t.Error("two rebuild at once")
	}
	first.Enter(since, nil)
	first.End()
	for range 5 {
		if r := <-others; r != nil {
			t.Error("another one rebuilds, though the hint is complete")
			r.End()
		}
	}
	again := h.Rebuild(t.Context(), time.Now().Add(time.Second)) // wants a later list
	if again == nil {
		t.Fatal("a list of before is taken for a later one")
	}
	again.End()
	if !h.Complete() {
		t.Error("a rebuild that failed has made the hint forget")
	}
}

// Whoever empties a directory, or removes one, must not leave a hint that believes
// to be complete.
func TestEmptiedHintIsNotComplete(t *testing.T) {
	for _, glob := range []string{"claims/*", "claims", "*", ""} {
		h := newHint(t)
		rebuild(t, h, heldBy(podA, addr1, "u1"))
		paths, err := filepath.Glob(h.path(glob))
		must(t, err)
		for _, path := range paths {
			must(t, os.RemoveAll(path))
		}
		if _, sure := h.Holding(podA); sure {
			t.Errorf("rm -rf %s: sure", glob)
		}
	}
}

// What the version before has left in the directory is released by attachment, and
// removed.
func TestFormerHintIsAdopted(t *testing.T) {
	h := newHint(t)
	for path, text := range map[string]string{
		"owed/p.10.0.0.1@12345678": "aaaa/net1/u1", "releasing/p.10.0.0.2@12345678": "bbbb/net1/", "claiming/p.10.0.0.3@12345678": "cccc/net1/",
		"claims/p/10.0.0.3": "cccc/net1/u3", "claims/.complete": bootID(), "pools/ippool.p.last": "10.0.0.3",
	} {
		path = filepath.Join(h.root, path)
		must(t, os.MkdirAll(filepath.Dir(path), 0o700))
		must(t, os.Symlink(text, path))
	}
	rebuild(t, h, heldBy(podA, addr1, "u1"), heldBy(Attachment{"cccc", "net1"}, netip.MustParseAddr("10.0.0.3"), "u3"))
	if got := due(h); !slices.Equal(got, []Entry{heldBy(podA, addr1, "u1")}) {
		t.Errorf("due: %v", got)
	}
	left, err := os.ReadDir(h.root)
	must(t, err)
	if len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}

// The data directory may be one that others use, too: what is theirs is neither read nor removed,
// however old it is.
func TestWhatOthersKeepBesideTheHintStays(t *testing.T) {
	h := newHint(t)
	foreign := []string{
		"backup@2024/db/f", "pgsql@14/f", "UPPER@" + siteA + "/claims/f", "ns@" + strings.ToUpper("abcdef0123456789") + "/claims/f", "ns@" + siteA + "0/f",
		// In a directory that has the name of a hint.
		"other@" + siteA + "/f", "other@" + siteA + "/db/f", "other@" + siteA + "/claims/f", "other@" + siteA + "/claims/db/f", "other@" + siteA + "/pools/f",
		"other@" + siteA + "/lock/f",
		// In directories that the first version had.
		"claims/db/f", "claims/f", "owed/f", "pools/f", "pools/db/f", "lock/f",
	}
	for _, name := range foreign {
		path := filepath.Join(h.root, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o700))
		must(t, os.WriteFile(path, []byte("x"), 0o600))
		must(t, os.Symlink("f", filepath.Join(filepath.Dir(path), "link")))
	}
	other := Open(h.root, siteA, "other", h.log)
	other.Claimed(heldBy(podA, addr1, "u1"))
	gone := Open(h.root, siteA, "gone", h.log) // with everything that a hint may have
	gone.Claimed(heldBy(podA, addr1, "u1"))
	gone.Releasing(heldBy(podA, addr2, "u2"))
	gone.Released(heldBy(podA, addr1, "u1"))
	gone.SetFull(v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "p"}, "v1", "")
	dirs, err := filepath.Glob(filepath.Join(h.root, "*"))
	must(t, err)
	for _, dir := range dirs {
		for _, part := range []string{"", "claims", "releases"} {
			if at := filepath.Join(dir, part); isDir(at) {
				must(t, os.Chtimes(at, time.Unix(0, 0), time.Unix(0, 0)))
			}
		}
	}
	rebuild(t, h)
	if !h.Complete() {
		t.Error("other people's files keep the hint from being complete")
	}
	for _, name := range foreign {
		path := filepath.Join(h.root, name)
		if data, err := os.ReadFile(path); err != nil || string(data) != "x" {
			t.Errorf("%s: %q, %v", name, data, err)
		}
		if _, err := os.Lstat(filepath.Join(filepath.Dir(path), "link")); err != nil {
			t.Error(err)
		}
	}
	if found := find(t, other, podA); len(found) > 0 {
		t.Errorf("of a hint that was long not used there is still %v", found)
	}
	left, _ := filepath.Glob(filepath.Join(gone.dir, "*", "*"))
	if _, err := os.Lstat(gone.dir); err == nil {
		t.Errorf("left of a hint that was long not used: %v", left)
	}
}

// Nor what looks as if the first version had left it, but has nothing of it.
func TestEmptyFilesOfOthersStay(t *testing.T) {
	h := newHint(t)
	names := []string{"releasing", "claims", "pools"}
	for _, name := range names {
		must(t, os.MkdirAll(filepath.Join(h.root, name), 0o700))
	}
	must(t, os.WriteFile(filepath.Join(h.root, "lock"), nil, 0o600))
	rebuild(t, h)
	for _, name := range append(names, "lock") {
		if _, err := os.Lstat(filepath.Join(h.root, name)); err != nil {
			t.Error(err)
		}
	}
	if !h.Complete() {
		t.Error("they keep the hint from being complete")
	}
}

func TestTemporaryFilesOfDeadProcessesAreRemoved(t *testing.T) {
	h := newHint(t)
	rebuild(t, h)
	must(t, os.Symlink("x", h.path("claims", ".tmp4711-1")))
	age(t, h, time.Hour, "claims", ".tmp4711-1")
	must(t, os.Symlink("x", h.path("claims", ".tmp4711-2")))
	must(t, os.Symlink("x", h.path("claims", rebuildingMark+"4711-2")))
	age(t, h, time.Hour, "claims", rebuildingMark+"4711-2")
	rebuild(t, h)
	left, err := filepath.Glob(h.path("claims", "[.@]*"))
	must(t, err)
	if want := []string{h.path("claims", ".tmp4711-2"), h.path("claims", completeMark)}; !slices.Equal(left, want) {
		t.Errorf("left: %v, want %v", left, want)
	}
}

// Nothing stays for ever of pools, namespaces and clusters that are gone.
func TestWhatIsGoneIsForgotten(t *testing.T) {
	h := newHint(t)
	old := func(parts ...string) { age(t, h, 2*staleAge, parts...) }
	gone, kept := v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "gone"}, v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "kept"}
	h.SetLast(gone, addr1)
	h.SetLast(kept, addr1)
	old("pools", "ippool.gone.last")
	others := map[string]func(*Hint){
		"empty": func(o *Hint) { rebuild(t, o) },
		"old":   func(o *Hint) { o.Claimed(heldBy(podA, addr1, "u1")) },
		"young": func(o *Hint) { rebuild(t, o) },
	}
	for ns, f := range others {
		o := Open(h.root, siteA, ns, h.log)
		f(o)
		for _, part := range []string{"claims", "releases", ""} {
			if _, err := os.Lstat(o.path(part)); err == nil && ns != "young" {
				age(t, o, 2*staleAge, part)
			}
		}
	}
	rebuild(t, h)
	if h.Last(gone).IsValid() || !h.Last(kept).IsValid() {
		t.Errorf("last of a pool long not used: %s, of the other: %s", h.Last(gone), h.Last(kept))
	}
	var left []string
	for _, o := range All(h.root, h.log) {
		left = append(left, o.Namespace)
	}
	slices.Sort(left)
	if want := []string{"ns", "young"}; !slices.Equal(left, want) {
		t.Errorf("left: %v, want %v", left, want)
	}
}

func TestPoolViews(t *testing.T) {
	h := newHint(t)
	ref := v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "p"}
	if h.View(ref) != nil || h.Last(ref).IsValid() {
		t.Error("a new hint knows of a pool")
	}
	h.SetView(ref, "v1", &pool.Block{Pool: ref, Domain: ref.Name, Subnet: netip.MustParsePrefix("10.0.0.0/8")})
	h.SetLast(ref, addr1)
	if v := h.View(ref); v == nil || v.Version != "v1" || v.Block.Subnet.String() != "10.0.0.0/8" {
		t.Errorf("view = %+v", v)
	}
	if h.Last(ref) != addr1 {
		t.Errorf("last = %s", h.Last(ref))
	}
	other := v1alpha1.PoolReference{Kind: v1alpha1.PoolKindCIDRPool, Name: "p"}
	if h.View(other) != nil || h.Last(other).IsValid() {
		t.Error("two kinds of one name share a view")
	}
	whole, err := os.ReadFile(h.path("pools", "ippool.p.json"))
	must(t, err)
	format := func(n int) string { return fmt.Sprintf(`"format":%d,`, n) }
	for name, text := range map[string]string{
		"half a file":     string(whole[:len(whole)/2]),
		"earlier format":  strings.Replace(string(whole), format(viewFormat), format(viewFormat-1), 1),
		"without format":  strings.Replace(string(whole), format(viewFormat), ``, 1),
		"of another pool": strings.Replace(string(whole), `"name":"p"`, `"name":"q"`, 1),
	} {
		must(t, os.WriteFile(h.path("pools", "ippool.p.json"), []byte(text), 0o600))
		if h.View(ref) != nil {
			t.Errorf("%s was read as a view", name)
		}
	}
	h.DropPool(ref)
	if left, _ := os.ReadDir(h.path("pools")); len(left) != 0 {
		t.Errorf("a pool that is gone has left %v", left)
	}
}

// Whoever takes an address over releases nothing.
func TestTakenOverIsNotFree(t *testing.T) {
	h := newHint(t)
	ref := v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "p"}
	e := heldBy(podA, addr1, "u1")
	h.Releasing(e)
	h.SetFull(ref, "v1", h.Freed("p"))
	h.TakenOver(e)
	if notes, _ := h.Pending(); len(notes) > 0 || !h.Full(ref, "p", "v1", 0) {
		t.Errorf("noted are %v, full %t", notes, h.Full(ref, "p", "v1", 0))
	}
}

// A space that is full is so until something is released in its domain, or a while has passed, or
// the pool has changed.
func TestFull(t *testing.T) {
	ref := v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "p"}
	h := newHint(t)
	if h.Full(ref, "p", "v1", 0) {
		t.Error("full from the start")
	}
	began := h.Freed("p")
	h.SetFull(ref, "v1", began)
	elsewhere := heldBy(podA, addr1, "u1")
	elsewhere.Domain = "other"
	h.Released(elsewhere)
	if !h.Full(ref, "p", "v1", 0) || h.Full(ref, "p", "v2", 0) {
		t.Error("want it full in this version, whatever is released in another domain")
	}
	h.Released(heldBy(podA, addr1, "u1"))
	if h.Full(ref, "p", "v1", 0) {
		t.Error("full after a release")
	}
	h.SetFull(ref, "v1", began)
	if h.Full(ref, "p", "v1", 0) {
		t.Error("full by a proof that began before a release")
	}
	h.SetFull(ref, "v1", h.Freed("p"))
	age(t, h, fullTime+time.Second, "pools", "ippool.p.full")
	if h.Full(ref, "p", "v1", 0) {
		t.Error("full for ever")
	}
}

func TestNothingIsReadableByOthers(t *testing.T) {
	h := newHint(t)
	ref := v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "p"}
	rebuild(t, h, heldBy(podA, addr1, "u1"))
	h.Releasing(heldBy(podA, addr1, "u1"))
	h.NotReleased(heldBy(podA, addr1, "u1"))
	h.SetView(ref, "v1", &pool.Block{Pool: ref})
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
	h := newHint(t)
	later := heldBy(podB, addr1, "u2")
	h.Claimed(later)
	h.Claiming(heldBy(podA, addr2, ""))
	rebuild(t, h, heldBy(podA, addr1, "u1"), heldBy(podA, addr2, "u3"))
	if got := find(t, h, podB); !slices.Equal(got, []Entry{later}) {
		t.Errorf("B holds %v, want %v", got, later)
	}
	if got := find(t, h, podA); !slices.Equal(got, []Entry{heldBy(podA, addr1, ""), heldBy(podA, addr2, "u3")}) {
		t.Errorf("A may hold %v", got)
	}
}

// An entry that could not be made while a rebuild was under way is not in it.
func TestRebuildIsNotCompleteIfAnEntryIsMissing(t *testing.T) {
	h := newHint(t)
	r := h.Rebuild(t.Context(), time.Time{})
	h.Forget() // of another call, whose disk was full
	r.Enter(time.Now(), []Entry{heldBy(podA, addr1, "u1")})
	r.End()
	if h.Complete() {
		t.Error("complete")
	}
	rebuild(t, h)
	if !h.Complete() {
		t.Error("not complete after another rebuild")
	}
}

// Whatever was written last before the power went may be lost; and another format
// means something else.
func TestHintIsNotCompleteAfterARebootOrInAnotherFormat(t *testing.T) {
	for _, mark := range []string{format + "/another-boot", "0/" + bootID(), bootID()} {
		h := newHint(t)
		rebuild(t, h)
		must(t, os.Remove(h.path("claims", completeMark)))
		must(t, os.Symlink(mark, h.path("claims", completeMark)))
		if h.Complete() {
			t.Errorf("complete by %s", mark)
		}
	}
}

// What is no entry keeps no address for ever, and hides no entries.
func TestGarbage(t *testing.T) {
	h := newHint(t)
	rebuild(t, h, heldBy(podA, addr1, "u1"))
	at := func(a string) string { return heldBy(podA, netip.MustParseAddr(a), "").fileName() }
	must(t, os.Remove(h.path("claims", at("10.0.0.1"))))
	must(t, os.WriteFile(h.path("claims", at("10.0.0.2")), []byte("torn"), 0o600))
	must(t, os.MkdirAll(h.path("claims", at("10.0.0.3"), "x"), 0o700))
	must(t, os.Symlink("who/knows", h.path("claims", at("10.0.0.4"))))
	must(t, os.WriteFile(h.path("claims", "file"), nil, 0o600))
	must(t, os.WriteFile(h.path("releases"), nil, 0o600))
	h.Claimed(heldBy(podB, addr1, "u1"))
	if got := find(t, h, podB); len(got) != 1 {
		t.Errorf("B holds %v", got)
	}
	rebuild(t, h, heldBy(podB, addr1, "u1"))
	for _, a := range []string{"10.0.0.2", "10.0.0.3", "10.0.0.4"} {
		if h.Claiming(heldBy(podA, netip.MustParseAddr(a), "")) {
			t.Errorf("%s is taken", a)
		}
	}
}

// What nv-ipam has given and nobody has adopted is known as long as the node is
// closed, however old that is.
func TestForeign(t *testing.T) {
	const store = `{"version":1,"pools":{
		"p":{"entries":{"a":{"container_id":"aaaa","interface_name":"net1","ip_address":"10.0.0.1"},"x":{"ip_address":"none"}}},
		"cidrpool/q":{"entries":{"b":{"container_id":"bbbb","interface_name":"net1","ip_address":"10.0.0.2"}}}}}`
	entryA, entryB := NewForeignEntry("p", addr1, podA), NewForeignEntry("q", addr2, podB)
	for _, tc := range []struct {
		name    string
		store   string // what is in the store by now; none where it is empty
		foreign Foreign
		want    []string
	}{
		{"nothing is given", "", Foreign{}, nil},
		{"as it was read", "", Foreign{Held: []ForeignEntry{entryA, NewForeignEntry("p", addr6, podA)}}, []string{"p.10.0.0.1", v1alpha1.AllocationName("p", addr6)}},
		{"given since then", store, Foreign{}, []string{"p.10.0.0.1", "q.10.0.0.2"}},
		{"adopted", store, Foreign{Settled: []ForeignEntry{entryA}}, []string{"q.10.0.0.2"}},
		{"adopted, and given again since", store, Foreign{Settled: []ForeignEntry{NewForeignEntry("p", addr1, podB), entryB}}, []string{"p.10.0.0.1"}},
		{"half a store", store[:60], Foreign{Held: []ForeignEntry{entryB}}, []string{"q.10.0.0.2"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			h := Open(dir, siteA, "ns", slog.New(slog.DiscardHandler))
			if tc.store != "" {
				must(t, os.WriteFile(filepath.Join(dir, "store"), []byte(tc.store), 0o600))
			}
			if got := h.Foreign(); got != nil {
				t.Errorf("open: %v", got)
			}
			tc.foreign.Store = filepath.Join(dir, "store")
			must(t, h.PauseADDs(tc.foreign))
			age(t, h, 24*time.Hour, "..", pausedFile)
			// The host has the directory under another path than who has closed it.
			moved := filepath.Join(t.TempDir(), "moved")
			must(t, os.Rename(dir, moved))
			h = Open(moved, siteA, "ns", h.log)
			if got := slices.Sorted(maps.Keys(h.Foreign())); !slices.Equal(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			// A file that says nothing stands for all that the store has.
			must(t, os.WriteFile(filepath.Join(moved, pausedFile), nil, 0o600))
			if got := len(h.Foreign()); tc.store == store && got != 2 {
				t.Errorf("%d of an empty file, want 2", got)
			}
			must(t, h.ResumeADDs())
			if got := h.Foreign(); got != nil {
				t.Errorf("open again: %v", got)
			}
		})
	}
	h := newHint(t)
	elsewhere := filepath.Join(t.TempDir(), "store")
	must(t, os.WriteFile(elsewhere, []byte(store), 0o600))
	must(t, h.PauseADDs(Foreign{Store: elsewhere}))
	if got := h.Foreign(); len(got) != 2 {
		t.Errorf("a store elsewhere: %v", got)
	}
}
