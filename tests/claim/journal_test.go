// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/claim"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
)

// page is what is answered in the API server's place.
type page struct {
	code              int
	contentType, body string
}

func (p *page) response(req *http.Request) *http.Response {
	return &http.Response{
		StatusCode: p.code, Header: http.Header{"Content-Type": {p.contentType}}, Body: io.NopCloser(strings.NewReader(p.body)),
		ContentLength: int64(len(p.body)), Request: req, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
}

// forbidden is the API server's refusal.
var forbidden = &page{http.StatusForbidden, "application/json",
	`{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","message":"no","code":403}`}

// refuse answers a method for the names that bad selects.
func refuse(method string, bad func(name string) bool) func(*http.Request) *page {
	return func(req *http.Request) *page {
		if req.Method != method || !bad(req.URL.Path[strings.LastIndexByte(req.URL.Path, '/')+1:]) {
			return nil
		}
		return forbidden
	}
}

func all(string) bool { return true }

// owed returns what a node owes.
func (n *node) owed(t *testing.T) (out []hint.Entry) {
	t.Helper()
	return due(n.hint())
}

// due returns the releases that any call may carry out.
func due(h *hint.Hint) (out []hint.Entry) {
	releases, _ := h.Pending()
	for _, r := range releases {
		if r.Due {
			out = append(out, r.Entry)
		}
	}
	return out
}

// settled makes calls until the node owes no more than some, and fails when that
// takes too many.
func (n *node) settled(t *testing.T, some, calls int) {
	t.Helper()
	for i := 0; len(n.owed(t)) > some && i < calls; i++ {
		n.restart()
		n.mustDel(t, "never-added")
	}
	if len(n.owed(t)) <= some {
		return
	}
	t.Fatalf("after %d calls %d releases are owed, want %d", calls, len(n.owed(t)), some)
}

// A page of a proxy is no word of the API server's: the address is still held.
func TestProxysPageReleasesNothing(t *testing.T) {
	for _, tc := range []page{
		{http.StatusNotFound, "text/html", "<html>404</html>"},
		{http.StatusNotFound, "text/plain; charset=utf-8", "404 page not found"},
		{http.StatusConflict, "text/html", "<html>409</html>"},
		{http.StatusBadGateway, "text/html", "<html>502</html>"},
	} {
		t.Run(fmt.Sprint(tc.code, " ", tc.contentType), func(t *testing.T) {
			c := newCluster(t, 3, "a")
			n := newNode(t, c.ns, "a")
			n.mustAdd(t, "pod1", ippool("p"))
			n.wire.setAnswer(func(*http.Request) *page { return &tc })
			n.mustDel(t, "pod1")
			if _, err := n.add(shortly(t), "pod2", ippool("p")); err == nil || errors.Is(err, claim.ErrPoolNotFound) {
				t.Errorf("ADD: %v", err)
			}
			n.wire.setAnswer(nil)
			c.wantHeld(t, "10.0.0.1")
			n.settled(t, 0, 1)
			c.wantHeld(t)
		})
	}
}

// What the API server refuses to delete is owed: the pod can go, and its address
// stays held.
func TestRefusedReleaseIsOwed(t *testing.T) {
	c := newCluster(t, 3, "a")
	n := newNode(t, c.ns, "a")
	n.mustAdd(t, "pod1", ippool("p"))
	n.wire.setAnswer(refuse(http.MethodDelete, all))
	n.mustDel(t, "pod1")
	c.wantHeld(t, "10.0.0.1")
	n.wire.setAnswer(nil)
	n.settled(t, 0, 1)
	c.wantHeld(t)
}

// More releases than one call settles are refused for ever: the others are
// settled nevertheless.
func TestRefusedReleaseDoesNotKeepOthersWaiting(t *testing.T) {
	const refused, good = 40, 4
	c := newCluster(t, refused+good, "a")
	n := newNode(t, c.ns, "a")
	for i := range refused + good {
		n.mustAdd(t, fmt.Sprint("pod", i), ippool("p"))
	}
	n.wire.setAnswer(refuse(http.MethodDelete, all))
	for i := range refused + good {
		n.mustDel(t, fmt.Sprint("pod", i))
	}
	fine := map[string]bool{"p.10.0.0.3": true, "p.10.0.0.17": true, "p.10.0.0.30": true, "p.10.0.0.44": true}
	n.wire.setAnswer(refuse(http.MethodDelete, func(name string) bool { return !fine[name] }))
	n.settled(t, refused, 25)
}

// After a day the controller has had time enough.
func TestRefusedReleaseIsGivenUp(t *testing.T) {
	c := newCluster(t, 3, "a")
	n := newNode(t, c.ns, "a")
	n.mustAdd(t, "pod1", ippool("p"))
	n.wire.setAnswer(refuse(http.MethodDelete, all))
	n.mustDel(t, "pod1")
	n.mustDel(t, "never-added")
	if len(n.owed(t)) != 1 {
		t.Fatalf("owed %v", n.owed(t))
	}
	n.ageNotes(t, 25*time.Hour)
	n.wire.setAnswer(nil)
	n.wire.setLose(down)
	n.mustDel(t, "never-added")
	if len(n.owed(t)) != 1 {
		t.Fatal("given up although the API server was away and has refused nothing")
	}
	n.wire.setLose(nil)
	n.wire.setAnswer(refuse(http.MethodDelete, all))
	n.mustDel(t, "never-added")
	if len(n.owed(t)) != 0 {
		t.Errorf("still owed: %v", n.owed(t))
	}
	c.wantHeld(t, "10.0.0.1")
}

// ageNotes makes the notes of releases look older: since when is in their text.
func (n *node) ageNotes(t *testing.T, age time.Duration) {
	t.Helper()
	notes, err := filepath.Glob(n.path("releases", "*"))
	if err != nil || len(notes) == 0 {
		t.Fatalf("no notes: %v", err)
	}
	for _, note := range notes {
		text, err := os.Readlink(note)
		if err != nil {
			t.Fatal(err)
		}
		since := fmt.Sprint(time.Now().Add(-age).Unix())
		if _, rest, unanswered := strings.Cut(text, ";"); unanswered {
			text = since + ";" + rest
		} else {
			text = text[:strings.LastIndexByte(text, '/')+1] + since
		}
		if err := errors.Join(os.Remove(note), os.Symlink(text, note)); err != nil {
			t.Fatal(err)
		}
		lutimes(t, note, time.Now().Add(-age))
	}
}

// A container that comes back while its earlier release is owed must not find the
// old claim and take it for its own: the release would take it away.
func TestContainerThatComesBackOutlivesItsOwedRelease(t *testing.T) {
	const containers = 60
	c := newCluster(t, containers, "a")
	n := newNode(t, c.ns, "a")
	before := map[string]types.UID{}
	for i := range containers {
		n.mustAdd(t, fmt.Sprint("pod", i), ippool("p"), fmt.Sprint("10.0.0.", i+1))
	}
	n.wire.setAnswer(refuse(http.MethodDelete, all))
	for i := range containers {
		n.mustDel(t, fmt.Sprint("pod", i))
	}
	n.wire.setAnswer(nil)
	for i := range 3 { // all of them first: a call settles some of the others' releases, too
		name := fmt.Sprint("p.10.0.0.", i+1)
		before[name] = c.uid(t, name)
	}
	for i := range 3 {
		name := fmt.Sprint("p.10.0.0.", i+1)
		n.restart()
		n.mustAdd(t, fmt.Sprint("pod", i), ippool("p"), fmt.Sprint("10.0.0.", i+1))
		if c.uid(t, name) == before[name] {
			t.Errorf("%s is the claim whose release is owed", name)
		}
	}
	n.settled(t, 0, 10)
	c.wantHeld(t, "10.0.0.1", "10.0.0.2", "10.0.0.3")
}

func (c *cluster) allocation(t *testing.T, name string) *v1alpha1.IPAllocation {
	t.Helper()
	a, err := c.client.IPAllocations(c.ns).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (c *cluster) uid(t *testing.T, name string) types.UID { return c.allocation(t, name).UID }

// An ADD that fails without knowing what has become of its create leaves a note.
func TestCreateWithoutAnswerIsGivenBack(t *testing.T) {
	c := newCluster(t, 3, "a")
	n := newNode(t, c.ns, "a")
	n.mustAdd(t, "pod0", ippool("p"))
	n.wire.setLose(func(req *http.Request) loss {
		switch {
		case req.Method == http.MethodPost:
			return response
		case strings.Contains(req.URL.Path, "/ipallocations"):
			return request
		}
		return nothing
	})
	if _, err := n.add(shortly(t), "pod1", ippool("p")); !errors.Is(err, ledger.ErrUnavailable) {
		t.Errorf("error %v", err)
	}
	c.wantHeld(t, "10.0.0.1", "10.0.0.2")
	n.wire.setLose(nil)
	n.restart()
	n.mustDel(t, "never-added")
	c.wantHeld(t, "10.0.0.1")
}

// A create that nobody answered may be carried out after the DEL: then it is taken
// back by a later call.
func TestCreateThatIsCarriedOutLate(t *testing.T) {
	c := newCluster(t, 3, "a", "b")
	n := newNode(t, c.ns, "a")
	n.mustAdd(t, "pod0", ippool("p"))
	n.wire.setLose(func(req *http.Request) loss {
		if req.Method == http.MethodPost {
			return request
		}
		return nothing
	})
	if _, err := n.add(shortly(t), "pod1", ippool("p")); !errors.Is(err, ledger.ErrUnavailable) {
		t.Fatalf("error %v", err)
	}
	n.wire.setLose(nil)
	n.restart()
	n.mustDel(t, "pod1")
	c.hold(t, "p", "10.0.0.2", "a", "pod1") // now it comes
	n.restart()
	n.mustDel(t, "never-added")
	c.wantHeld(t, "10.0.0.1")

	t.Run("but what the container has claimed anew stays", func(t *testing.T) {
		n.wire.setLose(func(req *http.Request) loss {
			if req.Method == http.MethodPost {
				return request
			}
			return nothing
		})
		if _, err := n.add(shortly(t), "pod2", ippool("p"), "10.0.0.3"); !errors.Is(err, ledger.ErrUnavailable) {
			t.Fatalf("error %v", err)
		}
		n.wire.setLose(nil)
		n.mustAdd(t, "pod2", ippool("p"), "10.0.0.3")
		n.restart()
		n.mustDel(t, "never-added")
		c.wantHeld(t, "10.0.0.1", "10.0.0.3")
	})
}

// What is owed keeps no address from others that the API server says is free.
func TestOwedReleaseKeepsNoFreeAddress(t *testing.T) {
	c := newCluster(t, 3, "a")
	n := newNode(t, c.ns, "a")
	for i := range 3 {
		n.mustAdd(t, fmt.Sprint("pod", i), ippool("p"))
	}
	n.wire.setAnswer(refuse(http.MethodDelete, all))
	n.mustDel(t, "pod1")
	c.free(t, "p", "10.0.0.2") // the controller was faster
	if got := n.mustAdd(t, "pod3", ippool("p")); got != "10.0.0.2" {
		t.Errorf("got %s", got)
	}
	n.wire.setAnswer(nil)
	n.settled(t, 0, 1)
	c.wantHeld(t, "10.0.0.1", "10.0.0.2", "10.0.0.3")
}

// However much a node owes, a call does a little of it and goes on.
func TestThousandsOwed(t *testing.T) {
	const owed = 2000
	c := newCluster(t, 10, "a")
	n := newNode(t, c.ns, "a")
	n.mustAdd(t, "pod0", ippool("p"))
	for i := range owed {
		held := hint.Entry{Attachment: pod(fmt.Sprint("gone", i)), Domain: "p", Address: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), UID: types.UID(fmt.Sprint("uid", i))}
		if !n.Hint.Releasing(held) || !n.Hint.NotReleased(held) {
			t.Fatal("not noted")
		}
	}
	n.wire.take()
	n.restart() // as after a reboot: another process, the same disk
	n.mustAdd(t, "pod1", ippool("p"))
	deletes, _ := count(n.wire.take(), http.MethodDelete, "")
	if left := len(n.owed(t)); deletes == 0 || deletes > 16 || left != owed-deletes {
		t.Errorf("an ADD made %d deletes and left %d of %d", deletes, left, owed)
	}
	n.settled(t, owed-10*16, 20)
	c.wantHeld(t, "10.0.0.1", "10.0.0.2")
}

// A call whose credentials cannot be used notes the release. If the hint does not have
// all, it notes the attachment, and a later call finds out what that holds.
func TestReleaseLater(t *testing.T) {
	c := newCluster(t, 4, "a")
	n := newNode(t, c.ns, "a")
	for i := range 4 {
		n.mustAdd(t, fmt.Sprint("pod", i), ippool("p"))
	}
	n.mustDel(t, "pod0") // makes the hint complete
	n.wire.take()
	for _, name := range []string{"never-added", "pod1"} {
		if !claim.ReleaseLater(n.hint(), pod(name)) {
			t.Errorf("%s: not noted", name)
		}
	}
	wantRequests(t, n)
	n.settled(t, 0, 1)
	c.wantHeld(t, "10.0.0.3", "10.0.0.4")
	n.loseHint(t)
	for _, name := range []string{"never-added", "pod2"} {
		if !claim.ReleaseLater(n.hint(), pod(name)) {
			t.Errorf("%s: not noted", name)
		}
	}
	n.restart()
	n.mustDel(t, "never-added")
	c.wantHeld(t, "10.0.0.4")
	if left, whole := n.hint().Pending(); len(left) > 0 || len(whole) > 0 {
		t.Errorf("left: %v, %v", left, whole)
	}
}
