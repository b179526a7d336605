// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"cmp"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// The rules on metadata.name compute it from the spec. They use no CEL function for
// addresses, since a 1.30 server has none.

// IPAllocation is one address that is held.
//
// Its name consists of the pool's domain and the address, and an object name exists only
// once. So creating the object claims the address, and deleting it releases the address.
// There is no other record.
//
//  1. Held: containerID and interfaceName are set. That interface of that container uses
//     the address. Such an allocation only becomes a released one.
//  2. Released: releasedAt is set as well. No container uses the address any more, and the
//     attachment is the last one that did. The address rests for releaseCooldown, or is
//     kept for its owner. Whoever may take it over changes it to a held one.
//  3. Reserved: containerID is not set. The address is reserved for the pod that podRef
//     names, for any interface of it unless interfaceName says which. Such an allocation
//     may be changed, and the pod may take it over.
//
// A container that is the last one to need an address either deletes the allocation, or
// releases it if the allocation has an owner or a releaseCooldown.
//
// While a virtual machine moves from one node to another, two containers have its address.
// The machine's pod on the other node joins as next, which changes nothing for the holder.
// With the end of the holder next becomes the holder, so that the address is never free in
// between; if next ends first, it only leaves.
//
// The name decides which address is held, so the name must agree with spec.domain and
// spec.address exactly: the API server refuses any other.
//
// An allocation has no owner reference and no finalizer: deleting a pool or a pod must
// not free an address that a container still uses.
//
// +genclient
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
// +kubebuilder:object:root=true
// +kubebuilder:resource:shortName=ipa
// +kubebuilder:printcolumn:name="Address",type="string",JSONPath=`.spec.address`
// +kubebuilder:printcolumn:name="Pool",type="string",JSONPath=`.spec.poolRef.name`
// +kubebuilder:printcolumn:name="Node",type="string",JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="Pod Namespace",type="string",JSONPath=`.spec.podRef.namespace`
// +kubebuilder:printcolumn:name="Pod",type="string",JSONPath=`.spec.podRef.name`
// +kubebuilder:printcolumn:name="Interface",type="string",JSONPath=`.spec.interfaceName`
// +kubebuilder:printcolumn:name="Requested",type="boolean",JSONPath=`.spec.requested`
// +kubebuilder:printcolumn:name="Released",type="date",JSONPath=`.spec.releasedAt`
// +kubebuilder:printcolumn:name="Owner",type="string",JSONPath=`.spec.owner.name`,priority=1
// +kubebuilder:printcolumn:name="Next",type="string",JSONPath=`.spec.next.podRef.name`,priority=1
// +kubebuilder:printcolumn:name="Restored",type="boolean",JSONPath=`.spec.restored`,priority=1
// +kubebuilder:printcolumn:name="Age",type="date",JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:selectablefield:JSONPath=`.spec.address`
// +kubebuilder:selectablefield:JSONPath=`.spec.nodeName`
// +kubebuilder:selectablefield:JSONPath=`.spec.poolRef.name`
// +kubebuilder:selectablefield:JSONPath=`.spec.podRef.namespace`
// +kubebuilder:selectablefield:JSONPath=`.spec.podRef.name`
// +kubebuilder:selectablefield:JSONPath=`.spec.next.nodeName`
// +kubebuilder:selectablefield:JSONPath=`.spec.next.podRef.namespace`
// +kubebuilder:selectablefield:JSONPath=`.spec.next.podRef.name`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.startsWith((has(self.spec.domain) ? self.spec.domain : self.spec.poolRef.name) + '.')",message="metadata.name must begin with spec.domain (spec.poolRef.name if that is not set) and a dot"
// +kubebuilder:validation:XValidation:rule="self.spec.address.contains(':') || self.metadata.name == (has(self.spec.domain) ? self.spec.domain : self.spec.poolRef.name) + '.' + self.spec.address",message="metadata.name must be spec.domain (spec.poolRef.name if that is not set), a dot and spec.address"
// +kubebuilder:validation:XValidation:rule="!self.spec.address.contains(':') || [(has(self.spec.domain) ? self.spec.domain : self.spec.poolRef.name)].all(domain, !self.metadata.name.startsWith(domain + '.') || (self.metadata.name.substring(size(domain) + 1).matches('^[0-9a-f]{4}(-[0-9a-f]{4}){7}$') && (':' + self.metadata.name.substring(size(domain) + 1).replace('-', ':') + ':').replace(':0', ':').replace(':0', ':').replace(':0', ':').matches('^:?' + self.spec.address.replace('::', ':(0:)+') + ':?$')))",message="metadata.name must be spec.domain (spec.poolRef.name if that is not set), a dot and spec.address, an IPv6 address as eight groups of four digits that are joined by dashes"
type IPAllocation struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec IPAllocationSpec `json:"spec"`
}

