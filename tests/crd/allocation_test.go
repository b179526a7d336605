// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package crd

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/fixture"
)

// attached is an allocation with an attachment; reserved is one without.
func attached() *v1alpha1.IPAllocation {
	a := reserved()
	a.Spec.NodeName, a.Spec.ContainerID, a.Spec.InterfaceName = "node1", "c1", "net1"
	return a
}

func reserved() *v1alpha1.IPAllocation {
	return &v1alpha1.IPAllocation{
		ObjectMeta: metav1.ObjectMeta{Name: "pool1.10.0.0.5"},
		Spec: v1alpha1.IPAllocationSpec{
			PoolRef: v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "pool1"},
			Address: "10.0.0.5",
			PodRef:  v1alpha1.PodReference{Namespace: "default", Name: "pod1", UID: "u1"},
		},
	}
}

func TestCreateAllocation(t *testing.T) {
	type alloc = v1alpha1.IPAllocation
	allocs := fixture.Client(t, env.Config).IPAllocations(env.Namespace(t))
	for _, tt := range []struct {
		name string
		edit func(*alloc) // of an attached one
		says string       // empty: accepted
	}{
		{name: "attached", edit: func(*alloc) {}},
		{name: "reserved", edit: func(a *alloc) { *a = *reserved() }},
		{name: "reserved on a node", edit: func(a *alloc) { *a = *reserved(); a.Spec.NodeName = "node1" }},
		{name: "IPv6", edit: func(a *alloc) {
			a.Name, a.Spec.Address = "pool1.fd00-0000-0000-0000-0000-0000-0000-0001", "fd00::1"
		}},
		{name: "pool with dots in its name", edit: func(a *alloc) { a.Name, a.Spec.PoolRef.Name = "a.b.10.0.0.5", "a.b" }},
		{name: "without a pod", edit: func(a *alloc) { a.Spec.PodRef = v1alpha1.PodReference{} }},

		{name: "name of another address", edit: func(a *alloc) { a.Name = "pool1.10.0.0.6" }, says: "metadata.name must be spec.poolRef.name, a dot and spec.address"},
		{name: "name that begins with the address", edit: func(a *alloc) { a.Name = "pool1.10.0.0.50" }, says: "metadata.name must be"},
		{name: "name of another pool", edit: func(a *alloc) { a.Name = "pool2.10.0.0.5" }, says: "metadata.name must begin with spec.poolRef.name and a dot"},
		{name: "name of a pool that begins with this one", edit: func(a *alloc) { a.Name = "pool10.10.0.0.5" }, says: "metadata.name must begin with"},
		{name: "IPv6 with the name of another pool", edit: func(a *alloc) {
			a.Name, a.Spec.Address = "pool2.fd00-0000-0000-0000-0000-0000-0000-0001", "fd00::1"
		}, says: "metadata.name must begin with"},
		{name: "address with a length", edit: func(a *alloc) { a.Spec.Address = "10.0.0.5/24" }, says: "spec.address"},
		{name: "address in capitals", edit: func(a *alloc) { a.Name, a.Spec.Address = "pool1.fd00", "FD00::1" }, says: "spec.address"},
		{name: "no address", edit: func(a *alloc) { a.Name, a.Spec.Address = "pool1.x", "" }, says: "spec.address"},
		{name: "unknown kind of pool", edit: func(a *alloc) { a.Spec.PoolRef.Kind = "Pool" }, says: "spec.poolRef.kind"},
		{name: "no pool", edit: func(a *alloc) { a.Spec.PoolRef.Name = "" }, says: "spec.poolRef.name"},
		{name: "container without interface", edit: func(a *alloc) { a.Spec.InterfaceName = "" }, says: "containerID and interfaceName go together"},
		{name: "interface without container", edit: func(a *alloc) { a.Spec.ContainerID = "" }, says: "containerID and interfaceName go together"},
		{name: "attachment without node", edit: func(a *alloc) { a.Spec.NodeName = "" }, says: "an attachment has a nodeName"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := attached()
			tt.edit(a)
			_, err := allocs.Create(t.Context(), a, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			wantRefusal(t, err, tt.says)
		})
	}
}

