// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"reflect"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
	"github.com/crd-ipam/crd-ipam/pkg/reclaim"
)

// Copy is a copy of the record that follows the API server. The zero value is an empty one
// that follows nothing.
type Copy struct {
	mu      sync.Mutex
	sources []*source
	version uint64
	changed chan struct{} // closed when version grows; nil if nobody waits
	latest  *Snapshot
	// quiet is how long no other snapshot is made: a fraction of the time is spent on them,
	// however large the record is and however often it changes.
	quiet time.Time
}

// Source says how far a resource has been read, and what keeps it from being read further.
type Source struct {
	// Resource is its plural name.
	Resource string `json:"resource"`
	// Read is true if it has been read once.
	Read bool `json:"read"`
	// Error is what the API server, or the way there, says; "" if nothing is wrong.
	Error string `json:"error,omitempty"`
	// Refused is true if whoever asks may not.
	Refused bool `json:"refused,omitempty"`
	// Since is when it failed first: what is known of the resource is of this time.
	Since *metav1.Time `json:"since,omitempty"`
}

const (
	// pace is the least time between two snapshots, and share the part of the time that is
	// spent on them if they take longer.
	pace  = 500 * time.Millisecond
	share = 10
)

// Follow returns a copy that follows the API server until ctx ends. It returns an error if
// the API server cannot be asked at all.
func (c *Cluster) Follow(ctx context.Context) (*Copy, error) {
	if _, err := c.pools(ctx); err != nil && !refused(err) { // also finds the namespace
		return nil, err
	}
	out := &Copy{}
	ipam, kube := c.ipam.RESTClient(), c.kube.CoreV1().RESTClient()
	var run []func()
	follow := func(client cache.Getter, resource, namespace string, example runtime.Object, keep func(any) any, of func(any) any) {
		s := &source{copy: out, keep: keep, of: of, objects: map[string]any{}, Source: Source{Resource: resource}}
		out.sources = append(out.sources, s)
		lw := cache.NewFilteredListWatchFromClient(client, resource, namespace, func(*metav1.ListOptions) {})
		noted := s.watched(lw)
		var watched cache.ListerWatcher = noted
		if resource == resourceAllocations {
			lw.ListWithContextFunc = c.allAllocations
			watched = listed{noted}
		}
		r := cache.NewReflectorWithOptions(watched, example, s, cache.ReflectorOptions{
			Name: resource, Backoff: &wait.Backoff{Duration: 500 * time.Millisecond, Factor: 1.5, Jitter: 0.2, Cap: 5 * time.Second, Steps: 10},
		})
		run = append(run, func() { r.RunWithContext(klog.NewContext(ctx, klog.Logger{})) }) // its errors are in Source
	}
	same := func(obj any) any { return obj }
	for _, kind := range pool.Kinds() {
		follow(ipam, pool.Resource(kind).Resource, c.Namespace, pool.New(kind), same, func(obj any) any { return pool.ObjectOf(obj) })
	}
	follow(ipam, resourceAllocations, c.Namespace, &v1alpha1.IPAllocation{}, thinAllocation, same)
	follow(kube, "nodes", "", &corev1.Node{}, thinNode, same)
	follow(kube, "pods", "", &corev1.Pod{}, thinPod, func(obj any) any { return podOf(obj.(*corev1.Pod)) })
	for _, r := range run {
		go r()
	}
	return out, nil
}

// listed is watched only after a list: decoding each of 100,000 allocations as the event of
// a watch takes several times as long.
type listed struct{ *cache.ListWatch }

// IsWatchListSemanticsUnSupported is what a reflector asks.
func (listed) IsWatchListSemanticsUnSupported() bool { return true }

// allAllocations lists the allocations as they are kept, in pages of its own.
func (c *Cluster) allAllocations(ctx context.Context, _ metav1.ListOptions) (runtime.Object, error) {
	out := &internalversion.List{}
	all := func(*v1alpha1.IPAllocation) bool { return true }
	version, err := c.list(ctx, nil, all, func(a *v1alpha1.IPAllocation) { out.Items = append(out.Items, a) })
	out.ResourceVersion = version
	return out, err
}

const resourceAllocations = "ipallocations"

// source is the copy of one resource.
type source struct {
	Source

	copy *Copy
	// keep drops what nobody reads; it may be called twice on one object. of makes of it
	// what the record has.
	keep, of func(obj any) any
	objects  map[string]any // by NAMESPACE/NAME
}

// watched notes what becomes of the requests.
func (s *source) watched(lw *cache.ListWatch) *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			list, err := lw.ListWithContext(ctx, opts)
			if err != nil && ctx.Err() == nil {
				s.failed(err)
			}
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
			w, err := lw.WatchWithContext(ctx, opts)
			switch {
			case err == nil:
				s.answered()
			case ctx.Err() == nil:
				s.failed(err)
			}
			return w, err
		},
	}
}

