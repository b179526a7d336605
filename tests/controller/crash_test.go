// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/controller"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// crash lets a controller die at a request: before it is sent, or after it was
// carried out, but before the answer is there. Nothing gets through afterwards.
type crash struct {
	what  string // the operation to die at
	at    int    // how often it has come then; 0 is never
	after bool
	died  chan struct{}

	mu    sync.Mutex
	dead  bool
	count map[string]int // by operation
}

func newCrash(what string, at int, after bool) *crash {
	return &crash{what: what, at: at, after: after, died: make(chan struct{}), count: map[string]int{}}
}

var errCrashed = errors.New("the controller is dead")

func (c *crash) wrap(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		switch dies, dead := c.next(operation(req)); {
		case dead:
			return nil, errCrashed
		case !dies:
			return next.RoundTrip(req)
		}
		if c.after {
			if resp, err := next.RoundTrip(req); err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
		}
		close(c.died)
		return nil, errCrashed
	})
}

// next counts a request, and says whether it is the one to die at, and whether
// that is past.
func (c *crash) next(what string) (dies, dead bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead || what == "" {
		return false, c.dead
	}
	c.count[what]++
	c.dead = what == c.what && c.count[what] == c.at
	return c.dead, false
}

// operation names a request, as "PATCH ippools (blocks)"; "" for lists and watches,
// by which a controller only learns.
func operation(req *http.Request) string {
	parts := strings.Split(strings.Trim(req.URL.Path, "/"), "/")
	i := slices.Index(parts, "namespaces")
	if i >= 0 && len(parts) > i+2 {
		parts = parts[i+2:] // resource, name, subresource
	} else {
		parts = parts[2:] // of api/v1
	}
	switch {
	case req.Method == http.MethodGet && len(parts) < 2 && !strings.HasPrefix(req.URL.Query().Get("fieldSelector"), "metadata.name="): // one object is as a get
		return ""
	case strings.HasPrefix(req.URL.Query().Get("fieldManager"), v1alpha1.BlocksManagerPrefix):
		return "PATCH " + parts[0] + " (blocks)"
	}
	return req.Method + " " + parts[0]
}

// scene is a namespace with everything that a controller has to see to, and what
// must be true of it at every moment.
type scene struct {
	*cluster
	live map[string]types.UID // allocations, by address

	mu    sync.Mutex
	wrong []string
}

// Blocks in an order that carving anew would not give; that of departed is held
// by a leak alone, that of host by a pod.
var (
	stable = map[string]string{"host": "10.0.0.1", "b": "10.0.0.51"}
	inUse  = []v1alpha1.Allocation{
		{NodeName: "host", StartIP: "10.0.0.1", EndIP: "10.0.0.50"},
		{NodeName: "b", StartIP: "10.0.0.51", EndIP: "10.0.0.100"},
		{NodeName: "departed", StartIP: "10.0.0.101", EndIP: "10.0.0.150"},
	}
	// late is given the next block, or that of departed when it is free.
	lates = []string{"10.0.0.151", "10.0.0.101"}
)

func newScene(t *testing.T) *scene {
	t.Helper()
	s := &scene{cluster: &cluster{Cluster: rig.NewCluster(t, env)}, live: map[string]types.UID{}}
	s.Pool(t, "pool1", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 50})
	p := s.GetPool(t, "pool1")
	p.Status.Allocations = inUse
	if _, err := s.IPAM.IPPools(s.NS).UpdateStatus(t.Context(), p, metav1.UpdateOptions{FieldManager: "nv-ipam"}); err != nil {
		t.Fatal(err)
	}
	pod := s.startPodOn(t, "host", "pod", nil)
	s.holdIn(t, "first", "pool1", "10.0.0.10", "host", pod) // its DEL was lost
	s.leak(t, "10.0.0.11", "host")
	s.leak(t, "10.0.0.101", "departed")
	s.nextSecond(t)
	s.holdIn(t, "second", "pool1", "10.0.0.12", "host", pod)
	s.hold(t, "pool1", "10.0.0.55", "b", s.startPodOn(t, "b", "other", nil))
	list, err := s.IPAM.IPAllocations(s.NS).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list.Items {
		if a.Spec.Address == "10.0.0.12" || a.Spec.Address == "10.0.0.55" {
			s.live[a.Spec.Address] = a.UID
		}
	}
	s.observe(t, list.ResourceVersion)
	return s
}

