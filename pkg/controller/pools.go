// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/tools/cache"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	clients "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
	informers "github.com/crd-ipam/crd-ipam/generated/informers/externalversions/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// poolKind is all that differs between IPPools and CIDRPools here.
type poolKind struct {
	informer cache.SharedIndexInformer
	resource schema.GroupVersionResource
	// view reads an object of the informer.
	view func(obj any) *poolView
	// patch writes the status and reads the answer.
	patch func(ctx context.Context, name string, as types.PatchType, body []byte, opts metav1.PatchOptions) (*poolView, error)
	// allocations writes blocks as status.allocations has them.
	allocations func([]pool.Assignment) any
}

// poolView is a pool of either kind, as one version of its object has it.
type poolView struct {
	ref    v1alpha1.PoolReference
	meta   *metav1.ObjectMeta
	status *v1alpha1.PoolStatus
	// allocations is status.allocations; nil where there is no status yet.
	allocations any
	// blocks are the allocations that could be read.
	blocks []pool.Assignment
	// subnet is spec.subnet or spec.cidr.
	subnet string
	// parse checks the specification.
	parse func() (*pool.Pool, field.ErrorList)
}

// object names the pool in an event.
func (v *poolView) object() *corev1.ObjectReference { return reference(v.ref, v.meta) }

// reference names a pool in an event.
func reference(ref v1alpha1.PoolReference, pool metav1.Object) *corev1.ObjectReference {
	return &corev1.ObjectReference{
		APIVersion: v1alpha1.GroupVersion.String(), Kind: string(ref.Kind),
		Namespace: pool.GetNamespace(), Name: pool.GetName(), UID: pool.GetUID(), ResourceVersion: pool.GetResourceVersion(),
	}
}

// pool returns the metadata of a pool in the cache, nil where it is not there: a
// view reads all of its blocks, which may be thousands.
func (c *Controller) pool(ref v1alpha1.PoolReference) metav1.Object {
	obj, found, _ := c.kinds[ref.Kind].informer.GetIndexer().GetByKey(c.opts.Namespace + "/" + ref.Name) // never fails
	if !found {
		return nil
	}
	return obj.(metav1.Object)
}

func resource(name string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: v1alpha1.GroupVersion.Group, Version: v1alpha1.GroupVersion.Version, Resource: name}
}

func poolKinds(client clients.NvIpamV1alpha1Interface, informer informers.Interface, namespace string) map[v1alpha1.PoolKind]poolKind {
	return map[v1alpha1.PoolKind]poolKind{
		v1alpha1.PoolKindIPPool: {
			informer:    informer.IPPools().Informer(),
			resource:    resource("ippools"),
			view:        func(obj any) *poolView { return viewIPPool(obj.(*v1alpha1.IPPool)) },
			patch:       statusPatcher(client.IPPools(namespace).Patch, viewIPPool),
			allocations: func(a []pool.Assignment) any { return pool.IPPoolAllocations(a) },
		},
		v1alpha1.PoolKindCIDRPool: {
			informer:    informer.CIDRPools().Informer(),
			resource:    resource("cidrpools"),
			view:        func(obj any) *poolView { return viewCIDRPool(obj.(*v1alpha1.CIDRPool)) },
			patch:       statusPatcher(client.CIDRPools(namespace).Patch, viewCIDRPool),
			allocations: func(a []pool.Assignment) any { return pool.CIDRPoolAllocations(a) },
		},
	}
}

func viewIPPool(p *v1alpha1.IPPool) *poolView {
	v := &poolView{
		ref:    v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: p.Name},
		meta:   &p.ObjectMeta,
		status: &p.Status.PoolStatus,
		blocks: pool.IPPoolAssignments(p.Status.Allocations),
		subnet: p.Spec.Subnet,
		parse:  func() (*pool.Pool, field.ErrorList) { return pool.FromIPPool(p) },
	}
	if p.Status.Allocations != nil {
		v.allocations = p.Status.Allocations
	}
	return v
}

func viewCIDRPool(p *v1alpha1.CIDRPool) *poolView {
	v := &poolView{
		ref:    v1alpha1.PoolReference{Kind: v1alpha1.PoolKindCIDRPool, Name: p.Name},
		meta:   &p.ObjectMeta,
		status: &p.Status.PoolStatus,
		blocks: pool.CIDRPoolAssignments(p.Status.Allocations),
		subnet: p.Spec.CIDR,
		parse:  func() (*pool.Pool, field.ErrorList) { return pool.FromCIDRPool(p) },
	}
	if p.Status.Allocations != nil {
		v.allocations = p.Status.Allocations
	}
	return v
}

// statusPatcher binds the typed client's Patch to the status and to view.
func statusPatcher[T any](
	patch func(ctx context.Context, name string, as types.PatchType, body []byte, opts metav1.PatchOptions, subresources ...string) (*T, error),
	view func(*T) *poolView,
) func(context.Context, string, types.PatchType, []byte, metav1.PatchOptions) (*poolView, error) {
	return func(ctx context.Context, name string, as types.PatchType, body []byte, opts metav1.PatchOptions) (*poolView, error) {
		obj, err := patch(ctx, name, as, body, opts, "status")
		if err != nil {
			return nil, err
		}
		return view(obj), nil
	}
}
