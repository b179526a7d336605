// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// IPAllocation is one address that somebody holds.
//
// Its name is made of the pool's name and the address (AllocationName), and an
// object name exists once: creating the object is claiming the address, and
// deleting it is giving the address back. There is no other record.
//
//  1. With an attachment (containerID and interfaceName): the address answers
//     on that interface of that container.
//  2. Without one: a reservation, kept for the pod that podRef names. It may be
//     changed and taken up. An allocation with an attachment never changes.
//
// Name and address agree to the letter, since the name decides: the rules below
// recompute one from the other. They use no function for addresses, which a 1.30
// server does not have, so that they hold on every server.
//
// It has no owner reference and no finalizer: deleting a pool or a pod must not
// free an address that a container still answers on.
//
// +genclient
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
// +kubebuilder:object:root=true
// +kubebuilder:resource:shortName=ipa
// +kubebuilder:printcolumn:name="Address",type="string",JSONPath=`.spec.address`
// +kubebuilder:printcolumn:name="Pool",type="string",JSONPath=`.spec.poolRef.name`
// +kubebuilder:printcolumn:name="Node",type="string",JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="Namespace",type="string",JSONPath=`.spec.podRef.namespace`
// +kubebuilder:printcolumn:name="Pod",type="string",JSONPath=`.spec.podRef.name`
// +kubebuilder:printcolumn:name="Interface",type="string",JSONPath=`.spec.interfaceName`
// +kubebuilder:printcolumn:name="Requested",type="boolean",JSONPath=`.spec.requested`
// +kubebuilder:printcolumn:name="Restored",type="boolean",JSONPath=`.spec.restored`,priority=1
// +kubebuilder:printcolumn:name="Age",type="date",JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:selectablefield:JSONPath=`.spec.nodeName`
// +kubebuilder:selectablefield:JSONPath=`.spec.poolRef.name`
// +kubebuilder:selectablefield:JSONPath=`.spec.podRef.namespace`
// +kubebuilder:selectablefield:JSONPath=`.spec.podRef.name`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.startsWith(self.spec.poolRef.name + '.')",message="metadata.name must begin with spec.poolRef.name and a dot"
// +kubebuilder:validation:XValidation:rule="self.spec.address.contains(':') || self.metadata.name == self.spec.poolRef.name + '.' + self.spec.address",message="metadata.name must be spec.poolRef.name, a dot and spec.address"
// +kubebuilder:validation:XValidation:rule="!self.spec.address.contains(':') || !self.metadata.name.startsWith(self.spec.poolRef.name + '.') || (self.metadata.name.substring(size(self.spec.poolRef.name) + 1).matches('^[0-9a-f]{4}(-[0-9a-f]{4}){7}$') && (':' + self.metadata.name.substring(size(self.spec.poolRef.name) + 1).replace('-', ':') + ':').replace(':0', ':').replace(':0', ':').replace(':0', ':').matches('^:?' + self.spec.address.replace('::', ':(0:)+') + ':?$'))",message="metadata.name must be spec.poolRef.name, a dot and spec.address, an IPv6 address as eight groups of four digits that are joined by dashes"
type IPAllocation struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec IPAllocationSpec `json:"spec"`
}

// IPAllocationSpec says which address is held, and by whom.
//
// +kubebuilder:validation:XValidation:rule="self.poolRef == oldSelf.poolRef && self.address == oldSelf.address",message="poolRef and address are immutable: delete the allocation and create another"
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.containerID) || self == oldSelf",message="an attachment never becomes another, and its pod stays: delete the allocation and create another"
// +kubebuilder:validation:XValidation:rule="has(self.containerID) == has(self.interfaceName)",message="containerID and interfaceName go together"
// +kubebuilder:validation:XValidation:rule="!has(self.containerID) || has(self.nodeName)",message="an attachment has a nodeName"
type IPAllocationSpec struct {
	// poolRef is the pool that the address belongs to.
	PoolRef PoolReference `json:"poolRef"`
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
	// podRef is the pod that the address is for.
	// +optional
	PodRef PodReference `json:"podRef,omitempty"`
	// containerID is the CNI container ID (the pod sandbox), in the form that the
	// CNI specification demands.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:Pattern=`^[a-zA-Z0-9][-a-zA-Z0-9_.]*$`
	// +optional
	ContainerID string `json:"containerID,omitempty"`
	// interfaceName is the CNI interface name inside the container, in the form that
	// Linux and the CNI libraries demand.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=15
	// +kubebuilder:validation:Pattern=`^[^/:\s\p{Cc}\p{Z}]+$`
	// +kubebuilder:validation:XValidation:rule="self != '.' && self != '..'",message="must not be . or .."
	// +optional
	InterfaceName string `json:"interfaceName,omitempty"`
	// networkName is the name of the CNI network, in the form that the CNI
	// specification demands.
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
	// requested is true when the caller asked for this very address.
	// +optional
	Requested bool `json:"requested,omitempty"`
	// addStartedAt is when the container's CNI ADD began, by the clock of its
	// node. A create may be carried out long after its client has given up: when
	// an allocation was created does not say whether its container is the pod's
	// latest.
	// +optional
	AddStartedAt *metav1.MicroTime `json:"addStartedAt,omitempty"`
	// restored is true if the record had lost this allocation, and the node wrote it
	// again from what it knows. metadata.creationTimestamp says when.
	// +optional
	Restored bool `json:"restored,omitempty"`
}

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
	// uid as the container runtime told it: for a static pod that of the
	// manifest, not that of its mirror in the API. Empty when the runtime does
	// not tell. Most are UUIDs, a kubelet makes 32 hex digits for a static pod, and
	// a static pod's manifest may have any other.
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