// observe looks at every change of the pool and of its allocations from now on.
func (s *scene) observe(t *testing.T, version string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	options := metav1.ListOptions{ResourceVersion: version}
	pools, err := s.IPAM.IPPools(s.NS).Watch(ctx, options)
	if err != nil {
		t.Fatal(err)
	}
	allocations, err := s.IPAM.IPAllocations(s.NS).Watch(ctx, options)
	if err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	done.Go(func() {
		for e := range pools.ResultChan() {
			if p, ok := e.Object.(*v1alpha1.IPPool); ok {
				s.checkBlocks(p)
			}
		}
	})
	done.Go(func() {
		for e := range allocations.ResultChan() {
			if a, ok := e.Object.(*v1alpha1.IPAllocation); ok && e.Type == watch.Deleted && s.live[a.Spec.Address] != "" {
				s.complain("%s is freed while it is in use", a.Spec.Address)
			}
		}
	})
	t.Cleanup(func() { cancel(); done.Wait() })
}

func (s *scene) checkBlocks(p *v1alpha1.IPPool) {
	got := map[string]string{}
	for _, b := range p.Status.Allocations {
		got[b.NodeName] = b.StartIP
	}
	for node, first := range stable {
		if got[node] != first {
			s.complain("the block of %s moved: %v", node, p.Status.Allocations)
		}
	}
}

// unsettled says what is missing of the blocks that there are in the end.
func (s *scene) unsettled(t *testing.T) string {
	t.Helper()
	p := s.GetPool(t, "pool1")
	ready := len(p.Status.Conditions) > 0 && p.Status.Conditions[0].Reason == "BlocksAssigned"
	if b := p.Status.Allocations; len(b) != 3 || !ready || !slices.ContainsFunc(b, func(a v1alpha1.Allocation) bool {
		return a.NodeName == "late" && slices.Contains(lates, a.StartIP)
	}) {
		return fmt.Sprintf("status %+v", p.Status)
	}
	return ""
}

func (s *scene) complain(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wrong = append(s.wrong, fmt.Sprintf(format, args...))
}

// end waits until nothing is left to do, and checks that nothing went wrong on
// the way.
func (s *scene) end(t *testing.T) {
	t.Helper()
	s.wantHeld(t, "10.0.0.12", "10.0.0.55")
	rig.Until(t, func() string { return s.unsettled(t) })
	list, err := s.IPAM.IPAllocations(s.NS).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list.Items {
		if s.live[a.Spec.Address] != a.UID {
			t.Errorf("%s is not the allocation that it was", a.Spec.Address)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.wrong {
		t.Error(w)
	}
}

// A controller that dies at whatever request leaves nothing that the next one
// does not put right: no live address is freed, all leaks are, no block moves.
func TestCrashPoints(t *testing.T) {
	base := newCluster(t)
	for _, n := range []string{"b", "host", "late"} {
		base.Node(t, n, nil)
	}
	opts := controller.Options{ReclaimGrace: 50 * time.Millisecond, Settle: 10 * time.Millisecond}
	// Without a crash, for how many there are of each operation.
	s, whole := newScene(t), newCrash("", 0, false)
	_, stop := s.runBehind(t, opts, whole.wrap)
	s.diesOrEnds(t, whole)
	stop()
	s.end(t)

	died := map[string]int{}
	for what, n := range whole.count {
		for i := range 2 * n {
			if testing.Short() && i > 1 && i < 2*n-1 {
				continue // a sample: before and after the first of a kind, and after the last
			}
			at, after := i/2+1, i%2 == 1
			s, k := newScene(t), newCrash(what, at, after)
			_, stop := s.runBehind(t, opts, k.wrap)
			if s.diesOrEnds(t, k) {
				died[what]++
			}
			stop()
			_, stop = s.run(t, opts)
			s.end(t)
			stop()
			if t.Failed() {
				t.Fatalf("it died at request %d, %s, after it: %v", at, what, after)
			}
		}
	}
	t.Logf("died at %v", died)
	want := []string{
		"DELETE ipallocations", "GET ipallocations", "GET ippools", "GET nodes", "GET pods",
		"PATCH ippools", "PATCH ippools (blocks)", "POST events",
	}
	if got := slices.Sorted(maps.Keys(died)); !slices.Equal(got, want) {
		t.Errorf("it died at %q, want all of %q", got, want)
	}
}

// diesOrEnds waits until the controller has died, or all is done and the events
// are written, and reports whether it has died.
func (s *scene) diesOrEnds(t *testing.T, k *crash) (dies bool) {
	t.Helper()
	rig.Until(t, func() string {
		select {
		case <-k.died:
			dies = true
			return ""
		default:
		}
		if got := s.Held(t); len(got) > 2 {
			return fmt.Sprintf("held are %v", got)
		}
		if missing := s.unsettled(t); missing != "" {
			return missing
		}
		if n := len(s.Events(t)); n < 3 {
			return fmt.Sprintf("%d events", n)
		}
		return ""
	})
	return dies
}
