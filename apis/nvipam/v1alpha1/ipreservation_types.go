// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// IPReservation keeps addresses of a pool from being given to pods, or gives them to one pod
// only: for a machine that is not in the cluster, or for a pod that has to have that address.
//
// The controller makes an IPAllocation without a container for each address, with the
// reservation as its owner. An address that a container holds already stays with that
// container, and is reserved when it is released. Whoever deletes the reservation frees the
// addresses that no container holds.
//
// +genclient
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
// +kubebuilder:object:root=true
// +kubebuilder:resource:shortName=ipr
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Pool",type="string",JSONPath=`.spec.poolRef.name`
// +kubebuilder:printcolumn:name="Wanted",type="integer",JSONPath=`.status.wanted`
// +kubebuilder:printcolumn:name="Kept",type="integer",JSONPath=`.status.kept`
// +kubebuilder:printcolumn:name="Ready",type="string",JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Pod",type="string",JSONPath=`.spec.pod.name`
// +kubebuilder:printcolumn:name="Reason",type="string",JSONPath=`.spec.reason`
// +kubebuilder:printcolumn:name="Addresses",type="string",JSONPath=`.spec.addresses`,priority=1
type IPReservation struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   IPReservationSpec   `json:"spec"`
	Status IPReservationStatus `json:"status,omitempty"`
}

// IPReservationSpec says which addresses are kept, and for whom.
//
// +kubebuilder:validation:XValidation:rule="self.poolRef == oldSelf.poolRef",message="poolRef is immutable: apply another reservation, and delete this one"
type IPReservationSpec struct {
	// poolRef is the pool that the addresses are of.
	PoolRef PoolReference `json:"poolRef"`
	// addresses are single ones, "10.0.0.9", or ranges, "10.0.0.20-10.0.0.29", both ends
	// included; together at most 1024 addresses, of the pool's subnet. They may be among the
	// pool's exclusions.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=1024
	// +kubebuilder:validation:items:MaxLength=91
	// +kubebuilder:validation:items:Pattern=`^[0-9a-fA-F.:]+(-[0-9a-fA-F.:]+)?$`
	// +listType=atomic
	Addresses []string `json:"addresses"`
	// pod that may have the addresses: it asks for one of them, as for any other. Without
	// it, no pod may.
	// +optional
	Pod *ReservedPod `json:"pod,omitempty"`
	// reason why the addresses are kept, for whoever asks later.
	// +kubebuilder:validation:MaxLength=256
	// +optional
	Reason string `json:"reason,omitempty"`
}

// ReservedPod names a pod, whenever there is one of that name.
type ReservedPod struct {
	// namespace of the pod.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Namespace string `json:"namespace"`
	// name of the pod.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`
	Name string `json:"name"`
}

// IPReservationStatus says what became of the addresses.
type IPReservationStatus struct {
	// observedGeneration is the metadata.generation that this status describes.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// wanted is the number of addresses that the reservation names.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=2147483647
	// +optional
	Wanted int32 `json:"wanted"`
	// kept is the number of those that are kept for it, or that its pod has.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=2147483647
	// +optional
	Kept int32 `json:"kept"`
	// conditions: Ready is True if all addresses are kept; else its message says which are
	// not, and who holds them.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// IPReservationList is a list of IPReservation.
//
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
// +kubebuilder:object:root=true
type IPReservationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []IPReservation `json:"items"`
}

// KindIPReservation is the kind in an allocation's owner.
const KindIPReservation = "IPReservation"

// Reasons of a reservation's ConditionReady, beside ReasonInvalidSpec and ReasonRecordLost.
const (
	ReasonReserved     = "Reserved"
	ReasonHeldByOthers = "HeldByOthers"
	ReasonPoolNotFound = "PoolNotFound"
)
