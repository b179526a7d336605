// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package whereabouts

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
)

// state is what the API server has, at one time.
type state struct {
	now    time.Time
	settle time.Duration // see Migration

	ranges       []rangePool
	reservations []reservation
	slices       []slicePool
	networks     []network
	pods         map[string]pod // by namespace/name

	namespace string // of what follows
	pools     []v1alpha1.IPPool
	held      []v1alpha1.IPAllocation
}

// rangePool is whereabouts' IPPool: who has which address of a range. Where there are
// node slices, it is of one node.
type rangePool struct {
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Range string `json:"range"`
		// Allocations by the distance from the range's first address.
		Allocations map[string]entry `json:"allocations"`
	} `json:"spec"`
}

// entry is one address that whereabouts has given.
type entry struct {
	ContainerID string `json:"id"`
	PodRef      string `json:"podref"` // namespace/name
	Interface   string `json:"ifname"` // empty where an old version wrote it
}

// reservation is whereabouts' OverlappingRangeIPReservation: the lock on an address
// across ranges.
type reservation struct {
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		PodRef string `json:"podref"`
	} `json:"spec"`
}

// slicePool is whereabouts' NodeSlicePool: which node has which part of a range.
type slicePool struct {
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Range string `json:"range"`
	} `json:"spec"`
	Status struct {
		Allocations []struct {
			NodeName   string `json:"nodeName"`
			SliceRange string `json:"sliceRange"`
		} `json:"allocations"`
	} `json:"status"`
}

// network is a NetworkAttachmentDefinition.
type network struct {
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Config string `json:"config"`
	} `json:"spec"`
}

func (n *network) String() string { return n.Namespace + "/" + n.Name }

// changed is when somebody has written it last.
func (n *network) changed() time.Time {
	at := n.CreationTimestamp.Time
	for _, f := range n.ManagedFields {
		if f.Time != nil && f.Time.After(at) {
			at = f.Time.Time
		}
	}
	return at
}

// pod is what is asked about a pod.
type pod struct {
	node    string
	created metav1.Time
	status  string // annotation network-status
}

// clients are an administrator's.
type clients struct {
	ipam    clientv1alpha1.NvIpamV1alpha1Interface
	kube    kubernetes.Interface
	dynamic dynamic.Interface
}

const (
	group         = "whereabouts.cni.cncf.io"
	networkStatus = "k8s.v1.cni.cncf.io/network-status"
	pageSize      = 500
)

// read reads it all. Networks come first, and whereabouts' ranges last: what is given
// after the networks were read is seen.
func (c *clients) read(ctx context.Context, from, to string) (*state, error) {
	s := &state{now: time.Now(), namespace: to, pods: map[string]pod{}}
	var err error
	if s.networks, err = list[network](ctx, c, schema.GroupVersionResource{Group: "k8s.cni.cncf.io", Version: "v1", Resource: "network-attachment-definitions"}, ""); err != nil {
		return nil, err
	}
	if err := c.readOurs(ctx, s); err != nil {
		return nil, err
	}
	if s.slices, err = list[slicePool](ctx, c, resource("nodeslicepools"), from); err != nil {
		return nil, err
	}
	if s.reservations, err = list[reservation](ctx, c, resource("overlappingrangeipreservations"), from); err != nil {
		return nil, err
	}
	if s.ranges, err = list[rangePool](ctx, c, resource("ippools"), from); err != nil {
		return nil, err
	}
	return s, c.readPods(ctx, s)
}

func resource(plural string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: group, Version: "v1alpha1", Resource: plural}
}

// list lists objects, sorted by namespace and name; a kind that does not exist has none.
func list[T any](ctx context.Context, c *clients, r schema.GroupVersionResource, namespace string) (out []T, err error) {
	opts := metav1.ListOptions{Limit: pageSize}
	var items []unstructured.Unstructured
	for {
		page, err := c.dynamic.Resource(r).Namespace(namespace).List(ctx, opts)
		if apierrors.IsNotFound(err) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("listing %s: %w", r.GroupResource(), err)
		}
		items = append(items, page.Items...)
		if opts.Continue = page.GetContinue(); opts.Continue == "" {
			break
		}
	}
	slices.SortFunc(items, func(a, b unstructured.Unstructured) int {
		return strings.Compare(a.GetNamespace()+"/"+a.GetName(), b.GetNamespace()+"/"+b.GetName())
	})
	for _, u := range items {
		var o T
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &o); err != nil {
			return nil, fmt.Errorf("reading %s %s/%s: %w", r.GroupResource(), u.GetNamespace(), u.GetName(), err)
		}
		out = append(out, o)
	}
	return out, nil
}

// readOurs reads the pools and the allocations of the namespace.
func (c *clients) readOurs(ctx context.Context, s *state) error {
	pools, err := c.ipam.IPPools(s.namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("listing the pools of namespace %s: %w", s.namespace, err)
	}
	s.pools = pools.Items
	opts := metav1.ListOptions{Limit: pageSize}
	for {
		page, err := c.ipam.IPAllocations(s.namespace).List(ctx, opts)
		if err != nil {
			return fmt.Errorf("listing the allocations of namespace %s: %w", s.namespace, err)
		}
		s.held = append(s.held, page.Items...)
		if opts.Continue = page.Continue; opts.Continue == "" {
			return nil
		}
	}
}

// readPods reads the pods that whereabouts' entries name.
func (c *clients) readPods(ctx context.Context, s *state) error {
	wanted := map[string]bool{}
	for _, p := range s.ranges {
		for _, e := range p.Spec.Allocations {
			wanted[e.PodRef] = true
		}
	}
	opts := metav1.ListOptions{Limit: pageSize}
	for len(wanted) > 0 {
		page, err := c.kube.CoreV1().Pods(corev1.NamespaceAll).List(ctx, opts)
		if err != nil {
			return fmt.Errorf("listing pods: %w", err)
		}
		for _, p := range page.Items {
			if ref := p.Namespace + "/" + p.Name; wanted[ref] {
				s.pods[ref] = pod{node: p.Spec.NodeName, created: p.CreationTimestamp, status: p.Annotations[networkStatus]}
			}
		}
		if opts.Continue = page.Continue; opts.Continue == "" {
			break
		}
	}
	return nil
}

// interfaceOf finds in the annotation network-status which interface has an address.
func (p pod) interfaceOf(address string) string {
	var networks []struct {
		Interface string   `json:"interface"`
		IPs       []string `json:"ips"`
	}
	if json.Unmarshal([]byte(p.status), &networks) != nil {
		return ""
	}
	for _, n := range networks {
		if slices.Contains(n.IPs, address) {
			return n.Interface
		}
	}
	return ""
}