// IPAllocationSpec says which address is held, and by whom.
//
// +kubebuilder:validation:XValidation:rule="self.poolRef == oldSelf.poolRef && has(self.domain) == has(oldSelf.domain) && (!has(self.domain) || self.domain == oldSelf.domain) && self.address == oldSelf.address",message="poolRef, domain and address are immutable: delete the allocation and create another"
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.containerID) || has(oldSelf.releasedAt) || self == oldSelf || ((has(self.requested) ? has(oldSelf.requested) && self.requested == oldSelf.requested : !has(oldSelf.requested)) && (has(self.restored) ? has(oldSelf.restored) && self.restored == oldSelf.restored : !has(oldSelf.restored)) && (has(self.owner) ? has(oldSelf.owner) && self.owner == oldSelf.owner : !has(oldSelf.owner)) && (has(self.releaseCooldown) ? has(oldSelf.releaseCooldown) && self.releaseCooldown == oldSelf.releaseCooldown : !has(oldSelf.releaseCooldown)) && ((has(self.nodeName) ? has(oldSelf.nodeName) && self.nodeName == oldSelf.nodeName : !has(oldSelf.nodeName)) && (has(self.podRef) ? has(oldSelf.podRef) && self.podRef == oldSelf.podRef : !has(oldSelf.podRef)) && (has(self.containerID) ? has(oldSelf.containerID) && self.containerID == oldSelf.containerID : !has(oldSelf.containerID)) && (has(self.interfaceName) ? has(oldSelf.interfaceName) && self.interfaceName == oldSelf.interfaceName : !has(oldSelf.interfaceName)) && (has(self.networkName) ? has(oldSelf.networkName) && self.networkName == oldSelf.networkName : !has(oldSelf.networkName)) && (has(self.deviceID) ? has(oldSelf.deviceID) && self.deviceID == oldSelf.deviceID : !has(oldSelf.deviceID)) && (has(self.addStartedAt) ? has(oldSelf.addStartedAt) && self.addStartedAt == oldSelf.addStartedAt : !has(oldSelf.addStartedAt)) || has(oldSelf.next) && !has(self.next) && !has(self.releasedAt) && has(self.nodeName) && self.nodeName == oldSelf.next.nodeName && has(self.containerID) && self.containerID == oldSelf.next.containerID && has(self.interfaceName) && self.interfaceName == oldSelf.next.interfaceName && (has(self.networkName) ? has(oldSelf.next.networkName) && self.networkName == oldSelf.next.networkName : !has(oldSelf.next.networkName)) && (has(self.deviceID) ? has(oldSelf.next.deviceID) && self.deviceID == oldSelf.next.deviceID : !has(oldSelf.next.deviceID)) && (has(self.addStartedAt) ? has(oldSelf.next.addStartedAt) && self.addStartedAt == oldSelf.next.addStartedAt : !has(oldSelf.next.addStartedAt)) && has(self.podRef) && (has(self.podRef.__namespace__) ? has(oldSelf.next.podRef.__namespace__) && self.podRef.__namespace__ == oldSelf.next.podRef.__namespace__ : !has(oldSelf.next.podRef.__namespace__)) && (has(self.podRef.name) ? has(oldSelf.next.podRef.name) && self.podRef.name == oldSelf.next.podRef.name : !has(oldSelf.next.podRef.name)) && (has(self.podRef.uid) ? has(oldSelf.next.podRef.uid) && self.podRef.uid == oldSelf.next.podRef.uid : !has(oldSelf.next.podRef.uid))))",message="an attachment never becomes another, and its pod stays, unless it is released (releasedAt), or the next one takes its place (next): delete the allocation and create another"
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.releasedAt) || self == oldSelf || !has(self.releasedAt)",message="what is released stays as it is until a container takes it over, or it is reserved"
// +kubebuilder:validation:XValidation:rule="!has(self.containerID) || (has(self.owner) ? has(oldSelf.owner) && self.owner == oldSelf.owner : !has(oldSelf.owner))",message="owner stays when a container takes the address over"
// +kubebuilder:validation:XValidation:rule="!has(self.releasedAt) || has(oldSelf.containerID)",message="a reservation is not released: delete it"
// +kubebuilder:validation:XValidation:rule="!has(self.releasedAt) || (has(self.containerID) && (has(self.owner) || has(self.releaseCooldown)))",message="releasedAt needs the last attachment, and an owner or a releaseCooldown: an address that nothing keeps is deleted"
// +kubebuilder:validation:XValidation:rule="!has(self.next) || (has(self.containerID) && !has(self.releasedAt) && has(self.owner) && self.owner.kind == 'IPAMClaim' && has(self.owner.apiGroup) && self.owner.apiGroup == 'k8s.cni.cncf.io')",message="next waits for an address that a container holds, and that an IPAMClaim keeps: what has a next is not released"
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.next) || !has(self.releasedAt)",message="what has a next is not released: next takes its place"
// +kubebuilder:validation:XValidation:rule="!has(self.next) || !has(self.nodeName) || self.next.nodeName != self.nodeName",message="next is on another node"
// +kubebuilder:validation:XValidation:rule="!has(self.next) || (has(oldSelf.containerID) && !has(oldSelf.releasedAt))",message="next waits for an address that a container holds"
// +kubebuilder:validation:XValidation:rule="!has(self.containerID) || has(self.interfaceName)",message="an attachment has an interfaceName"
// +kubebuilder:validation:XValidation:rule="!has(self.containerID) || has(self.nodeName)",message="an attachment has a nodeName"
type IPAllocationSpec struct {
	// poolRef is the pool that the address was taken from. The address may outlive it.
	PoolRef PoolReference `json:"poolRef"`
	// domain is the network that the address is unique in, as the pool had it. If it is
	// not set, it is the pool's name.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=213
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`
	// +optional
	Domain string `json:"domain,omitempty"`
	// address in its canonical text form (RFC 5952), without a prefix length and
	// without a zone. An IPv4 address is written as IPv4, never inside IPv6.
	// +kubebuilder:validation:MinLength=2
	// +kubebuilder:validation:MaxLength=39
	// +kubebuilder:validation:Pattern=`^((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])(\.(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])){3}|(0|[1-9a-f][0-9a-f]{0,3})(:(0|[1-9a-f][0-9a-f]{0,3})){7}|((0|[1-9a-f][0-9a-f]{0,3})(:(0|[1-9a-f][0-9a-f]{0,3})){0,5})?::((0|[1-9a-f][0-9a-f]{0,3})(:(0|[1-9a-f][0-9a-f]{0,3})){0,5})?)$`
	// +kubebuilder:validation:XValidation:rule="self.contains('::') ? !self.matches('(^|:)0::|::0(:|$)') && !self.matches('^(::)?[0-9a-f]+(::?[0-9a-f]+){6}(::)?$') && !(self.matches('^(::)?[0-9a-f]+(::?[0-9a-f]+){5}(::)?$') && (':' + self + ':').matches(':0:0:(0:|.*::)')) && !(self.matches('^(::)?[0-9a-f]+(::?[0-9a-f]+){4}(::)?$') && (':' + self + ':').matches(':0:0:0:(0:|.*::)')) : !(':' + self + ':').contains(':0:0:')",message="an IPv6 address must be in its canonical form: the first of the longest runs of zeros, of two groups at least, is '::'"
	// +kubebuilder:validation:XValidation:rule="!self.matches('^::ffff:[0-9a-f]+:[0-9a-f]+$')",message="an IPv4 address must be written as IPv4"
	Address string `json:"address"`
	// nodeName is the node whose plugin claimed the address.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`
	// +optional
	NodeName string `json:"nodeName,omitempty"`
	// podRef is the pod that uses the address, or for which it is reserved.
	// +optional
	PodRef PodReference `json:"podRef,omitempty"`
	// containerID is the CNI container ID (the ID of the pod's sandbox), in the form
	// that the CNI specification requires.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:Pattern=`^[a-zA-Z0-9][-a-zA-Z0-9_.]*$`
	// +optional
	ContainerID string `json:"containerID,omitempty"`
	// interfaceName is the name of the interface inside the container, in the form that
	// Linux and the CNI libraries require; of a reserved address, of the one that may have it.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=15
	// +kubebuilder:validation:Pattern=`^[^/:\s\p{Cc}\p{Z}]+$`
	// +kubebuilder:validation:XValidation:rule="self != '.' && self != '..'",message="must not be . or .."
	// +optional
	InterfaceName string `json:"interfaceName,omitempty"`
	// networkName is the name of the CNI network, in the form that the CNI
	// specification requires.
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^([a-zA-Z0-9][-a-zA-Z0-9_.]*)?$`
	// +optional
	NetworkName string `json:"networkName,omitempty"`
	// deviceID is the device (PCI address) behind the interface, if any: printable
	// ASCII without spaces.
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[!-~]*$`
	// +optional
	DeviceID string `json:"deviceID,omitempty"`
	// requested is true if this address was requested, and false if any would do.
	// +optional
	Requested bool `json:"requested,omitempty"`
	// addStartedAt is when the container's CNI ADD began, by the clock of its node. It
	// tells which of two containers of a pod is the later one. The creation time does
	// not: the API server may carry out a create long after its client has given up. It has six
	// digits of a second: Go reads no other form, and no list in which one object has another.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Format=date-time
	// +kubebuilder:validation:Pattern=`^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[.][0-9]{6}(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$`
	// +optional
	AddStartedAt *metav1.MicroTime `json:"addStartedAt,omitempty"`
	// restored is true if the record had lost this allocation, and the node wrote it
	// again from what it knows. metadata.creationTimestamp says when.
	// +optional
	Restored bool `json:"restored,omitempty"`
	// owner keeps the address if no container has it: it is given only to a container of
	// its, until the owner is gone.
	// +optional
	Owner *AllocationOwner `json:"owner,omitempty"`
	// releaseCooldown is how long the address rests after its release before another pod
	// gets it: what the pool said when the address was claimed.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MinLength=2
	// +kubebuilder:validation:MaxLength=16
	// +kubebuilder:validation:Pattern=`^([0-9]{1,2}h)?([0-9]{1,4}m)?([0-9]{1,5}s)?$`
	// +kubebuilder:validation:XValidation:rule="duration(self) <= duration('24h')",message="must be at most 24h"
	// +optional
	ReleaseCooldown *metav1.Duration `json:"releaseCooldown,omitempty"`
	// releasedAt is when the container released the address, by the clock of its node. It
	// is not set as long as a container uses the address.
	// +optional
	ReleasedAt *metav1.Time `json:"releasedAt,omitempty"`
	// next is the attachment to which a virtual machine moves: it has the address beside the
	// holder, and takes its place when that ends.
	// +optional
	Next *NextAttachment `json:"next,omitempty"`
}

