// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// IPPool is one subnet that the nodes share: each node is given a block of
// perNodeBlockSize addresses of it, and every address has the subnet's prefix
// length.
//
//	subnet     192.168.0.0/24
//	           ├─ .1 … .100   node-a
//	           ├─ .101 … .200 node-b
//	           └─ .201 … .254 too small for a third block of 100
//
// +genclient
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Subnet",type="string",JSONPath=`.spec.subnet`
// +kubebuilder:printcolumn:name="Gateway",type="string",JSONPath=`.spec.gateway`
// +kubebuilder:printcolumn:name="Block Size",type="integer",JSONPath=`.spec.perNodeBlockSize`
// +kubebuilder:printcolumn:name="Ready",type="string",JSONPath=`.status.conditions[?(@.type=="Ready")].status`,priority=1
type IPPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   IPPoolSpec   `json:"spec"`
	Status IPPoolStatus `json:"status,omitempty"`
}

// IPPoolSpec is what the operator asks for.
type IPPoolSpec struct {
	// subnet that the pool's addresses are taken from, in CIDR notation.
	Subnet string `json:"subnet"`
	// perNodeBlockSize is the number of addresses that each node is given; at
	// least 1 and at most the number of host addresses in the subnet.
	PerNodeBlockSize int `json:"perNodeBlockSize"`
	// exclusions are addresses that are not handed out on their own.
	Exclusions []ExcludeRange `json:"exclusions,omitempty"`
	// perNodeExclusions are positions in every node's block that are not handed
	// out on their own.
	PerNodeExclusions []ExcludeIndexRange `json:"perNodeExclusions,omitempty"`
	// gateway of the subnet; never handed out on its own. Optional.
	Gateway string `json:"gateway,omitempty"`
	// nodeSelector says which nodes are given a block; all of them when empty.
	NodeSelector *corev1.NodeSelector `json:"nodeSelector,omitempty"`
	// defaultGateway adds a default route via the gateway to every result.
	DefaultGateway bool `json:"defaultGateway,omitempty"`
	// routes via the gateway that are added to every result.
	Routes []Route `json:"routes,omitempty"`
}

// IPPoolStatus is which node has which block, and how the pool fares.
type IPPoolStatus struct {
	// allocations are the nodes' blocks, in the order of their addresses.
	Allocations []Allocation `json:"allocations"`

	PoolStatus `json:",inline"`
}

// Allocation is the block of one node: every address from startIP to endIP,
// both included.
type Allocation struct {
	// nodeName is the node that the block belongs to.
	NodeName string `json:"nodeName"`
	// startIP is the block's first address.
	StartIP string `json:"startIP"`
	// endIP is the block's last address.
	EndIP string `json:"endIP"`
}

// PoolStatus is what crd-ipam adds to the status of both kinds of pool. All of
// it is optional: where nv-ipam's own CRDs are installed the API server drops
// it, and nothing else depends on it.
type PoolStatus struct {
	// observedGeneration is the metadata.generation that this status is about.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// conditions: Ready.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// IPPoolList is a list of IPPool.
//
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
// +kubebuilder:object:root=true
type IPPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []IPPool `json:"items"`
}
