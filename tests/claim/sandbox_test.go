// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/netip"
	"regexp"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/claim"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
)

// addSandbox claims 10.0.0.2 for a sandbox of pod default/web.
func (n *node) addSandbox(ctx context.Context, container string, change func(*claim.Request)) error {
	req := claim.Request{
		Attachment: hint.Attachment{ContainerID: container, Interface: "net1"}, Pools: ippool("p"), Network: "net",
		Pod: v1alpha1.PodReference{Namespace: "default", Name: "web", UID: "uid-1"},
	}
	req.Want.Addresses = []netip.Addr{netip.MustParseAddr("10.0.0.2")}
	if change != nil {
		change(&req)
	}
	_, err := n.Allocate(ctx, req)
	return err
}

// backdate makes one allocation look an hour old to a node: nobody can set the
// time at which the API server has created something.
type backdate struct {
	next http.RoundTripper
	uid  types.UID
}

var created = regexp.MustCompile(`"creationTimestamp":"[^"]*"`)

func (b backdate) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := b.next.RoundTrip(req)
	if err != nil || req.Method != http.MethodGet {
		return resp, err
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if !bytes.Contains(body, []byte(b.uid)) {
		resp.Body = io.NopCloser(bytes.NewReader(body))
		return resp, nil
	}
	hourAgo := time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)
	body = created.ReplaceAll(body, []byte(`"creationTimestamp":"`+hourAgo+`"`))
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	return resp, nil
}

// later makes an allocation old in the eyes of a node.
func (n *node) later(uid types.UID) { n.wire.next = backdate{n.wire.next, uid} }

// The DEL of a pod's sandbox was lost, and its next sandbox asks for the same
// address.
func TestPodsNextSandboxTakesOver(t *testing.T) {
	c := newCluster(t, 10, "a", "b")
	a, b := newNode(t, c.ns, "a"), newNode(t, c.ns, "b")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(a.addSandbox(t.Context(), "sandbox-1", nil))
	if err := a.addSandbox(t.Context(), "sandbox-2", nil); asInUse(err) == nil {
		t.Errorf("a sandbox that may be about to start lost its address: %v", err)
	}
	old := c.uid(t, "p.10.0.0.2")
	a.later(old)
	b.later(old)
	for name, change := range map[string]func(*claim.Request){
		"another pod of that name": func(r *claim.Request) { r.Pod.UID = "uid-2" },
		"a pod without a UID":      func(r *claim.Request) { r.Pod.UID = "" },
		"another pod":              func(r *claim.Request) { r.Pod.Name = "other" },
	} {
		if err := a.addSandbox(t.Context(), "sandbox-2", change); asInUse(err) == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := b.addSandbox(t.Context(), "sandbox-2", nil); asInUse(err) == nil {
		t.Errorf("another node: %v", err)
	}

	// Two at once: one wins, and the other does not take it away again.
	var mu sync.Mutex
	var winners []string
	var wg sync.WaitGroup
	for _, container := range []string{"sandbox-2", "sandbox-3"} {
		n := newNode(t, c.ns, "a")
		n.later(old)
		wg.Go(func() {
			err := n.addSandbox(t.Context(), container, nil)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				winners = append(winners, container)
			case asInUse(err) == nil:
				t.Errorf("%s: %v", container, err)
			}
		})
	}
	wg.Wait()
	if len(winners) != 1 {
		t.Fatalf("%v have the address", winners)
	}
	must(a.Release(t.Context(), hint.Attachment{ContainerID: "sandbox-1", Interface: "net1"})) // the lost DEL
	if holder := c.allocation(t, "p.10.0.0.2").Spec.ContainerID; holder != winners[0] {
		t.Errorf("%s holds it, want %s", holder, winners[0])
	}
}

// Somebody else claims the address in the moment in which it is free.
func TestTakingOverIsARace(t *testing.T) {
	c := newCluster(t, 10, "a", "b")
	a := newNode(t, c.ns, "a")
	if err := a.addSandbox(t.Context(), "sandbox-1", nil); err != nil {
		t.Fatal(err)
	}
	a.later(c.uid(t, "p.10.0.0.2"))
	posts := 0
	a.wire.setLose(func(req *http.Request) loss {
		if req.Method == http.MethodPost {
			if posts++; posts == 2 {
				c.hold(t, "p", "10.0.0.2", "b", "faster")
			}
		}
		return nothing
	})
	err := a.addSandbox(t.Context(), "sandbox-2", nil)
	if inUse := asInUse(err); inUse == nil || inUse.Holder.Spec.PodRef.Name != "faster" {
		t.Errorf("error %v", err)
	}
	if holder := c.allocation(t, "p.10.0.0.2").Spec.ContainerID; holder != pod("faster").ContainerID {
		t.Errorf("%s holds it", holder)
	}
}

// The ADD of an earlier sandbox hangs in its create. The pod's next sandbox claims the
// address, and the node's clock is far ahead of the API server's.
func TestLateAddTakesNothingOver(t *testing.T) {
	c := newCluster(t, 10, "a")
	early, late := newNode(t, c.ns, "a"), newNode(t, c.ns, "a")
	early.wire.setLose(func(req *http.Request) loss {
		if req.Method == http.MethodPost && req.Body != nil {
			early.wire.lose = nil // only the first
			if err := late.addSandbox(t.Context(), "sandbox-2", nil); err != nil {
				t.Errorf("sandbox-2: %v", err)
			}
			early.wire.next = backdate{early.wire.next, c.uid(t, "p.10.0.0.2")}
		}
		return nothing
	})
	if err := early.addSandbox(t.Context(), "sandbox-1", nil); asInUse(err) == nil {
		t.Errorf("the earlier sandbox: %v", err)
	}
	if holder := c.allocation(t, "p.10.0.0.2").Spec.ContainerID; holder != "sandbox-2" {
		t.Errorf("%s holds it", holder)
	}
}

// Some runtimes do not tell the pod's UID: then its name has to do. Who does not say
// when its ADD began is taken nothing from.
func TestNextSandboxWithoutUIDTakesOver(t *testing.T) {
	withoutUID := func(r *claim.Request) { r.Pod.UID = "" }
	c := newCluster(t, 10, "a")
	a := newNode(t, c.ns, "a")
	if err := a.addSandbox(t.Context(), "sandbox-1", withoutUID); err != nil {
		t.Fatal(err)
	}
	a.later(c.uid(t, "p.10.0.0.2"))
	if err := a.addSandbox(t.Context(), "sandbox-2", nil); asInUse(err) == nil {
		t.Errorf("a pod with a UID takes over from one without: %v", err)
	}
	if err := a.addSandbox(t.Context(), "sandbox-2", withoutUID); err != nil {
		t.Errorf("the next sandbox: %v", err)
	}
	c.hold(t, "p", "10.0.0.3", "a", "web") // by the version before: nothing says when
	a.later(c.uid(t, "p.10.0.0.3"))
	err := a.addSandbox(t.Context(), "sandbox-3", func(r *claim.Request) {
		withoutUID(r)
		r.Want.Addresses = []netip.Addr{netip.MustParseAddr("10.0.0.3")}
	})
	if asInUse(err) == nil {
		t.Errorf("whose order is not known: %v", err)
	}
}