// NextAttachment is an attachment that waits for its place. The fields are as in
// IPAllocationSpec.
//
// +structType=atomic
// +kubebuilder:validation:XValidation:rule="has(self.podRef.name) && size(self.podRef.name) > 0 && has(self.podRef.__namespace__) && size(self.podRef.__namespace__) > 0 && has(self.podRef.uid) && size(self.podRef.uid) > 0",message="podRef has a namespace, a name and a uid"
type NextAttachment struct {
	// nodeName is the node whose plugin has joined.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`
	NodeName string `json:"nodeName"`
	// podRef is the pod to which the machine moves.
	PodRef PodReference `json:"podRef"`
	// containerID is the CNI container ID.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:Pattern=`^[a-zA-Z0-9][-a-zA-Z0-9_.]*$`
	ContainerID string `json:"containerID"`
	// interfaceName is the name of the interface inside the container.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=15
	// +kubebuilder:validation:Pattern=`^[^/:\s\p{Cc}\p{Z}]+$`
	// +kubebuilder:validation:XValidation:rule="self != '.' && self != '..'",message="must not be . or .."
	InterfaceName string `json:"interfaceName"`
	// networkName is the name of the CNI network.
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^([a-zA-Z0-9][-a-zA-Z0-9_.]*)?$`
	// +optional
	NetworkName string `json:"networkName,omitempty"`
	// deviceID is the device (PCI address) behind the interface, if any.
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[!-~]*$`
	// +optional
	DeviceID string `json:"deviceID,omitempty"`
	// addStartedAt is when the container's CNI ADD began, by the clock of its node.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Format=date-time
	// +kubebuilder:validation:Pattern=`^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[.][0-9]{6}(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$`
	// +optional
	AddStartedAt *metav1.MicroTime `json:"addStartedAt,omitempty"`
}

