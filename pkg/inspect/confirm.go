// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/reclaim"
)

// suspect is what a finding rests on and a second look is at: lists are read one after the
// other, and pods come and go meanwhile.
type suspect struct {
	namespace, allocation string // allocation is "" if it is about pods only
	address               string
	// leaked is the allocation that looks leaked or may be; "" if that is not what is wrong.
	leaked types.UID
	pods   []string // NAMESPACE/NAME
}

func suspectOf(a *v1alpha1.IPAllocation) *suspect {
	return &suspect{namespace: a.Namespace, allocation: a.Name, address: a.Spec.Address, leaked: a.UID, pods: []string{podKey(a.Spec.PodRef)}}
}

const (
	// maxSuspects is how many findings get a second look: it asks for single objects.
	maxSuspects = 200
	// lookers is how many of these are asked for at the same time.
	lookers = 16
)

// confirm reports what a second look finds about the same addresses: what was wrong with one may be
// wrong in another way now.
func (k *checking) confirm(ctx context.Context, c *Cluster) {
	findings := slices.SortedFunc(slices.Values(k.report.Findings), finding.compare)
	var suspects []*suspect
	for _, f := range findings {
		if f.suspect != nil {
			suspects = append(suspects, f.suspect)
		}
	}
	if more := len(suspects) - maxSuspects; more > 0 {
		k.skip("a second look at findings", fmt.Errorf("%d more than %d: these may be of pods that started or ended meanwhile", more, maxSuspects))
	}
	fresh, err := c.again(ctx, k.record, suspects)
	if err != nil {
		k.skip("a second look at findings, which may be of pods that started or ended meanwhile", err)
	}
	if fresh == nil {
		return
	}
	second := &checking{record: fresh, report: &Report{Namespace: k.report.Namespace}, networks: k.networks}
	second.judge()
	before := map[string]bool{}
	for _, s := range suspects {
		before[s.about()], before[s.address] = true, true
	}
	k.report.Findings = slices.DeleteFunc(findings, func(f finding) bool { return f.suspect != nil })
	for _, f := range second.report.Findings {
		if f.suspect != nil && before[f.suspect.about()] {
			k.report.Findings = append(k.report.Findings, f)
		}
	}
}

// about is what an earlier suspect has to have been about. An allocation that looks leaked has to
// have looked so before, for whichever reason: else it may be that of a pod that ended just now.
func (s *suspect) about() string { return cmp.Or(string(s.leaked), s.address) }

// again reads the first suspects again, and returns the record as it is then; nil if nothing
// has changed.
func (c *Cluster) again(ctx context.Context, r *record, suspects []*suspect) (*record, error) {
	suspects = suspects[:min(len(suspects), maxSuspects)]
	if len(suspects) == 0 {
		return nil, nil
	}
	l := &look{Cluster: c, allocations: map[[2]string]*v1alpha1.IPAllocation{}, pods: map[string]*pod{}}
	if err := l.read(ctx, suspects); err != nil {
		return nil, err
	}
	return l.onto(r), nil
}

// look is a second look: what it finds, nil where there is nothing.
type look struct {
	*Cluster

	mu          sync.Mutex
	allocations map[[2]string]*v1alpha1.IPAllocation // by namespace and name
	pods        map[string]*pod
}

func (l *look) read(ctx context.Context, suspects []*suspect) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var running sync.WaitGroup
	places := make(chan struct{}, lookers)
	ask := func(question func(context.Context) error) {
		places <- struct{}{}
		running.Go(func() {
			defer func() { <-places }()
			if err := question(ctx); err != nil {
				cancel(err) // the others' errors follow from it
			}
		})
	}
	for key := range allocationsOf(suspects) {
		ask(func(ctx context.Context) error { return l.readAllocation(ctx, key) })
	}
	for key := range podsAbout(suspects) {
		ask(func(ctx context.Context) error { return l.readPod(ctx, key) })
	}
	running.Wait()
	since := podsAbout(l.holders()) // who has taken an address since
	maps.DeleteFunc(since, func(key string, _ bool) bool { _, read := l.pods[key]; return read })
	for key := range since {
		ask(func(ctx context.Context) error { return l.readPod(ctx, key) })
	}
	running.Wait()
	return context.Cause(ctx)
}