func TestUpdateAllocation(t *testing.T) {
	type alloc = v1alpha1.IPAllocation
	const (
		immutable = "poolRef and address are immutable"
		another   = "an attachment never becomes another"
	)
	for _, tt := range []struct {
		name string
		from *alloc
		edit func(*alloc)
		says string // empty: accepted
	}{
		{name: "labels", from: attached(), edit: func(a *alloc) { a.Labels = map[string]string{"a": "b"} }},
		{name: "requested", from: attached(), edit: func(a *alloc) { a.Spec.Requested = true }},
		{name: "address", from: attached(), edit: func(a *alloc) { a.Spec.Address = "10.0.0.6" }, says: immutable},
		{name: "address in another form", from: attached(), edit: func(a *alloc) { a.Spec.Address = "::ffff:10.0.0.5" }, says: immutable},
		{name: "pool's name", from: attached(), edit: func(a *alloc) { a.Spec.PoolRef.Name = "pool2" }, says: immutable},
		{name: "pool's kind", from: attached(), edit: func(a *alloc) { a.Spec.PoolRef.Kind = v1alpha1.PoolKindCIDRPool }, says: immutable},
		{name: "pool's kind of a reservation", from: reserved(), edit: func(a *alloc) { a.Spec.PoolRef.Kind = v1alpha1.PoolKindCIDRPool }, says: immutable},

		{name: "another container", from: attached(), edit: func(a *alloc) { a.Spec.ContainerID = "c2" }, says: another},
		{name: "another interface", from: attached(), edit: func(a *alloc) { a.Spec.InterfaceName = "net2" }, says: another},
		{name: "another node", from: attached(), edit: func(a *alloc) { a.Spec.NodeName = "node2" }, says: another},
		{name: "no attachment any more", from: attached(), edit: func(a *alloc) { a.Spec.ContainerID, a.Spec.InterfaceName = "", "" }, says: another},
		{name: "no container any more", from: attached(), edit: func(a *alloc) { a.Spec.ContainerID = "" }, says: another},

		{name: "a reservation is taken up", from: reserved(), edit: func(a *alloc) { a.Spec = attached().Spec }},
		{name: "a reservation is given to another pod", from: reserved(), edit: func(a *alloc) { a.Spec.PodRef.Name = "pod2" }},
		{name: "a reservation is taken up in part", from: reserved(), edit: func(a *alloc) { a.Spec.NodeName, a.Spec.ContainerID = "node1", "c1" }, says: "containerID and interfaceName go together"},
		{name: "a reservation is taken up on no node", from: reserved(), edit: func(a *alloc) { a.Spec.ContainerID, a.Spec.InterfaceName = "c1", "net1" }, says: "an attachment has a nodeName"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			allocs := fixture.Client(t, env.Config).IPAllocations(env.Namespace(t))
			a, err := allocs.Create(t.Context(), tt.from, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			tt.edit(a)
			_, err = allocs.Update(t.Context(), a, metav1.UpdateOptions{})
			wantRefusal(t, err, tt.says)
		})
	}
}

// A reservation is taken up once.
func TestReservationIsTakenUpOnce(t *testing.T) {
	allocs := fixture.Client(t, env.Config).IPAllocations(env.Namespace(t))
	a, err := allocs.Create(t.Context(), reserved(), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	first, second := a.DeepCopy(), a.DeepCopy()
	first.Spec.NodeName, first.Spec.ContainerID, first.Spec.InterfaceName = "node1", "c1", "net1"
	second.Spec.NodeName, second.Spec.ContainerID, second.Spec.InterfaceName = "node2", "c2", "net1"
	if first, err = allocs.Update(t.Context(), first, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err = allocs.Update(t.Context(), second, metav1.UpdateOptions{})
	wantRefusal(t, err, "the object has been modified")
	second.ResourceVersion = first.ResourceVersion
	_, err = allocs.Update(t.Context(), second, metav1.UpdateOptions{})
	wantRefusal(t, err, "an attachment never becomes another")
}

func TestFieldSelectors(t *testing.T) {
	if env.Minor < 31 {
		t.Skipf("1.%d does not select custom resources by fields", env.Minor)
	}
	namespace := env.Namespace(t)
	allocs := fixture.Client(t, env.Config).IPAllocations(namespace)
	for name, edit := range map[string]func(*v1alpha1.IPAllocation){
		"pool1.10.0.0.5": func(*v1alpha1.IPAllocation) {},
		"pool1.10.0.0.6": func(a *v1alpha1.IPAllocation) {
			a.Spec.Address, a.Spec.NodeName, a.Spec.PodRef.Namespace = "10.0.0.6", "node2", "other"
		},
		"pool2.10.0.0.7": func(a *v1alpha1.IPAllocation) {
			a.Spec.Address, a.Spec.PoolRef.Name, a.Spec.PodRef.Name = "10.0.0.7", "pool2", "pod2"
		},
	} {
		a := attached()
		a.Name = name
		edit(a)
		if _, err := allocs.Create(t.Context(), a, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for selector, want := range map[string]string{
		"spec.nodeName=node1":                                     "ipallocation.nv-ipam.nvidia.com/pool1.10.0.0.5\nipallocation.nv-ipam.nvidia.com/pool2.10.0.0.7\n",
		"spec.nodeName=node2":                                     "ipallocation.nv-ipam.nvidia.com/pool1.10.0.0.6\n",
		"spec.nodeName=node3":                                     "",
		"spec.poolRef.name=pool2,spec.nodeName=node1":             "ipallocation.nv-ipam.nvidia.com/pool2.10.0.0.7\n",
		"spec.podRef.namespace=default,spec.podRef.name=pod1":     "ipallocation.nv-ipam.nvidia.com/pool1.10.0.0.5\n",
		"spec.podRef.namespace!=default,spec.poolRef.name!=pool2": "ipallocation.nv-ipam.nvidia.com/pool1.10.0.0.6\n",
	} {
		got, err := env.Kubectl(t.Context(), "get", "ipa", "-n", namespace, "-o", "name", "--field-selector", selector)
		if err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", selector, got, err, want)
		}
	}
}
