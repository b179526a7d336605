// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// CIDRPool gives each node a subnet of its own, cut from one large prefix, with
// a gateway of its own: what a routed (rail-optimised) fabric wants.
//
//	cidr       10.60.0.0/16, perNodeNetworkPrefix 24, gatewayIndex 1
//	           ├─ 10.60.0.0/24 node-a, gateway 10.60.0.1
//	           └─ 10.60.1.0/24 node-b, gateway 10.60.1.1
//
// +genclient
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="CIDR",type="string",JSONPath=`.spec.cidr`
// +kubebuilder:printcolumn:name="Gateway index",type="string",JSONPath=`.spec.gatewayIndex`
// +kubebuilder:printcolumn:name="Per Node Network Prefix",type="integer",JSONPath=`.spec.perNodeNetworkPrefix`
// +kubebuilder:printcolumn:name="Ready",type="string",JSONPath=`.status.conditions[?(@.type=="Ready")].status`,priority=1
type CIDRPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   CIDRPoolSpec   `json:"spec"`
	Status CIDRPoolStatus `json:"status,omitempty"`
}

// CIDRPoolSpec is what the operator asks for.
type CIDRPoolSpec struct {
	// cidr that is cut into one prefix a node.
	CIDR string `json:"cidr"`
	// gatewayIndex is the position of the gateway in each node's prefix; 0 is
	// the prefix's network address. No gateway when absent.
	GatewayIndex *int32 `json:"gatewayIndex,omitempty"`
	// perNodeNetworkPrefix is the prefix length of each node's subnet, in bits;
	// not less than that of cidr.
	PerNodeNetworkPrefix int32 `json:"perNodeNetworkPrefix"`
	// exclusions are addresses that are not handed out on their own.
	Exclusions []ExcludeRange `json:"exclusions,omitempty"`
	// perNodeExclusions are positions in every node's prefix that are not handed
	// out on their own; 0 is the prefix's network address.
	PerNodeExclusions []ExcludeIndexRange `json:"perNodeExclusions,omitempty"`
	// staticAllocations fix the prefix of a node, or keep one for nobody.
	StaticAllocations []CIDRPoolStaticAllocation `json:"staticAllocations,omitempty"`
	// nodeSelector says which nodes are given a prefix; all of them when empty.
	NodeSelector *corev1.NodeSelector `json:"nodeSelector,omitempty"`
	// defaultGateway adds a default route via the gateway to every result.
	DefaultGateway bool `json:"defaultGateway,omitempty"`
	// routes via the node's gateway that are added to every result.
	Routes []Route `json:"routes,omitempty"`
}

// CIDRPoolStaticAllocation fixes the prefix of a node.
type CIDRPoolStaticAllocation struct {
	// nodeName is the node that is given the prefix. Without it the prefix is
	// kept and given to nobody.
	NodeName string `json:"nodeName,omitempty"`
	// gateway of the prefix, in place of the one that gatewayIndex says.
	Gateway string `json:"gateway,omitempty"`
	// prefix in CIDR notation, of the length perNodeNetworkPrefix.
	Prefix string `json:"prefix"`
}

// CIDRPoolStatus is which node has which prefix, and how the pool fares.
type CIDRPoolStatus struct {
	// allocations are the nodes' prefixes, in the order of their addresses.
	Allocations []CIDRPoolAllocation `json:"allocations"`

	PoolStatus `json:",inline"`
}

// CIDRPoolAllocation is the prefix of one node.
type CIDRPoolAllocation struct {
	// nodeName is the node that the prefix belongs to.
	NodeName string `json:"nodeName"`
	// gateway of the prefix, if it has one.
	Gateway string `json:"gateway,omitempty"`
	// prefix in CIDR notation.
	Prefix string `json:"prefix"`
}

// CIDRPoolList is a list of CIDRPool.
//
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
// +kubebuilder:object:root=true
type CIDRPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []CIDRPool `json:"items"`
}