// holders are the allocations that were read.
func (l *look) holders() (out []*suspect) {
	for _, a := range l.allocations {
		if a != nil {
			out = append(out, suspectOf(a))
		}
	}
	return out
}

func allocationsOf(suspects []*suspect) map[[2]string]bool {
	out := map[[2]string]bool{}
	for _, s := range suspects {
		if s.allocation != "" {
			out[[2]string{s.namespace, s.allocation}] = true
		}
	}
	return out
}

func podsAbout(suspects []*suspect) map[string]bool {
	out := map[string]bool{}
	for _, s := range suspects {
		for _, key := range s.pods {
			namespace, name, _ := strings.Cut(key, "/")
			if reclaim.Possible(v1alpha1.PodReference{Namespace: namespace, Name: name}) { // else the API server refuses the question
				out[key] = true
			}
		}
	}
	return out
}

func (l *look) readAllocation(ctx context.Context, key [2]string) error {
	a, err := ledger.Existing(l.ipam.IPAllocations(key[0]).Get(ctx, key[1], metav1.GetOptions{}))
	if err != nil {
		return fmt.Errorf("reading ipallocation %s/%s: %w", key[0], key[1], err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.allocations[key] = a
	return nil
}

func (l *look) readPod(ctx context.Context, key string) error {
	namespace, name, _ := strings.Cut(key, "/")
	p, err := ledger.Existing(l.kube.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{}))
	if err != nil {
		return fmt.Errorf("reading pod %s: %w", key, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pods[key] = nil; p != nil {
		l.pods[key] = podOf(p)
	}
	return nil
}

// onto returns the record with what the second look found in it; nil if that is the same.
func (l *look) onto(r *record) *record {
	if !l.differs(r) {
		return nil
	}
	out := &record{nodes: r.nodes, pods: maps.Clone(r.pods)}
	for key, p := range l.pods {
		if out.pods[key] = p; p == nil {
			delete(out.pods, key)
		}
	}
	for _, s := range r.sites {
		at := out.at(s.namespace)
		at.pools = s.pools
		for _, a := range s.allocations {
			if _, looked := l.allocations[[2]string{a.Namespace, a.Name}]; !looked {
				at.add(a)
			}
		}
	}
	for _, a := range l.allocations {
		if a != nil {
			out.at(a.Namespace).add(a)
		}
	}
	return out
}

func (l *look) differs(r *record) bool {
	for key, p := range l.pods {
		if !reflect.DeepEqual(p, r.pods[key]) {
			return true
		}
	}
	before := map[[2]string]*v1alpha1.IPAllocation{}
	for _, s := range r.sites {
		for _, a := range s.allocations {
			key := [2]string{a.Namespace, a.Name}
			if _, looked := l.allocations[key]; looked {
				before[key] = a
			}
		}
	}
	for key, now := range l.allocations {
		was := before[key]
		if (now == nil) != (was == nil) || now != nil && (now.UID != was.UID || now.ResourceVersion != was.ResourceVersion) {
			return true
		}
	}
	return false
}

// stillLeak returns the holders that a second look finds again, as it has found them.
func (c *Cluster) stillLeak(ctx context.Context, r *record, leaks []Holder) ([]Holder, error) {
	var suspects []*suspect
	for _, h := range leaks {
		suspects = append(suspects, &suspect{namespace: h.Namespace, allocation: h.Allocation, pods: []string{podKey(h.Pod)}})
	}
	fresh, err := c.again(ctx, r, suspects)
	if fresh == nil {
		if refused(err) { // who may list and not get sees the first look
			err = nil
		}
		return leaks, err
	}
	type leak struct {
		id        types.UID
		container string
	}
	of := func(h Holder) leak { return leak{h.AllocationID, h.Container} }
	before := map[leak]bool{}
	for _, h := range leaks {
		before[of(h)] = true
	}
	return slices.DeleteFunc(fresh.leaks(""), func(h Holder) bool { return !before[of(h)] }), nil
}
