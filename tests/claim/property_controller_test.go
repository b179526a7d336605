// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	"pgregory.net/rapid"

	"github.com/crd-ipam/crd-ipam/generated/clientset/versioned"
	"github.com/crd-ipam/crd-ipam/pkg/controller"
)

// replica is a controller with a bad connection. There is no lease: any number
// of them work at once, as two do for a moment when a lease is lost.
type replica struct {
	next   http.RoundTripper
	every  int64 // one in so many requests is lost, in turn on its way and on its way back; 0: none
	seen   atomic.Int64
	dead   atomic.Bool
	behind gate

	cancel context.CancelFunc
	ended  chan error
}

func (r *replica) RoundTrip(req *http.Request) (*http.Response, error) {
	n := r.seen.Add(1)
	lost := r.every > 0 && n%r.every == 0
	if r.dead.Load() || lost && n/r.every%2 == 0 {
		return nil, errLost
	}
	resp, err := r.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if lost || r.dead.Load() {
		_ = resp.Body.Close()
		return nil, errLost
	}
	if req.URL.Query().Get("watch") != "" {
		resp.Body = &lagging{resp.Body, &r.behind, req.Context()}
	}
	return resp, nil
}

// gate holds up readers while it is shut.
type gate struct {
	mu   sync.Mutex
	open chan struct{} // nil while nobody is held up
}

func (g *gate) toggle() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open == nil {
		g.open = make(chan struct{})
		return
	}
	close(g.open)
	g.open = nil
}

func (g *gate) pass(ctx context.Context) error {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	if open == nil {
		return nil
	}
	select {
	case <-open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// lagging is a watch whose events come late.
type lagging struct {
	io.ReadCloser

	gate *gate
	ctx  context.Context
}

func (l *lagging) Read(p []byte) (int, error) {
	n, err := l.ReadCloser.Read(p)
	if waited := l.gate.pass(l.ctx); waited != nil {
		return 0, waited
	}
	return n, err
}

// run starts a controller which loses every so-manieth request.
func (w *world) run(rt *rapid.T, every int) {
	r := &replica{every: int64(every), ended: make(chan error, 1)}
	config := rest.CopyConfig(env.Config)
	config.Wrap(func(rt http.RoundTripper) http.RoundTripper { r.next = rt; return r })
	var clients controller.Clients
	var err error
	if clients.IPAM, err = versioned.NewForConfig(config); err != nil {
		rt.Fatal(err)
	}
	if clients.Kube, err = kubernetes.NewForConfig(config); err != nil {
		rt.Fatal(err)
	}
	if clients.Metadata, err = metadata.NewForConfig(config); err != nil {
		rt.Fatal(err)
	}
	ctx, cancel := context.WithCancel(klog.NewContext(context.Background(), logr.Discard()))
	r.cancel = cancel
	go func() {
		r.ended <- controller.New(clients, controller.Options{Namespace: w.cluster.ns, ReclaimGrace: time.Millisecond, ReclaimGraceReadyNode: time.Millisecond}).Run(ctx)
	}()
	w.replicas = append(w.replicas, r)
	tally.controllers.Add(1)
}

func (w *world) startController(rt *rapid.T) {
	if len(w.replicas) == 2 {
		rt.Skip("two are enough")
	}
	w.run(rt, rapid.SampledFrom([]int{0, 2, 3, 7}).Draw(rt, "loses one request in"))
}

func (w *world) killController(rt *rapid.T) {
	if len(w.replicas) == 0 {
		rt.Skip("none runs")
	}
	i := rapid.IntRange(0, len(w.replicas)-1).Draw(rt, "which")
	w.replicas[i].kill()
	w.replicas = slices.Delete(w.replicas, i, i+1)
}

// kill ends a controller between two requests.
func (r *replica) kill() {
	r.dead.Store(true)
	r.cancel()
	<-r.ended
}

func (w *world) stopControllers() {
	for _, r := range w.replicas {
		r.kill()
	}
	w.replicas = nil
}

// toggleLag makes a controller work from what the cluster was a while ago, or
// catch up.
func (w *world) toggleLag(rt *rapid.T) {
	if len(w.replicas) == 0 {
		rt.Skip("none runs")
	}
	rapid.SampledFrom(w.replicas).Draw(rt, "which").behind.toggle()
}

// By the clock of the node, which starts one sandbox of a pod after the other,
// the later sandbox has asked later, whenever the creates are carried out.
func TestAsked(t *testing.T) {
	c := newCluster(t, 4, "a")
	n := newNode(t, c.ns, "a")
	asked := func(address string) time.Time {
		t.Helper()
		a, err := c.client.IPAllocations(c.ns).Get(t.Context(), "p."+address, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if a.Spec.AddStartedAt == nil {
			t.Fatal("no addStartedAt")
		}
		return a.Spec.AddStartedAt.Time
	}
	before := time.Now().Truncate(time.Microsecond)
	first := asked(n.mustAdd(t, "first", ippool("p")))
	between := time.Now().Truncate(time.Microsecond)
	second := asked(n.mustAdd(t, "second", ippool("p"), "10.0.0.4"))
	if first.Before(before) || first.After(between) || second.Before(between) || second.After(time.Now()) {
		t.Errorf("asked at %v and %v, though called after %v and after %v", first, second, before, between)
	}
}