// NextOf returns the attachment of an allocation as one that waits.
func NextOf(s *IPAllocationSpec) *NextAttachment {
	return &NextAttachment{
		NodeName: s.NodeName, PodRef: s.PodRef, ContainerID: s.ContainerID, InterfaceName: s.InterfaceName,
		NetworkName: s.NetworkName, DeviceID: s.DeviceID, AddStartedAt: s.AddStartedAt,
	}
}

// Promoted returns the allocation as it is when next has become the holder, nil if it has
// no next.
func (a *IPAllocation) Promoted() *IPAllocation {
	next := a.Spec.Next
	if next == nil {
		return nil
	}
	out := a.DeepCopy()
	s := &out.Spec
	s.NodeName, s.PodRef, s.ContainerID, s.InterfaceName = next.NodeName, next.PodRef, next.ContainerID, next.InterfaceName
	s.NetworkName, s.DeviceID, s.AddStartedAt, s.Next = next.NetworkName, next.DeviceID, next.AddStartedAt, nil
	out.Labels = AllocationLabels(s)
	return out
}

// AllocationOwner is an object that keeps an address.
type AllocationOwner struct {
	// apiGroup of the object; empty for the core group.
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*)?$`
	// +optional
	APIGroup string `json:"apiGroup,omitempty"`
	// kind of the object.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[A-Z][a-zA-Z0-9]*$`
	Kind string `json:"kind"`
	// namespace of the object.
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$`
	// +optional
	Namespace string `json:"namespace,omitempty"`
	// name of the object.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`
	Name string `json:"name"`
	// uid of the object: a later one of its name does not inherit the address.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^([a-zA-Z0-9]([-a-zA-Z0-9_.]*[a-zA-Z0-9])?)?$`
	// +optional
	UID types.UID `json:"uid,omitempty"`
}

