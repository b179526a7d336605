// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/generated/clientset/versioned/scheme"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
	"github.com/crd-ipam/crd-ipam/pkg/reclaim"
)

// record is what the API server has, read at about one time.
type record struct {
	sites []*site // by namespace
	nodes map[string]*corev1.Node
	pods  map[string]*pod // by podKey
	only  string          // namespace that was looked at; "" if all were
}

func newRecord() *record { return &record{nodes: map[string]*corev1.Node{}, pods: map[string]*pod{}} }

// site is a namespace with pools or allocations. What is held in one has nothing to do
// with another: each has a controller of its own, or none.
type site struct {
	namespace   string
	pools       []*pool.Object // by name
	allocations []*v1alpha1.IPAllocation
	byPod       map[string][]*v1alpha1.IPAllocation
	byDomain    map[string][]*v1alpha1.IPAllocation
}

// pod is what is read of a pod.
type pod struct {
	reclaim.Pod

	networks string // the annotation that says what it asks for
	status   string // the annotation that says which addresses it has
}

// parts says what of the record is read.
type parts struct{ allocations, nodes, pods bool }

func (c *Cluster) read(ctx context.Context, want parts) (*record, error) {
	r := newRecord()
	pools, err := c.pools(ctx)
	if err != nil {
		return nil, err
	}
	r.only = c.Namespace
	for _, p := range pools {
		s := r.at(p.Meta.Namespace)
		s.pools = append(s.pools, p)
	}
	if want.allocations {
		err = c.allocations(ctx, nil, func(a *v1alpha1.IPAllocation) { r.at(a.Namespace).add(a) })
	}
	if err == nil && want.nodes {
		err = c.readNodes(ctx, r.nodes)
	}
	if err == nil && want.pods {
		err = c.readPods(ctx, r.pods)
	}
	return r, err
}

// at returns the site of a namespace, which it makes if there is none.
func (r *record) at(namespace string) *site {
	i, found := slices.BinarySearchFunc(r.sites, namespace, func(s *site, namespace string) int { return strings.Compare(s.namespace, namespace) })
	if !found {
		r.sites = slices.Insert(r.sites, i, &site{namespace: namespace, byPod: map[string][]*v1alpha1.IPAllocation{}, byDomain: map[string][]*v1alpha1.IPAllocation{}})
	}
	return r.sites[i]
}

// pools lists the pools of all kinds. If whoever asks may not list those of all namespaces, it
// goes on in the fallback.
func (c *Cluster) pools(ctx context.Context) (all []*pool.Object, err error) {
	for _, kind := range pool.Kinds() {
		err := c.poolsOf(ctx, kind, func(p *pool.Object) { all = append(all, p) })
		if apierrors.IsForbidden(err) && c.Namespace == "" && c.Fallback != "" {
			c.Namespace = c.Fallback
			all, err = c.pools(ctx)
			c.limited = err == nil
			return all, err
		}
		if err != nil {
			return nil, err
		}
	}
	sortPools(all)
	return all, nil
}

func sortPools(all []*pool.Object) {
	slices.SortFunc(all, func(a, b *pool.Object) int {
		return cmp.Or(strings.Compare(a.Meta.Namespace, b.Meta.Namespace), strings.Compare(a.Ref.Name, b.Ref.Name), strings.Compare(string(a.Ref.Kind), string(b.Ref.Kind)))
	})
}

func (c *Cluster) poolsOf(ctx context.Context, kind v1alpha1.PoolKind, f func(*pool.Object)) error {
	resource := pool.Resource(kind).Resource
	return c.each(ctx, "pools", metav1.ListOptions{}, func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
		list := pool.NewList(kind)
		err := c.ipam.RESTClient().Get().NamespaceIfScoped(c.Namespace, c.Namespace != "").Resource(resource).
			VersionedParams(&opts, scheme.ParameterCodec).Do(ctx).Into(list)
		return list, err
	}, func(obj runtime.Object) {
		o := pool.ObjectOf(obj)
		o.Meta.ManagedFields = nil
		f(o)
	})
}