func (s *source) failed(err error) {
	s.copy.mu.Lock()
	defer s.copy.mu.Unlock()
	if s.Since == nil {
		now := metav1.Now()
		s.Since = &now
	}
	if s.Error != err.Error() {
		s.Error, s.Refused = err.Error(), refused(err)
		s.copy.change()
	}
}

func (s *source) answered() {
	s.copy.mu.Lock()
	defer s.copy.mu.Unlock()
	if s.Error != "" {
		s.Error, s.Refused, s.Since = "", false, nil
		s.copy.change()
	}
}

// Transformer makes the reflector keep thin objects while it lists.
func (s *source) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) { return s.keep(obj), nil }
}

// put enters an object.
func (s *source) put(obj any) error {
	key, err := cache.MetaNamespaceKeyFunc(obj)
	if err != nil {
		return err
	}
	kept := s.of(s.keep(obj))
	s.copy.mu.Lock()
	defer s.copy.mu.Unlock()
	if !reflect.DeepEqual(s.objects[key], kept) { // a pod's status changes often
		s.objects[key] = kept
		s.copy.change()
	}
	return nil
}

// Add enters an object that is new.
func (s *source) Add(obj any) error { return s.put(obj) }

// Update enters an object that has changed.
func (s *source) Update(obj any) error { return s.put(obj) }

// Delete removes an object.
func (s *source) Delete(obj any) error {
	key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj)
	if err != nil {
		return err
	}
	s.copy.mu.Lock()
	defer s.copy.mu.Unlock()
	delete(s.objects, key)
	s.copy.change()
	return nil
}

// Replace enters all objects.
func (s *source) Replace(list []any, _ string) error {
	objects := make(map[string]any, len(list))
	for _, obj := range list {
		key, err := cache.MetaNamespaceKeyFunc(obj)
		if err != nil {
			return err
		}
		objects[key] = s.of(s.keep(obj))
	}
	s.copy.mu.Lock()
	defer s.copy.mu.Unlock()
	s.objects, s.Read = objects, true
	s.copy.change()
	return nil
}

// Resync is not needed.
func (s *source) Resync() error { return nil }

// change says that something has; mu is held.
func (c *Copy) change() {
	c.version++
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

// Snapshot returns the copy as it was at most a moment ago.
func (c *Copy) Snapshot() *Snapshot {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.latest == nil || c.latest.Version != c.version && !time.Now().Before(c.quiet) {
		start := time.Now()
		c.latest = c.build()
		took := time.Since(start)
		c.quiet = start.Add(max(pace, share*took))
	}
	return c.latest
}

// Next waits for a snapshot that is not the given version.
func (c *Copy) Next(ctx context.Context, version uint64) (*Snapshot, error) {
	for {
		c.mu.Lock()
		if c.changed == nil {
			c.changed = make(chan struct{})
		}
		changed, quiet := c.changed, time.Until(c.quiet)
		if c.version != version {
			changed = nil // it has changed
		}
		c.mu.Unlock()
		if changed != nil {
			select {
			case <-changed:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			continue
		}
		if quiet > 0 {
			select {
			case <-time.After(quiet): // before another one is made
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		if s := c.Snapshot(); s.Version != version {
			return s, nil
		}
	}
}

// build makes a snapshot; mu is held.
func (c *Copy) build() *Snapshot {
	s := &Snapshot{Version: c.version, At: metav1.Now()}
	r := newRecord()
	for _, source := range c.sources {
		s.Sources = append(s.Sources, source.Source)
		for key, obj := range source.objects {
			switch o := obj.(type) {
			case *pool.Object:
				at := r.at(o.Meta.Namespace)
				at.pools = append(at.pools, o)
			case *v1alpha1.IPAllocation:
				r.at(o.Namespace).add(o)
			case *corev1.Node:
				r.nodes[o.Name] = o
			case *pod:
				r.pods[key] = o
			}
		}
	}
	for _, site := range r.sites {
		sortPools(site.pools)
	}
	s.record = r
	s.judge()
	return s
}

func thinAllocation(obj any) any {
	a, ok := obj.(*v1alpha1.IPAllocation)
	if !ok {
		return obj
	}
	a.ManagedFields, a.Annotations, a.Labels = nil, nil, nil
	return a
}

func thinNode(obj any) any {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return obj
	}
	return nodeOf(n)
}

func thinPod(obj any) any {
	p, ok := obj.(*corev1.Pod)
	if !ok {
		return obj
	}
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: p.Namespace, Name: p.Name, UID: p.UID, ResourceVersion: p.ResourceVersion,
		CreationTimestamp: p.CreationTimestamp, DeletionTimestamp: p.DeletionTimestamp, Annotations: reclaim.Annotations(p.Annotations),
	}, Spec: corev1.PodSpec{NodeName: p.Spec.NodeName}, Status: corev1.PodStatus{Phase: p.Status.Phase}}
}