// The owners for which a pod claims an address itself, beside StickyStatefulSet.
const (
	// AppsGroup is the API group of StatefulSets.
	AppsGroup = "apps"
	// IPAMClaimGroup is the API group of IPAMClaims, which are the multi-network
	// specification's.
	IPAMClaimGroup = "k8s.cni.cncf.io"
	KindIPAMClaim  = "IPAMClaim"
)

// IsStatefulSet reports whether the object is a StatefulSet.
func (o *AllocationOwner) IsStatefulSet() bool {
	return o != nil && o.APIGroup == AppsGroup && o.Kind == string(StickyStatefulSet)
}

// IsIPAMClaim reports whether the object is an IPAMClaim.
func (o *AllocationOwner) IsIPAMClaim() bool {
	return o != nil && o.APIGroup == IPAMClaimGroup && o.Kind == KindIPAMClaim
}

// IsSticky reports whether the owner keeps an address for whichever container comes next: a
// StatefulSet for each of its pods, an IPAMClaim for a pod that names it.
func (s *IPAllocationSpec) IsSticky() bool { return s.Owner.IsStatefulSet() || s.Owner.IsIPAMClaim() }

// SameIdentity reports whether two sticky allocations are for the same IPAMClaim, or for one
// interface of one pod of a StatefulSet, whichever container and on whichever node. An identity
// has one address of each family in a domain, whichever of its pools that is of: a pool may be
// replaced by another one.
func (s *IPAllocationSpec) SameIdentity(o *IPAllocationSpec) bool {
	switch {
	case !s.IsSticky() || !o.IsSticky() || s.Owner.UID != o.Owner.UID,
		cmp.Or(s.Domain, s.PoolRef.Name) != cmp.Or(o.Domain, o.PoolRef.Name), strings.Contains(s.Address, ":") != strings.Contains(o.Address, ":"):
		return false
	case s.Owner.IsIPAMClaim():
		return true
	}
	return s.PodRef.Namespace == o.PodRef.Namespace && s.PodRef.Name == o.PodRef.Name &&
		s.NetworkName == o.NetworkName && s.InterfaceName == o.InterfaceName
}