// allocations calls f with each allocation that has the values of all the fields.
func (c *Cluster) allocations(ctx context.Context, where fields.Set, f func(*v1alpha1.IPAllocation)) error {
	matches := func(a *v1alpha1.IPAllocation) bool { return where == nil || where.AsSelector().Matches(fieldsOf(a)) }
	_, err := c.list(ctx, where, matches, f)
	if apierrors.IsBadRequest(err) && len(where) > 0 { // Kubernetes 1.30 has no such selectors
		_, err = c.list(ctx, nil, matches, f)
	}
	return err
}

// attachments is allocations, and those as well whose next attachment has the values. All
// fields are of a pod or a node.
func (c *Cluster) attachments(ctx context.Context, where fields.Set, f func(*v1alpha1.IPAllocation)) error {
	next := fields.Set{}
	for field, value := range where {
		next[strings.Replace(field, "spec.", "spec.next.", 1)] = value
	}
	holds := func(a *v1alpha1.IPAllocation) bool { return where.AsSelector().Matches(fieldsOf(a)) }
	waits := func(a *v1alpha1.IPAllocation) bool {
		return a.Spec.Next != nil && where.AsSelector().Matches(fieldsOf(a.Promoted()))
	}
	_, err := c.list(ctx, where, holds, f)
	if apierrors.IsBadRequest(err) {
		_, err = c.list(ctx, nil, func(a *v1alpha1.IPAllocation) bool { return holds(a) || waits(a) }, f)
		return err
	}
	if err == nil {
		if _, err = c.list(ctx, next, waits, f); apierrors.IsBadRequest(err) { // the CRD is of a version without it
			err = nil
		}
	}
	return err
}

// list calls f with the allocations that a selector of fields selects and that match. It
// returns the resource version that the list is of.
func (c *Cluster) list(ctx context.Context, where fields.Set, matches func(*v1alpha1.IPAllocation) bool, f func(*v1alpha1.IPAllocation)) (version string, err error) {
	same := interner{}
	return c.pages(ctx, "allocations", func() *rest.Request {
		request := c.ipam.RESTClient().Get().NamespaceIfScoped(c.Namespace, c.Namespace != "").Resource(resourceAllocations)
		if len(where) > 0 {
			request = request.Param("fieldSelector", where.String())
		}
		return request
	}, func(data []byte) (int, error) {
		var page struct {
			Items []item `json:"items"`
		}
		err := json.Unmarshal(data, &page)
		for i := range page.Items {
			if a := same.thin(&page.Items[i]); matches(a) {
				f(a)
			}
		}
		return len(page.Items), err
	})
}

// item is what is read of an allocation: the rest of its metadata is longer than all of it.
type item struct {
	Metadata struct {
		Namespace         string            `json:"namespace"`
		Name              string            `json:"name"`
		UID               types.UID         `json:"uid"`
		ResourceVersion   string            `json:"resourceVersion"`
		CreationTimestamp metav1.Time       `json:"creationTimestamp"`
		Labels            map[string]string `json:"labels"`
	} `json:"metadata"`
	Spec v1alpha1.IPAllocationSpec `json:"spec"`
}

// Fields that allocations are selected by.
const (
	fieldName         = "metadata.name"
	fieldNamespace    = "metadata.namespace"
	fieldAddress      = "spec.address"
	fieldNode         = "spec.nodeName"
	fieldPodNamespace = "spec.podRef.namespace"
	fieldPod          = "spec.podRef.name"
)

func fieldsOf(a *v1alpha1.IPAllocation) fields.Set {
	return fields.Set{
		fieldName: a.Name, fieldNamespace: a.Namespace, fieldAddress: a.Spec.Address, fieldNode: a.Spec.NodeName,
		fieldPodNamespace: a.Spec.PodRef.Namespace, fieldPod: a.Spec.PodRef.Name,
	}
}

// interner keeps one copy of a text that many objects have.
type interner map[string]string

func (i interner) of(text string) string {
	if known, found := i[text]; found {
		return known
	}
	i[text] = text
	return text
}

