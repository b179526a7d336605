// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package crd

import (
	"encoding/binary"
	"encoding/json"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
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

// inDomain gives an allocation a domain that is not its pool's name.
func inDomain(a *v1alpha1.IPAllocation) *v1alpha1.IPAllocation {
	a.Name, a.Spec.Domain = "fabric.10.0.0.5", "fabric"
	return a
}

// kept has a cooldown, owned an owner.
func kept(a *v1alpha1.IPAllocation) *v1alpha1.IPAllocation {
	a.Spec.ReleaseCooldown = &metav1.Duration{Duration: time.Minute}
	return a
}

func owned(a *v1alpha1.IPAllocation) *v1alpha1.IPAllocation {
	a.Spec.Owner = &v1alpha1.AllocationOwner{APIGroup: "apps", Kind: "StatefulSet", Namespace: "default", Name: "web", UID: "u1"}
	return a
}

// moving is what a machine on node1 moves from, to node2.
func moving(a *v1alpha1.IPAllocation) *v1alpha1.IPAllocation {
	machine(a).Spec.Next = &v1alpha1.NextAttachment{
		NodeName: "node2", ContainerID: "c2", InterfaceName: "net1", PodRef: v1alpha1.PodReference{Namespace: "default", Name: "pod2", UID: "u2"},
	}
	return a
}

// machine is owned by an IPAMClaim.
func machine(a *v1alpha1.IPAllocation) *v1alpha1.IPAllocation {
	a.Spec.Owner = &v1alpha1.AllocationOwner{APIGroup: v1alpha1.IPAMClaimGroup, Kind: v1alpha1.KindIPAMClaim, Namespace: "default", Name: "vm", UID: "u1"}
	return a
}

func released(a *v1alpha1.IPAllocation) *v1alpha1.IPAllocation {
	a.Spec.ReleasedAt = &metav1.Time{Time: time.Unix(1, 0)}
	return a
}

const expandedName = "an IPv6 address as eight groups of four digits that are joined by dashes"

func named(name, address string) func(*v1alpha1.IPAllocation) {
	return func(a *v1alpha1.IPAllocation) { a.Name, a.Spec.Address = name, address }
}

func started(a *v1alpha1.IPAllocation, second int64) *v1alpha1.IPAllocation {
	at := metav1.NewMicroTime(time.Unix(second, 0))
	a.Spec.AddStartedAt = &at
	return a
}

// longest has the most that each field takes.
func longest() *v1alpha1.IPAllocation {
	long := func(n int) string { return strings.Repeat("a", n) }
	a := started(attached(), 1)
	a.Spec = v1alpha1.IPAllocationSpec{
		PoolRef: v1alpha1.PoolReference{Kind: v1alpha1.PoolKindCIDRPool, Name: long(213)}, Address: "fd00:1111:2222:3333:4444:5555:6666:7777",
		NodeName: long(253), PodRef: v1alpha1.PodReference{Namespace: long(63), Name: long(253), UID: types.UID(long(64))},
		ContainerID: long(256), InterfaceName: strings.Repeat("\u00e9", 15), NetworkName: long(253), DeviceID: long(253),
		Domain: strings.Repeat("d", 213), Requested: true, AddStartedAt: a.Spec.AddStartedAt,
		Owner:           &v1alpha1.AllocationOwner{APIGroup: long(253), Kind: "A" + long(62), Namespace: long(63), Name: long(253), UID: types.UID(long(64))},
		ReleaseCooldown: &metav1.Duration{Duration: 23*time.Hour + 59*time.Minute + 59*time.Second}, ReleasedAt: &metav1.Time{Time: time.Unix(1, 0)},
	}
	a.Name = v1alpha1.AllocationName(a.Spec.Domain, netip.MustParseAddr(a.Spec.Address))
	return a
}

func TestCreateAllocation(t *testing.T) {
	type alloc = v1alpha1.IPAllocation
	allocs := rig.Client(t, env.Config).IPAllocations(env.Namespace(t))
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
		{name: "domain", edit: func(a *alloc) { a.Name, a.Spec.Domain = "fabric.10.0.0.5", "fabric" }},
		{name: "domain like the pool's name", edit: func(a *alloc) { a.Spec.Domain = "pool1" }},
		{name: "domain of an IPv6 address", edit: func(a *alloc) {
			a.Name, a.Spec.Domain, a.Spec.Address = "fabric.fd00-0000-0000-0000-0000-0000-0000-0001", "fabric", "fd00::1"
		}},
		{name: "domain with dots", edit: func(a *alloc) { a.Name, a.Spec.Domain = "a.b.10.0.0.5", "a.b" }},
		{name: "pool of a domain in the name", edit: func(a *alloc) { a.Spec.Domain = "fabric" }, says: "metadata.name must begin with spec.domain"},
		{name: "pool of a domain in the name of an IPv6 address", edit: func(a *alloc) {
			a.Name, a.Spec.Domain, a.Spec.Address = "pool1.fd00-0000-0000-0000-0000-0000-0000-0001", "fabric", "fd00::1"
		}, says: "metadata.name must begin with spec.domain"},
		{name: "another address of the domain", edit: func(a *alloc) { a.Name, a.Spec.Domain = "fabric.10.0.0.6", "fabric" }, says: "metadata.name must be spec.domain"},
		{name: "another IPv6 address of the domain", edit: func(a *alloc) {
			a.Name, a.Spec.Domain, a.Spec.Address = "fabric.fd00-0000-0000-0000-0000-0000-0000-0002", "fabric", "fd00::1"
		}, says: expandedName},
		{name: "domain that the name begins with", edit: func(a *alloc) { a.Name, a.Spec.Domain = "fabric1.10.0.0.5", "fabric" }, says: "metadata.name must begin with"},
		{name: "name of a domain without one", edit: func(a *alloc) { a.Name = "fabric.10.0.0.5" }, says: "metadata.name must begin with"},
		{name: "domain in capitals", edit: func(a *alloc) { a.Spec.Domain = "Fabric" }, says: "spec.domain"},
		{name: "domain too long", edit: func(a *alloc) { a.Spec.Domain = strings.Repeat("d", 214) }, says: "spec.domain"},
		{name: "longest domain of an IPv6 address", edit: func(a *alloc) {
			a.Spec.Domain, a.Spec.Address = strings.Repeat("d", 213), "fd00::1"
			a.Name = a.Spec.Domain + ".fd00-0000-0000-0000-0000-0000-0000-0001"
		}},
		{name: "released with a cooldown", edit: func(a *alloc) { released(kept(a)) }},
		{name: "released with neither owner nor cooldown", edit: func(a *alloc) { released(a) }, says: "releasedAt needs"},
		{name: "released without an attachment", edit: func(a *alloc) { *a = *released(owned(reserved())) }, says: "releasedAt needs"},
		{name: "longest cooldown", edit: func(a *alloc) { kept(a).Spec.ReleaseCooldown.Duration = 24 * time.Hour }},
		{name: "cooldown too long", edit: func(a *alloc) { kept(a).Spec.ReleaseCooldown.Duration = 24*time.Hour + time.Second }, says: "must be at most 24h"},
		{name: "negative cooldown", edit: func(a *alloc) { kept(a).Spec.ReleaseCooldown.Duration = -time.Second }, says: "spec.releaseCooldown"},
		{name: "cooldown of a part of a second", edit: func(a *alloc) { kept(a).Spec.ReleaseCooldown.Duration = time.Millisecond }, says: "spec.releaseCooldown"},
		{name: "owner without a name", edit: func(a *alloc) { owned(a).Spec.Owner.Name = "" }, says: "spec.owner.name"},
		{name: "without a pod", edit: func(a *alloc) { a.Spec.PodRef = v1alpha1.PodReference{} }},
		{name: "moves", edit: func(a *alloc) { moving(a) }},
		{name: "moves with the longest of each", edit: func(a *alloc) {
			moving(a)
			s := longest().Spec
			a.Spec.NodeName, a.Spec.PodRef, a.Spec.ContainerID, a.Spec.InterfaceName = s.NodeName, s.PodRef, s.ContainerID, s.InterfaceName
			a.Spec.NetworkName, a.Spec.DeviceID, a.Spec.AddStartedAt = s.NetworkName, s.DeviceID, s.AddStartedAt
			s.NodeName = strings.Repeat("b", 253)
			a.Spec.Next = v1alpha1.NextOf(&s)
		}},
		{name: "moves without an owner", edit: func(a *alloc) { moving(a).Spec.Owner = nil }, says: "next waits for an address that a container holds, and that an IPAMClaim keeps"},
		{name: "moves for a StatefulSet", edit: func(a *alloc) { owned(moving(a)) }, says: "next waits for an address"},
		{name: "moves without a container", edit: func(a *alloc) { moving(a).Spec.ContainerID = "" }, says: "next waits for an address"},
		{name: "moves and is released", edit: func(a *alloc) { released(moving(a)) }, says: "what has a next is not released"},
		{name: "moves on its node", edit: func(a *alloc) { moving(a).Spec.Next.NodeName = "node1" }, says: "next is on another node"},
		{name: "moves to no pod", edit: func(a *alloc) { moving(a).Spec.Next.PodRef = v1alpha1.PodReference{} }, says: "podRef has a namespace, a name and a uid"},
		{name: "moves to a pod of no UID", edit: func(a *alloc) { moving(a).Spec.Next.PodRef.UID = "" }, says: "podRef has a namespace, a name and a uid"},
		{name: "moves to no node", edit: func(a *alloc) { moving(a).Spec.Next.NodeName = "" }, says: "spec.next.nodeName"},
		{name: "moves to no container", edit: func(a *alloc) { moving(a).Spec.Next.ContainerID = "" }, says: "spec.next.containerID"},

		{name: "name of another address", edit: func(a *alloc) { a.Name = "pool1.10.0.0.6" }, says: "metadata.name must be spec.domain (spec.poolRef.name if that is not set), a dot and spec.address"},
		{name: "name that begins with the address", edit: func(a *alloc) { a.Name = "pool1.10.0.0.50" }, says: "metadata.name must be"},
		{name: "name of another pool", edit: func(a *alloc) { a.Name = "pool2.10.0.0.5" }, says: "metadata.name must begin with spec.domain (spec.poolRef.name if that is not set) and a dot"},
		{name: "name of a pool that begins with this one", edit: func(a *alloc) { a.Name = "pool10.10.0.0.5" }, says: "metadata.name must begin with"},
		{name: "IPv6 with the name of another pool", edit: func(a *alloc) {
			a.Name, a.Spec.Address = "pool2.fd00-0000-0000-0000-0000-0000-0000-0001", "fd00::1"
		}, says: "metadata.name must begin with"},
		{name: "IPv6 in the short form", edit: named("pool1.fd00--5", "fd00::5"), says: expandedName},
		{name: "IPv6 as another address is named", edit: named("pool1.fd00-0000-0000-0000-0000-0000-0000-0006", "fd00::5"), says: expandedName},
		{name: "IPv6 with the name of an IPv4 address", edit: named("pool1.10.0.0.8", "::1"), says: expandedName},
		{name: "IPv6 with one group too many in its name", edit: named("pool1.0000-fd00-0000-0000-0000-0000-0000-0000-0005", "fd00::5"), says: expandedName},
		{name: "IPv6 with digits that are missing in its name", edit: named("pool1.fd00-0-0-0-0-0-0-5", "fd00::5"), says: expandedName},
		{name: "IPv6 with nothing after the pool", edit: named("pool1.x", "fd00::5"), says: expandedName},
		{name: "IPv4 with the name of an IPv6 address", edit: named("pool1.fd00-0000-0000-0000-0000-0000-0000-0005", "10.0.0.5"), says: "metadata.name must be"},
		{name: "pool's name has the address's beginning", edit: func(a *alloc) { a.Name, a.Spec.PoolRef.Name, a.Spec.Address = "p.10.0.0.7", "p.10", "0.0.7" }, says: "spec.address"},
		{name: "pool's name has all but the end of the address", edit: func(a *alloc) { a.Name, a.Spec.PoolRef.Name, a.Spec.Address = "p.10.0.0.7", "p.10.0.0", "7" }, says: "spec.address"},
		{name: "letters for an address", edit: named("pool1.aaaa.bbbb", "aaaa.bbbb"), says: "spec.address"},
		{name: "leading zero", edit: named("pool1.010.0.0.1", "010.0.0.1"), says: "spec.address"},
		{name: "number too large", edit: named("pool1.10.0.0.256", "10.0.0.256"), says: "spec.address"},
		{name: "three numbers", edit: named("pool1.10.0.1", "10.0.1"), says: "spec.address"},
		{name: "five numbers", edit: named("pool1.10.0.0.0.1", "10.0.0.0.1"), says: "spec.address"},
		{name: "IPv4 inside IPv6", edit: named("pool1.0000-0000-0000-0000-0000-ffff-0a00-0001", "::ffff:10.0.0.1"), says: "spec.address"},
		{name: "IPv4 inside IPv6 in hexadecimal", edit: named("pool1.0000-0000-0000-0000-0000-ffff-0a00-0001", "::ffff:a00:1"), says: "an IPv4 address must be written as IPv4"},
		{name: "IPv4 inside IPv6 that ends in zeros", edit: named("pool1.0000-0000-0000-0000-0000-ffff-0000-0000", "::ffff:0:0"), says: "an IPv4 address must be written as IPv4"},
		{name: "a zone", edit: named("pool1.fe80-0000-0000-0000-0000-0000-0000-0001", "fe80::1%eth0"), says: "spec.address"},
		{name: "a zone of hexadecimal digits", edit: named("pool1.fe80-0000-0000-0000-0000-0000-0000-0001", "fe80::1%1"), says: "spec.address"},
		{name: "three colons", edit: named("pool1.0000-0000-0000-0000-0000-0000-0000-0005", ":::5"), says: "spec.address"},
		{name: "a group of five digits", edit: named("pool1.fd00-0000-0000-0000-0000-0000-0000-0005", "fd00::00005"), says: "spec.address"},
		{name: "seven groups", edit: named("pool1.0001-0002-0003-0004-0005-0006-0007", "1:2:3:4:5:6:7"), says: "spec.address"},
		{name: "nine groups", edit: named("pool1.0001-0002-0003-0004-0005-0006-0007-0008-0009", "1:2:3:4:5:6:7:8:9"), says: "spec.address"},
		{name: "address with a length", edit: func(a *alloc) { a.Spec.Address = "10.0.0.5/24" }, says: "spec.address"},
		{name: "address in capitals", edit: func(a *alloc) { a.Name, a.Spec.Address = "pool1.fd00-0000-0000-0000-0000-0000-0000-0001", "FD00::1" }, says: "spec.address"},
		{name: "no address", edit: func(a *alloc) { a.Name, a.Spec.Address = "pool1.x", "" }, says: "spec.address"},
		{name: "unknown kind of pool", edit: func(a *alloc) { a.Spec.PoolRef.Kind = "Pool" }, says: "spec.poolRef.kind"},
		{name: "no pool", edit: func(a *alloc) { a.Spec.PoolRef.Name = "" }, says: "spec.poolRef.name"},
		{name: "container without interface", edit: func(a *alloc) { a.Spec.InterfaceName = "" }, says: "an attachment has an interfaceName"},
		{name: "interface without container", edit: func(a *alloc) { a.Spec.ContainerID = "" }},
		{name: "UID of a static pod", edit: func(a *alloc) { a.Spec.PodRef.UID = "0123456789abcdef0123456789abcdef" }},
		{name: "no UID", edit: func(a *alloc) { a.Spec.PodRef.UID = "" }},
		{name: "longest of everything", edit: func(a *alloc) { *a = *longest() }},
		{name: "UID too long", edit: func(a *alloc) { a.Spec.PodRef.UID = types.UID(strings.Repeat("a", 65)) }, says: "spec.podRef.uid"},
		{name: "UID that is none", edit: func(a *alloc) { a.Spec.PodRef.UID = "%zz" }, says: "spec.podRef.uid"},
		{name: "pod that nobody can name", edit: func(a *alloc) { a.Spec.PodRef.Name = "%zz" }, says: "spec.podRef.name"},
		{name: "pod in capitals", edit: func(a *alloc) { a.Spec.PodRef.Name = "Pod" }, says: "spec.podRef.name"},
		{name: "pod with a line break", edit: func(a *alloc) { a.Spec.PodRef.Name = "pod1\n" }, says: "spec.podRef.name"},
		{name: "namespace that nobody can name", edit: func(a *alloc) { a.Spec.PodRef.Namespace = "a.b" }, says: "spec.podRef.namespace"},
		{name: "node that nobody can name", edit: func(a *alloc) { a.Spec.NodeName = "node_1" }, says: "spec.nodeName"},
		{name: "container with a slash", edit: func(a *alloc) { a.Spec.ContainerID = "../c1" }, says: "spec.containerID"},
		{name: "container too long", edit: func(a *alloc) { a.Spec.ContainerID = strings.Repeat("c", 257) }, says: "spec.containerID"},
		{name: "interface with a slash", edit: func(a *alloc) { a.Spec.InterfaceName = "net/1" }, says: "spec.interfaceName"},
		{name: "interface with a colon", edit: func(a *alloc) { a.Spec.InterfaceName = "net1:0" }, says: "spec.interfaceName"},
		{name: "interface with a space", edit: func(a *alloc) { a.Spec.InterfaceName = "net 1" }, says: "spec.interfaceName"},
		{name: "interface with another space", edit: func(a *alloc) { a.Spec.InterfaceName = "net\u20031" }, says: "spec.interfaceName"},
		{name: "interface with a control character", edit: func(a *alloc) { a.Spec.InterfaceName = "net\x1b1" }, says: "spec.interfaceName"},
		{name: "interface too long", edit: func(a *alloc) { a.Spec.InterfaceName = strings.Repeat("n", 16) }, says: "spec.interfaceName"},
		{name: "interface that is a directory", edit: func(a *alloc) { a.Spec.InterfaceName = ".." }, says: "must not be . or .."},
		{name: "network with a slash", edit: func(a *alloc) { a.Spec.NetworkName = "a/b" }, says: "spec.networkName"},
		{name: "device with a space", edit: func(a *alloc) { a.Spec.DeviceID = "0000:00:00.0 " }, says: "spec.deviceID"},
		{name: "device too long", edit: func(a *alloc) { a.Spec.DeviceID = strings.Repeat("0", 254) }, says: "spec.deviceID"},
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
		immutable = "poolRef, domain and address are immutable"
		another   = "an attachment never becomes another"
	)
	for _, tt := range []struct {
		name string
		from *alloc
		edit func(*alloc)
		says string // empty: accepted
	}{
		{name: "labels", from: attached(), edit: func(a *alloc) { a.Labels = map[string]string{"a": "b"} }},
		{name: "another pod", from: attached(), edit: func(a *alloc) { a.Spec.PodRef.Name = "pod2" }, says: another},
		{name: "another pod's UID", from: attached(), edit: func(a *alloc) { a.Spec.PodRef.UID = "u2" }, says: another},
		{name: "a pod in another namespace", from: attached(), edit: func(a *alloc) { a.Spec.PodRef.Namespace = "other" }, says: another},
		{name: "no pod any more", from: attached(), edit: func(a *alloc) { a.Spec.PodRef = v1alpha1.PodReference{} }, says: another},
		{name: "another network", from: attached(), edit: func(a *alloc) { a.Spec.NetworkName = "net" }, says: another},
		{name: "another device", from: attached(), edit: func(a *alloc) { a.Spec.DeviceID = "0000:00:00.0" }, says: another},
		{name: "requested", from: attached(), edit: func(a *alloc) { a.Spec.Requested = true }, says: another},
		{name: "another start of the ADD", from: started(attached(), 1), edit: func(a *alloc) { *a = *started(a, 2) }, says: another},
		{name: "a start of the ADD", from: attached(), edit: func(a *alloc) { *a = *started(a, 1) }, says: another},
		{name: "no start of the ADD any more", from: started(attached(), 1), edit: func(a *alloc) { a.Spec.AddStartedAt = nil }, says: another},
		{name: "address", from: attached(), edit: func(a *alloc) { a.Spec.Address = "10.0.0.6" }, says: immutable},
		{name: "address in another form", from: attached(), edit: func(a *alloc) { a.Spec.Address = "::ffff:10.0.0.5" }, says: immutable},
		{name: "pool's name", from: attached(), edit: func(a *alloc) { a.Spec.PoolRef.Name = "pool2" }, says: immutable},
		{name: "pool's kind", from: attached(), edit: func(a *alloc) { a.Spec.PoolRef.Kind = v1alpha1.PoolKindCIDRPool }, says: immutable},
		{name: "a domain", from: attached(), edit: func(a *alloc) { a.Spec.Domain = "pool1" }, says: immutable},
		{name: "another domain", from: inDomain(reserved()), edit: func(a *alloc) { a.Spec.Domain = "pool1" }, says: immutable},
		{name: "no domain any more", from: inDomain(reserved()), edit: func(a *alloc) { a.Spec.Domain = "" }, says: immutable},
		{name: "labels in a domain", from: inDomain(attached()), edit: func(a *alloc) { a.Labels = map[string]string{"a": "b"} }},
		{name: "pool's name in a domain", from: inDomain(reserved()), edit: func(a *alloc) { a.Spec.PoolRef.Name = "pool2" }, says: immutable},
		{name: "a reservation in a domain is taken up", from: inDomain(reserved()), edit: func(a *alloc) { a.Spec = inDomain(attached()).Spec }},
		{name: "pool's kind of a reservation", from: reserved(), edit: func(a *alloc) { a.Spec.PoolRef.Kind = v1alpha1.PoolKindCIDRPool }, says: immutable},

		{name: "another container", from: attached(), edit: func(a *alloc) { a.Spec.ContainerID = "c2" }, says: another},
		{name: "another interface", from: attached(), edit: func(a *alloc) { a.Spec.InterfaceName = "net2" }, says: another},
		{name: "another node", from: attached(), edit: func(a *alloc) { a.Spec.NodeName = "node2" }, says: another},
		{name: "no attachment any more", from: attached(), edit: func(a *alloc) { a.Spec.ContainerID, a.Spec.InterfaceName = "", "" }, says: another},
		{name: "no container any more", from: attached(), edit: func(a *alloc) { a.Spec.ContainerID = "" }, says: another},

		{name: "released with a cooldown", from: kept(attached()), edit: func(a *alloc) { *a = *released(a) }},
		{name: "released with an owner", from: owned(attached()), edit: func(a *alloc) { *a = *released(a) }},
		{name: "released with neither", from: attached(), edit: func(a *alloc) { *a = *released(a) }, says: "releasedAt needs the last attachment, and an owner or a releaseCooldown"},
		{name: "released and another container", from: kept(attached()), edit: func(a *alloc) { *a = *released(a); a.Spec.ContainerID = "c2" }, says: another},
		{name: "released and another pod", from: kept(attached()), edit: func(a *alloc) { *a = *released(a); a.Spec.PodRef.UID = "u2" }, says: another},
		{name: "released and another cooldown", from: kept(attached()), edit: func(a *alloc) { *a = *released(a); a.Spec.ReleaseCooldown.Duration++ }, says: "releaseCooldown"},
		{name: "released and another owner", from: owned(attached()), edit: func(a *alloc) { *a = *released(a); a.Spec.Owner.UID = "u2" }, says: another},
		{name: "released without its attachment", from: kept(attached()), edit: func(a *alloc) { *a = *released(a); a.Spec.ContainerID, a.Spec.InterfaceName = "", "" }, says: another},
		{name: "another cooldown", from: kept(attached()), edit: func(a *alloc) { a.Spec.ReleaseCooldown.Duration = time.Hour }, says: another},
		{name: "no owner any more", from: owned(attached()), edit: func(a *alloc) { a.Spec.Owner = nil }, says: another},
		{name: "released at another time", from: released(kept(attached())), edit: func(a *alloc) { a.Spec.ReleasedAt.Time = time.Unix(7, 0) }, says: "what is released stays as it is"},
		{name: "released for another pod", from: released(kept(attached())), edit: func(a *alloc) { a.Spec.PodRef.UID = "u2" }, says: "what is released stays as it is"},
		{name: "what is released is labelled", from: released(kept(attached())), edit: func(a *alloc) { a.Labels = map[string]string{"a": "b"} }},
		{name: "what is released is taken over", from: released(kept(attached())), edit: func(a *alloc) { a.Spec = attached().Spec; a.Spec.ContainerID, a.Spec.NodeName = "c2", "node2" }},
		{name: "what is released is taken over from its owner", from: released(owned(attached())), edit: func(a *alloc) { a.Spec = attached().Spec }, says: "owner stays"},
		{name: "what is released is taken over for an owner", from: released(kept(attached())), edit: func(a *alloc) { a.Spec = owned(attached()).Spec }, says: "owner stays"},
		{name: "what is released is taken over for its owner", from: released(owned(attached())), edit: func(a *alloc) { a.Spec = owned(attached()).Spec; a.Spec.ContainerID = "c2" }},
		{name: "what is released is reserved", from: released(kept(attached())), edit: func(a *alloc) { a.Spec = owned(reserved()).Spec }},
		{name: "a reservation is released", from: reserved(), edit: func(a *alloc) { a.Spec = released(kept(attached())).Spec }, says: "a reservation is not released"},
		{name: "a reservation has an owner", from: reserved(), edit: func(a *alloc) { *a = *owned(a) }},

		{name: "begins to move", from: machine(attached()), edit: func(a *alloc) { moving(a) }},
		{name: "begins to move, to another node too", from: machine(attached()), edit: func(a *alloc) { moving(a).Spec.NodeName = "node3" }, says: another},
		{name: "moves elsewhere", from: moving(attached()), edit: func(a *alloc) { a.Spec.Next.NodeName, a.Spec.Next.ContainerID = "node3", "c3" }},
		{name: "moves no more", from: moving(attached()), edit: func(a *alloc) { a.Spec.Next = nil }},
		{name: "moves no more, for another owner", from: moving(attached()), edit: func(a *alloc) { a.Spec.Next, a.Spec.Owner.UID = nil, "u2" }, says: another},
		{name: "has moved", from: moving(attached()), edit: func(a *alloc) { *a = *a.Promoted() }},
		{name: "has moved, and no start is known", from: moving(started(attached(), 1)), edit: func(a *alloc) { *a = *a.Promoted() }},
		{name: "has moved, to another container", from: moving(attached()), edit: func(a *alloc) { *a = *a.Promoted(); a.Spec.ContainerID = "c3" }, says: another},
		{name: "has moved, to another node", from: moving(attached()), edit: func(a *alloc) { *a = *a.Promoted(); a.Spec.NodeName = "node3" }, says: another},
		{name: "has moved, to another interface", from: moving(attached()), edit: func(a *alloc) { *a = *a.Promoted(); a.Spec.InterfaceName = "net2" }, says: another},
		{name: "has moved, to another pod", from: moving(attached()), edit: func(a *alloc) { *a = *a.Promoted(); a.Spec.PodRef.UID = "u3" }, says: another},
		{name: "has moved, to no pod", from: moving(attached()), edit: func(a *alloc) { *a = *a.Promoted(); a.Spec.PodRef = v1alpha1.PodReference{} }, says: another},
		{name: "has moved, to another network", from: moving(attached()), edit: func(a *alloc) { *a = *a.Promoted(); a.Spec.NetworkName = "net" }, says: another},
		{name: "has moved, with another device", from: moving(attached()), edit: func(a *alloc) { *a = *a.Promoted(); a.Spec.DeviceID = "0000:00:00.0" }, says: another},
		{name: "has moved, with another start", from: moving(attached()), edit: func(a *alloc) { *a = *started(a.Promoted(), 1) }, says: another},
		{name: "has moved, and moves on", from: moving(attached()), edit: func(a *alloc) { next := a.Spec.Next; *a = *a.Promoted(); a.Spec.Next, next.NodeName = next, "node3" }, says: another},
		{name: "has moved, and is released", from: moving(attached()), edit: func(a *alloc) { *a = *released(a.Promoted()) }, says: another},
		{name: "is released while it moves", from: moving(attached()), edit: func(a *alloc) { a.Spec.Next = nil; *a = *released(a) }, says: "what has a next is not released"},
		{name: "what is released moves", from: released(machine(attached())), edit: func(a *alloc) { a.Spec = moving(attached()).Spec }, says: "next waits for an address that a container holds"},

		{name: "a reservation is taken up", from: reserved(), edit: func(a *alloc) { a.Spec = attached().Spec }},
		{name: "a reservation of another start of an ADD is taken up", from: started(reserved(), 1), edit: func(a *alloc) { a.Spec = started(attached(), 2).Spec }},
		{name: "a reservation is taken up for another address", from: reserved(), edit: func(a *alloc) { a.Spec = attached().Spec; a.Spec.Address = "10.0.0.6" }, says: immutable},
		{name: "a reservation is given to another pod", from: reserved(), edit: func(a *alloc) { a.Spec.PodRef.Name = "pod2" }},
		{name: "a reservation is taken up in part", from: reserved(), edit: func(a *alloc) { a.Spec.NodeName, a.Spec.ContainerID = "node1", "c1" }, says: "an attachment has an interfaceName"},
		{name: "a reservation is taken up on no node", from: reserved(), edit: func(a *alloc) { a.Spec.ContainerID, a.Spec.InterfaceName = "c1", "net1" }, says: "an attachment has a nodeName"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			allocs := rig.Client(t, env.Config).IPAllocations(env.Namespace(t))
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

// spellings are all texts that CEL's or Go's parser might take for the address of
// eight groups: one run of zeros, or none, is written as "::".
func spellings(groups []uint16) []string {
	text := make([]string, len(groups))
	for i, g := range groups {
		text[i] = strconv.FormatUint(uint64(g), 16)
	}
	out := []string{strings.Join(text, ":")}
	for start := range groups {
		for end := start; end < len(groups) && groups[end] == 0; end++ {
			out = append(out, strings.Join(text[:start], ":")+"::"+strings.Join(text[end+1:], ":"))
		}
	}
	return out
}

// Whichever groups of an IPv6 address are zero: the canonical text is accepted and
// every other one is refused.
func TestCanonicalAddresses(t *testing.T) {
	allocs := rig.Client(t, env.Config).IPAllocations(env.Namespace(t))
	accepted, refused := 0, 0
	for zeros := range 1 << 8 {
		groups, bytes := make([]uint16, 8), [16]byte{}
		for i := range groups {
			if zeros>>i&1 == 0 {
				groups[i] = 0xa0 << i // some of two digits, some of four
				binary.BigEndian.PutUint16(bytes[2*i:], groups[i])
			}
		}
		addr := netip.AddrFrom16(bytes)
		for _, text := range spellings(groups) {
			a := attached()
			a.Name, a.Spec.Address = v1alpha1.AllocationName("pool1", addr), text
			_, err := allocs.Create(t.Context(), a, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			switch {
			case text == addr.String() && err != nil:
				t.Errorf("%s is refused: %v", text, err)
			case text == addr.String():
				accepted++
			case err == nil:
				t.Errorf("%s is accepted for %s", text, addr)
			case strings.Contains(err.Error(), "spec.address"):
				refused++
			default:
				t.Errorf("%s: %v", text, err)
			}
		}
	}
	if accepted != 256 || refused < 1000 {
		t.Errorf("%d accepted, %d refused", accepted, refused)
	}
}

// What AllocationName makes is accepted, and the name of any other address is not.
func TestAllocationNamesAreAccepted(t *testing.T) {
	allocs := rig.Client(t, env.Config).IPAllocations(env.Namespace(t))
	pools := []string{"p", "pool1", "p.10", "p.10.0.0", "10.0.0.1", "p.fd00-0000", "0", "a.b-c.d", strings.Repeat("p", 213), strings.Repeat("p.", 106) + "p"}
	random := rand.New(rand.NewPCG(1, 2))
	address := func() netip.Addr {
		var b [16]byte
		for i := range b {
			b[i] = byte(random.Uint32() & random.Uint32() & random.Uint32()) // small groups and zeros
		}
		if random.IntN(3) == 0 {
			return netip.AddrFrom4([4]byte(b[:]))
		}
		return netip.AddrFrom16(b).Unmap()
	}
	for i := range 500 {
		pool, addr, other := pools[i%len(pools)], address(), address()
		a := attached()
		a.Spec.PoolRef.Name, a.Spec.Address = pool, addr.String()
		for name, says := range map[string]string{
			v1alpha1.AllocationName(pool, addr):  "",
			v1alpha1.AllocationName(pool, other): "metadata.name must be",
		} {
			if a.Name = name; says != "" && addr == other {
				continue
			}
			_, err := allocs.Create(t.Context(), a, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			if wantRefusal(t, err, says); t.Failed() {
				t.Fatalf("%s for %s of pool %s", name, addr, pool)
			}
		}
	}
}

// No allocation is larger than this, whatever a node makes of it: see
// docs/security.md.
func TestAllocationIsSmall(t *testing.T) {
	const most = 5120 // bytes
	allocs := rig.Client(t, env.Config).IPAllocations(env.Namespace(t))
	a := longest()
	a.Labels = map[string]string{
		v1alpha1.LabelPool: v1alpha1.LabelValue(a.Spec.PoolRef.Name), v1alpha1.LabelNode: v1alpha1.LabelValue(a.Spec.NodeName),
		v1alpha1.LabelContainer: v1alpha1.ContainerLabel(a.Spec.ContainerID),
	}
	stored, err := allocs.Create(t.Context(), a, metav1.CreateOptions{FieldManager: strings.Repeat("m", 128)})
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(stored)
	if err != nil || len(data) > most {
		t.Errorf("%d bytes, %v:\n%s", len(data), err, data)
	}
	t.Logf("%d bytes", len(data))
}

// A reservation is taken up once.
func TestReservationIsTakenUpOnce(t *testing.T) {
	allocs := rig.Client(t, env.Config).IPAllocations(env.Namespace(t))
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
	allocs := rig.Client(t, env.Config).IPAllocations(namespace)
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
		"spec.address=10.0.0.6":                                   "ipallocation.nv-ipam.nvidia.com/pool1.10.0.0.6\n",
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