// Held reports whether a container uses the address.
func (s *IPAllocationSpec) Held() bool { return s.ContainerID != "" && s.ReleasedAt == nil }

// Released reports whether a container has used the address, and none does now.
func (s *IPAllocationSpec) Released() bool { return s.ContainerID != "" && s.ReleasedAt != nil }

// IsReserved reports whether no container has used the address yet.
func (s *IPAllocationSpec) IsReserved() bool { return s.ContainerID == "" }

// Rests reports whether the address was released, and no owner keeps it.
func (s *IPAllocationSpec) Rests() bool { return s.Released() && s.Owner == nil }

// IsKept reports whether the allocation outlives its container: a DEL releases it, and
// does not delete it.
func (s *IPAllocationSpec) IsKept() bool { return s.Owner != nil || s.ReleaseCooldown != nil }

// ReusableAt returns when a released address may be given to another pod, zero if it may
// not be: a container uses it, or an owner keeps it.
func (s *IPAllocationSpec) ReusableAt() time.Time {
	if !s.Rests() || s.ReleaseCooldown == nil {
		return time.Time{}
	}
	return s.ReleasedAt.Add(s.ReleaseCooldown.Duration)
}

// MaxCooldown is the longest releaseCooldown.
const MaxCooldown = 24 * time.Hour

// PoolReference names a pool in the allocation's namespace.
type PoolReference struct {
	// kind of the pool.
	Kind PoolKind `json:"kind"`
	// name of the pool.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=213
	Name string `json:"name"`
}

// PoolKind is the kind of a pool.
// +kubebuilder:validation:Enum=IPPool;CIDRPool
type PoolKind string

// The kinds of pools.
const (
	PoolKindIPPool   PoolKind = "IPPool"
	PoolKindCIDRPool PoolKind = "CIDRPool"
)

// PodReference names a pod.
type PodReference struct {
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$`
	// +optional
	Namespace string `json:"namespace,omitempty"`
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*)?$`
	// +optional
	Name string `json:"name,omitempty"`
	// uid is the pod's UID as the container runtime passes it; empty if it passes none.
	// For a static pod it is the UID in the manifest, not that of the mirror pod in the
	// API. It is usually a UUID; a kubelet gives a static pod 32 hex digits, and a
	// manifest may contain any other text.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^([a-zA-Z0-9]([-a-zA-Z0-9_.]*[a-zA-Z0-9])?)?$`
	// +optional
	UID types.UID `json:"uid,omitempty"`
}

// IPAllocationList is a list of IPAllocation.
//
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
// +kubebuilder:object:root=true
type IPAllocationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []IPAllocation `json:"items"`
}
