// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/claim"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// newShared makes pool "p" without blocks.
func newShared(t *testing.T, spec v1alpha1.IPPoolSpec) *cluster {
	t.Helper()
	c := emptyCluster(t)
	rig.IPPool(t, c.client, c.ns, "p", spec)
	return c
}

// lists counts requests that list a window, and those that list everything.
func (c *cluster) lists(requests []string) (n int) {
	_, n = count(requests, "POST", "GET ipallocations")
	return n
}

// fill holds the addresses from first to last, as another node would.
func (c *cluster) fill(t *testing.T, domain, first, last string) {
	t.Helper()
	to := netip.MustParseAddr(last)
	for a := netip.MustParseAddr(first); !to.Less(a); a = a.Next() {
		c.hold(t, domain, a.String(), "other", "of-"+strings.ReplaceAll(a.String(), ":", "-"))
	}
}

func TestSharedPoolNeedsNoBlocks(t *testing.T) {
	c := newShared(t, v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", Gateway: "10.0.0.1"})
	seen := map[string]bool{}
	for _, name := range nodeNames {
		n := newNode(t, c.ns, name)
		for i := range 20 {
			n.restart()
			n.wire.take()
			got := n.mustAdd(t, fmt.Sprint(name, i), ippool("p"))
			if seen[got] || got == "10.0.0.1" {
				t.Errorf("%s was given to %s%d", got, name, i)
			}
			seen[got] = true
			if requests := n.wire.take(); len(requests) > 4 {
				t.Errorf("%d requests: %q", len(requests), requests)
			}
		}
	}
	list, err := c.client.IPAllocations(c.ns).List(t.Context(), metav1.ListOptions{LabelSelector: v1alpha1.LabelWindow + "=10.0.0.0-24"})
	if err != nil || len(list.Items) != len(seen) {
		t.Errorf("%d of %d allocations are in the window, %v", len(list.Items), len(seen), err)
	}
}

// A node in a crowded pool lists a window once for many ADDs, and makes no create that
// collides.
func TestCrowdedSharedPool(t *testing.T) {
	c := newShared(t, v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/25"})
	c.fill(t, "p", "10.0.0.1", "10.0.0.116") // 92 % of 126
	n := newNode(t, c.ns, "a")
	n.mustAdd(t, "first", ippool("p"))
	for i := range 8 {
		n.restart()
		n.wire.take()
		n.mustAdd(t, fmt.Sprint("pod", i), ippool("p"))
		wantRequests(t, n, "GET ippools/p", "POST ipallocations")
	}
	entries, err := os.ReadDir(n.path("claims"))
	if err != nil || len(entries) > 10 {
		t.Errorf("%d entries for 9 addresses: what others hold piles up", len(entries))
	}
	n.mustDel(t, "pod3")
	n.wire.take()
	n.mustAdd(t, "last", ippool("p")) // of the two that are free
	n.mustAdd(t, "very-last", ippool("p"))
	wantRequests(t, n, "GET ippools/p", "POST ipallocations", "GET ippools/p", "POST ipallocations")
	_, err = n.add(t.Context(), "one-too-many", ippool("p"))
	if !errors.Is(err, claim.ErrExhausted) || err.Error() != `no free addresses in the pool "p", poolType "ippool": subnet 10.0.0.0/25 is full, 126 of 126 addresses are held` {
		t.Errorf("error %v", err)
	}
	n.wire.take()
	_, _ = n.add(t.Context(), "one-too-many", ippool("p"))
	wantRequests(t, n, "GET ippools/p")
	n.mustDel(t, "last")
	n.wire.take()
	n.mustAdd(t, "one-too-many", ippool("p"))
	wantRequests(t, n, "GET ippools/p", "POST ipallocations") // it knows what it has released
}

// What was free when a window was listed is believed for some seconds.
func TestWindowGetsOld(t *testing.T) {
	c := newShared(t, v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/26"})
	c.fill(t, "p", "10.0.0.1", "10.0.0.50")
	n := newNode(t, c.ns, "a")
	n.mustAdd(t, "first", ippool("p"))
	w := n.hint().Window(ippool("p")[0])
	if w == nil || !w.Crowded {
		t.Fatalf("window %+v", w)
	}
	w.Listed = time.Now().Add(-2 * time.Minute)
	n.hint().SetWindow(ippool("p")[0], w)
	n.wire.take()
	n.mustAdd(t, "second", ippool("p"))
	wantRequests(t, n, "GET ippools/p", "GET ipallocations", "POST ipallocations")
}

// Allocations without the label, of an administrator or of a pool that had blocks, are not in the
// list of a window. They cost creates, and are seen before the pool counts as full.
func TestAllocationsWithoutWindow(t *testing.T) {
	c := newShared(t, v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/28"})
	for i := 1; i <= 13; i++ {
		c.holdUnlabelled(t, "p", fmt.Sprintf("10.0.0.%d", i))
	}
	n := newNode(t, c.ns, "a")
	if got := n.mustAdd(t, "pod", ippool("p")); got != "10.0.0.14" {
		t.Errorf("got %s", got)
	}
	if _, err := n.add(t.Context(), "one-too-many", ippool("p")); !errors.Is(err, claim.ErrExhausted) {
		t.Errorf("error %v", err)
	}
}

// That a pool is full is proved by its own windows, not by the names of all that is held in the
// cluster; only where much has no label, all names are listed. Nothing is overlooked either way.
func TestProofOfFull(t *testing.T) {
	for _, tc := range []struct {
		name       string
		subnet     string
		usable     []string // ranges
		unlabelled int
		all        bool // all names are listed
	}{
		{"one window", "10.0.0.0/24", []string{"10.0.0.1-10.0.0.62"}, 0, false},
		{"few without a label", "10.0.0.0/24", []string{"10.0.0.1-10.0.0.62"}, 7, false},
		{"many without a label", "10.0.0.0/24", []string{"10.0.0.1-10.0.0.62"}, 50, true},
		{"two windows", "10.0.0.0/16", []string{"10.0.3.250-10.0.3.254", "10.0.9.1-10.0.9.5"}, 0, false},
		{"too many windows", "10.0.0.0/16", manyRanges(65), 0, true},
		{"IPv6", "fd00::/64", []string{"fd00::f0-fd00::110"}, 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newShared(t, v1alpha1.IPPoolSpec{Subnet: tc.subnet, Ranges: tc.usable})
			usable := addresses(tc.usable)
			rig.IPPool(t, c.client, c.ns, "elsewhere", v1alpha1.IPPoolSpec{Subnet: tc.subnet}) // another domain
			c.hold(t, "elsewhere", usable[0], "other", "elsewhere")
			n := newNode(t, c.ns, "a")
			n.cutPages()
			for i, addr := range usable[1:] {
				if i < tc.unlabelled {
					c.holdUnlabelled(t, "p", addr)
				} else {
					c.hold(t, "p", addr, "other", fmt.Sprint("of-", i))
				}
			}
			var names, windows int
			n.wire.setLose(func(req *http.Request) loss {
				switch selector, limited := req.URL.Query().Get("labelSelector"), req.URL.Query().Has("limit"); {
				case req.Method != http.MethodGet || !limited:
				case req.URL.Query().Has("resourceVersion"):
					t.Errorf("a list that may be old proves nothing: %s", req.URL)
				case selector == "":
					names++
				case strings.HasPrefix(selector, v1alpha1.LabelWindow+" in ("):
					windows++
				}
				return nothing
			})
			if got := n.mustAdd(t, "pod", ippool("p")); got != usable[0] {
				t.Errorf("got %s, want %s, which is free", got, usable[0])
			}
			if tc.name == "one window" && names+windows > 0 {
				t.Error("what is free in the window did not show in the list of it")
			}
			names, windows = 0, 0
			if _, err := n.add(t.Context(), "one-too-many", ippool("p")); !errors.Is(err, claim.ErrExhausted) {
				t.Errorf("error %v", err)
			}
			if named := windows > 0; names > 0 != tc.all || !named && !tc.all {
				t.Errorf("%d lists of all names, %d of windows", names, windows)
			}
		})
	}
}

// cutPages makes the API server answer lists in pages of 20: a page of the plugin's would take
// thousands of allocations.
func (n *node) cutPages() {
	next := n.wire.next
	n.wire.next = tripper(func(req *http.Request) (*http.Response, error) {
		if q := req.URL.Query(); q.Has("limit") {
			q.Set("limit", "20")
			req = req.Clone(req.Context())
			req.URL.RawQuery = q.Encode()
		}
		return next.RoundTrip(req)
	})
}

// A list that is begun again, since its second page was asked for too late, has nothing of the first
// attempt: what was released meanwhile is free.
func TestListIsBegunAgain(t *testing.T) {
	c := newShared(t, v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/26"})
	c.fill(t, "p", "10.0.0.1", "10.0.0.62")
	n := newNode(t, c.ns, "a")
	n.cutPages()
	var once sync.Once
	n.wire.setAnswer(func(req *http.Request) (answer *page) {
		if req.Method == http.MethodGet && req.URL.Query().Has("continue") {
			once.Do(func() {
				c.free(t, "p", "10.0.0.1")
				answer = &page{410, "application/json", `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Expired","code":410}`}
			})
		}
		return answer
	})
	if got := n.mustAdd(t, "pod", ippool("p")); got != "10.0.0.1" {
		t.Errorf("got %s", got)
	}
}

// What answers a list with something else has not said that nothing is held, or all: the list is
// asked for again, and while nothing better comes, the API server counts as away.
func TestAnswerThatIsNoList(t *testing.T) {
	for name, answer := range map[string]page{
		"empty":          {200, "application/json", `{}`},
		"status":         {200, "application/json", `{"kind":"Status","apiVersion":"v1","status":"Success"}`},
		"a proxy's page": {200, "text/html", `<html>log in here</html>`},
		"cut":            {200, "application/json", `{"kind":"PartialObjectMetadataList","items":[{"metadata":{"name":"p.10`},
		"nothing":        {200, "application/json", ``},
		"gone":           {410, "application/json", `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Gone","code":410}`},
	} {
		t.Run(name, func(t *testing.T) {
			c := newShared(t, v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/29"})
			c.fill(t, "p", "10.0.0.1", "10.0.0.6")
			n := newNode(t, c.ns, "a")
			answers := 0
			n.wire.setAnswer(func(req *http.Request) *page {
				if req.Method != http.MethodGet || !strings.HasSuffix(req.URL.Path, "/ipallocations") || answers == 0 {
					return nil
				}
				answers--
				return &answer
			})
			answers = 100
			if _, err := n.add(shortly(t), "pod", ippool("p")); !errors.Is(err, ledger.ErrUnavailable) {
				t.Errorf("error %v", err)
			} else if answer.code == 200 && !strings.Contains(err.Error(), "no API server, or its answer was cut") {
				t.Errorf("error %v does not say what answered", err)
			}
			answers = 1
			if _, err := n.add(t.Context(), "pod", ippool("p")); !errors.Is(err, claim.ErrExhausted) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// addresses are those in ranges.
func addresses(ranges []string) (all []string) {
	for _, r := range ranges {
		first, last, _ := strings.Cut(r, "-")
		for a := netip.MustParseAddr(first); !netip.MustParseAddr(last).Less(a); a = a.Next() {
			all = append(all, a.String())
		}
	}
	return all
}

// manyRanges are ranges of one address, each in a window of its own.
func manyRanges(n int) (ranges []string) {
	for i := range n {
		ranges = append(ranges, fmt.Sprintf("10.0.%d.1-10.0.%d.1", i, i))
	}
	return ranges
}

// Forty pods that wait for an address of a pool that is full cost no forty lists.
func TestExhaustedSharedPool(t *testing.T) {
	c := newShared(t, v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/27"})
	c.fill(t, "p", "10.0.0.1", "10.0.0.30")
	n := newNode(t, c.ns, "a")
	var all sync.WaitGroup
	for i := range 40 {
		all.Go(func() {
			if _, err := n.add(t.Context(), fmt.Sprint("pod", i), ippool("p")); !errors.Is(err, claim.ErrExhausted) {
				t.Errorf("error %v", err)
			}
		})
	}
	all.Wait()
	if lists := c.lists(n.wire.take()); lists > 6 {
		t.Errorf("%d lists", lists)
	}
	c.free(t, "p", "10.0.0.7")
	if _, err := n.add(t.Context(), "too-early", ippool("p")); !errors.Is(err, claim.ErrExhausted) {
		t.Errorf("error %v", err)
	}
	lutimes(t, n.path("pools", "ippool.p.full"), time.Now().Add(-11*time.Second))
	old := n.hint().Window(ippool("p")[0])
	old.Listed = old.Listed.Add(-2 * time.Minute)
	n.hint().SetWindow(ippool("p")[0], old)
	if got := n.mustAdd(t, "waits", ippool("p")); got != "10.0.0.7" {
		t.Errorf("got %s", got)
	}
}

// A pool is not believed to be full if this node has released an address while that was proved.
func TestReleaseDuringTheProof(t *testing.T) {
	for name, blocks := range map[string]int{"shared": 0, "block": 6} {
		t.Run(name, func(t *testing.T) {
			c := emptyCluster(t)
			rig.IPPool(t, c.client, c.ns, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/29", PerNodeBlockSize: blocks}, "a")
			n := newNode(t, c.ns, "a")
			for i := range 6 {
				n.mustAdd(t, fmt.Sprint("pod", i), ippool("p"))
			}
			other := newNode(t, c.ns, "a") // another call on this node
			other.dir = n.dir
			other.restart()
			next, once := n.wire.next, sync.Once{}
			n.wire.next = tripper(func(req *http.Request) (*http.Response, error) {
				resp, err := next.RoundTrip(req)
				if q := req.URL.Query(); req.Method == http.MethodGet && q.Has("limit") && q.Has("labelSelector") {
					once.Do(func() { other.mustDel(t, "pod3") })
				}
				return resp, err
			})
			_, _ = n.add(t.Context(), "waits", ippool("p"))
			n.restart()
			n.mustAdd(t, "waits", ippool("p"))
		})
	}
}

// tripper is a connection to the API server.
type tripper func(*http.Request) (*http.Response, error)

func (f tripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// Pods wait for an address of q, which is full, and have one of p before that, from another network
// or the same one. That is released each time, and does not make q be listed again.
func TestWaitingWithAnAddressOfAnotherPool(t *testing.T) {
	for name, blocks := range map[string]int{"shared": 0, "blocks": 6} {
		for _, networks := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s, %d networks", name, networks), func(t *testing.T) {
				c := emptyCluster(t)
				rig.IPPool(t, c.client, c.ns, "p", v1alpha1.IPPoolSpec{Subnet: "10.1.0.0/24", PerNodeBlockSize: blocks}, "a")
				rig.IPPool(t, c.client, c.ns, "q", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/29", PerNodeBlockSize: blocks}, "a")
				n := newNode(t, c.ns, "a")
				for i := range 6 {
					n.mustAdd(t, fmt.Sprint("holds", i), ippool("q"))
				}
				_, _ = n.add(t.Context(), "first", ippool("q"))
				n.mustDel(t, "first")
				n.wire.take()
				for i := range 8 {
					n.restart()
					name, pools := fmt.Sprint("pod", i), ippool("p", "q")
					if networks == 2 {
						n.mustAdd(t, name, ippool("p"))
						name, pools = name+"-net2", ippool("q")
					}
					if _, err := n.add(t.Context(), name, pools); !errors.Is(err, claim.ErrExhausted) {
						t.Errorf("error %v", err)
					}
					n.mustDel(t, fmt.Sprint("pod", i))
				}
				if lists := c.lists(n.wire.take()); lists > 1 {
					t.Errorf("%d lists", lists)
				}
			})
		}
	}
}

// The hint says that this node uses what is free: a list of the node corrects it.
func TestStaleHintInASharedPool(t *testing.T) {
	c := newShared(t, v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/29"})
	n := newNode(t, c.ns, "a")
	var held []string
	for i := range 6 {
		held = append(held, n.mustAdd(t, fmt.Sprint("pod", i), ippool("p")))
	}
	c.free(t, "p", held[2]) // somebody with kubectl
	makeOld(t, n.dir)
	if got := n.mustAdd(t, "pod6", ippool("p")); got != held[2] {
		t.Errorf("got %s, want %s", got, held[2])
	}
}

// An answer that was lost is asked for: the holder may be the attachment itself.
func TestLostAnswerInASharedPool(t *testing.T) {
	for _, what := range []loss{request, response, half} {
		c := newShared(t, v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24"})
		n := newNode(t, c.ns, "a")
		n.wire.setLose(loseFirst(http.MethodPost, what))
		got := n.mustAdd(t, "pod1", ippool("p"))
		c.wantHeld(t, got)
		if again := n.mustAdd(t, "pod1", ippool("p")); again != got {
			t.Errorf("asked twice, got %s and %s", got, again)
		}
		n.mustDel(t, "pod1")
		c.wantHeld(t)
	}
}

func TestLargeSharedPoolIsNeverListed(t *testing.T) {
	c := newShared(t, v1alpha1.IPPoolSpec{Subnet: "fd00::/64", Exclusions: []v1alpha1.ExcludeRange{{StartIP: "fd00::", EndIP: "fd00::ff"}}})
	n := newNode(t, c.ns, "a")
	first := netip.MustParseAddr(n.mustAdd(t, "pod1", ippool("p")))
	second := n.mustAdd(t, "pod2", ippool("p"))
	third := netip.MustParseAddr(second).Next()
	c.hold(t, "p", third.String(), "other", "x")
	c.hold(t, "p", third.Next().String(), "other", "y")
	n.wire.take()
	if got := n.mustAdd(t, "pod3", ippool("p")); got != third.Next().Next().String() {
		t.Errorf("got %s after %s and %s", got, first, second)
	}
	wantRequests(t, n, "GET ippools/p", "POST ipallocations", "POST ipallocations", "POST ipallocations")
	n.loseHint(t)
	n.wire.take()
	n.mustAdd(t, "pod4", ippool("p"))
	if requests := n.wire.take(); c.lists(requests) > 0 {
		t.Errorf("requests %q", requests)
	}
}

func TestOverflow(t *testing.T) {
	c := emptyCluster(t)
	rig.IPPool(t, c.client, c.ns, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/27", PerNodeBlockSize: 4, Overflow: v1alpha1.OverflowSubnet}, "a", "b")
	a, b := newNode(t, c.ns, "a"), newNode(t, c.ns, "b")
	add := func(n *node, name string) netip.Addr {
		t.Helper()
		n.restart()
		return netip.MustParseAddr(n.mustAdd(t, name, ippool("p")))
	}
	var overflowed netip.Addr
	for i := range 26 {
		got := add(a, fmt.Sprint("a", i))
		switch last := int(got.As4()[3]); {
		case i < 4 && last != i+1:
			t.Errorf("ADD %d got %s, want the own block first", i, got)
		case i >= 4 && last < 9:
			t.Errorf("ADD %d got %s, of another node's block, while there is space that is nobody's", i, got)
		case i == 10:
			overflowed = got
		}
	}
	if got := add(b, "b0"); got.As4()[3] < 5 || got.As4()[3] > 8 {
		t.Errorf("node b got %s, want its own block", got)
	}
	for i := range 3 {
		if got := add(a, fmt.Sprint("more", i)); got.As4()[3] < 5 || got.As4()[3] > 8 {
			t.Errorf("got %s, want one of b's block", got)
		}
	}
	for _, n := range []*node{a, b} {
		_, err := n.add(t.Context(), "one-too-many", ippool("p"))
		if !errors.Is(err, claim.ErrExhausted) || !strings.HasSuffix(err.Error(), "4 of 4 addresses are held; and so is the rest of subnet 10.0.0.0/27, 30 of 30 addresses") {
			t.Errorf("error %v", err)
		}
	}
	if again := add(a, "a10"); again != overflowed {
		t.Errorf("asked twice, got %s and %s", overflowed, again)
	}
	a.mustDel(t, "a10")
	a.mustDel(t, "a2")
	a.wire.take()
	if got := add(a, "prefers"); got != netip.MustParseAddr("10.0.0.3") {
		t.Errorf("got %s, want that of the own block", got)
	}
	wantRequests(t, a, "GET ippools/p", "POST ipallocations")
	if got := add(a, "overflows"); got != overflowed {
		t.Errorf("got %s, want %s", got, overflowed)
	}
}

// What another node has held in a node's block is given once it is free, although the
// hint has it as held elsewhere.
func TestOverflowFindsWhatWasElsewhere(t *testing.T) {
	c := emptyCluster(t)
	rig.IPPool(t, c.client, c.ns, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/28", PerNodeBlockSize: 4, Overflow: v1alpha1.OverflowSubnet}, "a", "b")
	a, b := newNode(t, c.ns, "a"), newNode(t, c.ns, "b")
	b.mustAdd(t, "static", ippool("p"), "10.0.0.2")
	for i := range 13 {
		a.mustAdd(t, fmt.Sprint("pod", i), ippool("p"))
	}
	if _, err := a.add(t.Context(), "one-too-many", ippool("p")); !errors.Is(err, claim.ErrExhausted) {
		t.Errorf("error %v", err)
	}
	b.mustDel(t, "static")
	lutimes(t, a.path("pools", "ippool.p@2.full"), time.Now().Add(-11*time.Second))
	if got := a.mustAdd(t, "waits", ippool("p")); got != "10.0.0.2" {
		t.Errorf("got %s", got)
	}
}

// Two pools of one domain that overlap: an address is given once, and an attachment of
// both keeps both.
func TestTwoPoolsOfOneDomain(t *testing.T) {
	c := emptyCluster(t)
	for _, name := range []string{"p", "q"} {
		spec := v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/28"}
		spec.Domain = "net"
		rig.IPPool(t, c.client, c.ns, name, spec)
	}
	n := newNode(t, c.ns, "a")
	got, err := n.add(t.Context(), "both", ippool("p", "q"))
	if err != nil || got[0] == got[1] {
		t.Fatalf("got %v, %v", got, err)
	}
	again, err := n.add(t.Context(), "both", ippool("p", "q"))
	if err != nil || !slices.Equal(again, got) {
		t.Errorf("asked twice, got %v and %v, %v", got, again, err)
	}
	n.loseHint(t)
	if err := n.Check(t.Context(), pod("both"), ippool("p", "q")); err != nil {
		t.Errorf("CHECK without a hint: %v", err)
	}
	for i := range 12 {
		n.mustAdd(t, fmt.Sprint("pod", i), ippool([]string{"p", "q"}[i%2]))
	}
	for _, name := range []string{"p", "q"} {
		if _, err := n.add(t.Context(), "one-too-many", ippool(name)); !errors.Is(err, claim.ErrExhausted) {
			t.Errorf("pool %s: error %v", name, err)
		}
	}
}

// newDomain makes pools "p" and "q" of one domain, "net", with the same addresses.
func newDomain(t *testing.T, spec v1alpha1.IPPoolSpec) *cluster {
	t.Helper()
	c := emptyCluster(t)
	spec.Domain = "net"
	for _, name := range []string{"p", "q"} {
		rig.IPPool(t, c.client, c.ns, name, spec)
	}
	return c
}

// held counts the addresses that containers hold.
func (c *cluster) held(t *testing.T) (n int) {
	t.Helper()
	list, err := c.client.IPAllocations(c.ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range list.Items {
		if list.Items[i].Spec.Held() {
			n++
		}
	}
	return n
}

// What one call has claimed for a pool it does not give for another one: not what an ADD has left
// that was killed between the two, nor what the pod has released.
func TestTwoPoolsOfOneDomainHaveAnAddressEach(t *testing.T) {
	resting := v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/28", PoolAccess: v1alpha1.PoolAccess{ReleaseCooldown: &metav1.Duration{Duration: time.Hour}}}
	distinct := func(t *testing.T, c *cluster, got []string, err error) {
		t.Helper()
		if err != nil || got[0] == got[1] || c.held(t) != 2 {
			t.Errorf("got %v, %v, and %d are held", got, err, c.held(t))
		}
	}
	t.Run("killed between the two", func(t *testing.T) {
		c := newDomain(t, v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/28"})
		n := newNode(t, c.ns, "a")
		n.wire.setLose(loseFirst(http.MethodPost, killedAfter))
		var all sync.WaitGroup
		all.Go(func() { _, _ = n.add(t.Context(), "both", ippool("p", "q")) })
		all.Wait()
		n.restart()
		got, err := n.add(t.Context(), "both", ippool("p", "q"))
		distinct(t, c, got, err)
	})
	t.Run("the pod's next sandbox", func(t *testing.T) {
		c := newDomain(t, resting)
		n := newNode(t, c.ns, "a")
		first, err := n.addAs(t.Context(), "c1", "web", "p", "q")
		distinct(t, c, first, err)
		n.mustDel(t, "c1")
		for _, order := range [][]string{{"p", "q"}, {"q", "p"}} {
			n.restart()
			again, err := n.addAs(t.Context(), "c2", "web", order...)
			distinct(t, c, again, err)
			slices.Sort(again)
			slices.Sort(first)
			if !slices.Equal(first, again) {
				t.Errorf("had %v, then %v", first, again)
			}
		}
	})
	// What was taken from p stays of p: if q took it over, a CHECK would not find q's, and a repeated
	// ADD would claim a third address.
	t.Run("only one has rested", func(t *testing.T) {
		c := newDomain(t, resting)
		n := newNode(t, c.ns, "a")
		if _, err := n.addAs(t.Context(), "c1", "web", "p"); err != nil {
			t.Fatal(err)
		}
		n.mustDel(t, "c1")
		for range 2 {
			n.restart()
			got, err := n.addAs(t.Context(), "c2", "web", "q", "p")
			distinct(t, c, got, err)
		}
		if err := n.Check(t.Context(), pod("c2"), ippool("q", "p")); err != nil {
			t.Errorf("CHECK: %v", err)
		}
	})
	t.Run("without a disk", func(t *testing.T) {
		c := emptyCluster(t)
		spec := v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/28", PerNodeBlockSize: 4}
		spec.Domain = "net"
		for _, name := range []string{"p", "q"} {
			rig.IPPool(t, c.client, c.ns, name, spec, "a")
		}
		n := newNode(t, c.ns, "a")
		n.dir = filepath.Join(n.dir, "file", "hint")
		if err := os.WriteFile(filepath.Dir(n.dir), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		n.restart()
		got, err := n.add(t.Context(), "both", ippool("p", "q"))
		distinct(t, c, got, err)
	})
}