// thin returns an allocation as it is kept: with its labels only if they are wrong, and
// then they are not nil.
func (i interner) thin(in *item) *v1alpha1.IPAllocation {
	m := &in.Metadata
	out := &v1alpha1.IPAllocation{ObjectMeta: metav1.ObjectMeta{
		Namespace: i.of(m.Namespace), Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion, CreationTimestamp: m.CreationTimestamp, Labels: m.Labels,
	}, Spec: in.Spec}
	switch {
	case len(wrongLabels(out)) == 0:
		out.Labels = nil
	case out.Labels == nil:
		out.Labels = map[string]string{}
	}
	s := &out.Spec
	for _, text := range []*string{&s.NodeName, &s.PoolRef.Name, &s.Domain, &s.PodRef.Namespace, &s.InterfaceName, &s.NetworkName} {
		*text = i.of(*text)
	}
	return out
}

func (s *site) add(a *v1alpha1.IPAllocation) {
	s.allocations = append(s.allocations, a)
	s.byPod[podKey(a.Spec.PodRef)] = append(s.byPod[podKey(a.Spec.PodRef)], a)
	domain := a.DomainOf()
	s.byDomain[domain] = append(s.byDomain[domain], a)
}

func podKey(ref v1alpha1.PodReference) string { return ref.Namespace + "/" + ref.Name }

// inDomain returns the pools of a domain.
func (s *site) inDomain(domain string) (out []*pool.Object) {
	for _, p := range s.pools {
		if p.Domain == domain {
			out = append(out, p)
		}
	}
	return out
}

// heldIn returns the addresses of a pool that are held, or rest.
func (s *site) heldIn(p *pool.Object) []pool.Held {
	return slices.Collect(p.Held(s.byDomain[p.Domain]))
}

func (c *Cluster) readNodes(ctx context.Context, into map[string]*corev1.Node) error {
	list := func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
		return c.kube.CoreV1().Nodes().List(ctx, opts)
	}
	return c.each(ctx, "nodes", metav1.ListOptions{}, list, func(obj runtime.Object) {
		n := obj.(*corev1.Node)
		into[n.Name] = nodeOf(n)
	})
}

// nodeOf returns what is kept of a node.
func nodeOf(n *corev1.Node) *corev1.Node {
	ready := readiness(n)
	for i := range ready {
		ready[i].LastHeartbeatTime = metav1.Time{} // it changes all the time
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, UID: n.UID, CreationTimestamp: n.CreationTimestamp, Labels: n.Labels},
		Spec:       corev1.NodeSpec{Taints: n.Spec.Taints}, Status: corev1.NodeStatus{Conditions: ready},
	}
}

func (c *Cluster) readPods(ctx context.Context, into map[string]*pod) error {
	list := func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
		return c.kube.CoreV1().Pods("").List(ctx, opts)
	}
	return c.each(ctx, "pods", metav1.ListOptions{}, list, func(obj runtime.Object) {
		p := obj.(*corev1.Pod)
		into[p.Namespace+"/"+p.Name] = podOf(p)
	})
}

func podOf(p *corev1.Pod) *pod {
	out := &pod{Pod: *reclaim.PodOf(p), networks: p.Annotations[ledger.AnnotationNetworks], status: p.Annotations[annotationStatus]}
	out.Placed, out.Node = true, p.Spec.NodeName
	out.Ended = ended(p)
	return out
}

// selected returns the names of the nodes that a pool selects.
func (r *record) selected(p *pool.Pool) (names []string) {
	for name, node := range r.nodes {
		if p.Selects(node) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// find returns the pools of a name, of all kinds and namespaces.
func (r *record) find(name string) (found []*pool.Object, err error) {
	for _, s := range r.sites {
		for _, p := range s.pools {
			if p.Ref.Name == name {
				found = append(found, p)
			}
		}
	}
	switch {
	case len(found) == 0 && r.only != "":
		return nil, fmt.Errorf("there is no pool %q in namespace %s, and no other was looked at", name, r.only)
	case len(found) == 0:
		return nil, fmt.Errorf("there is no pool %q: kubectl ipam show lists all", name)
	}
	return found, nil
}

func (r *record) site(namespace string) *site {
	for _, s := range r.sites {
		if s.namespace == namespace {
			return s
		}
	}
	return &site{namespace: namespace}
}
