// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// CIDRPool gives each node its own subnet with its own gateway, cut from one large
// prefix, as a routed (rail-optimised) fabric needs.
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
// +kubebuilder:printcolumn:name="Capacity",type="integer",JSONPath=`.status.capacity`
// +kubebuilder:printcolumn:name="Used",type="integer",JSONPath=`.status.used`
// +kubebuilder:printcolumn:name="Ready",type="string",JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Domain",type="string",JSONPath=`.spec.domain`,priority=1
// +kubebuilder:validation:XValidation:rule="oldSelf.hasValue() || size(self.metadata.name) <= 213",optionalOldSelf=true,message="metadata.name must have at most 213 characters, since an allocation's name contains it"
// +kubebuilder:validation:XValidation:rule="!oldSelf.hasValue() || (has(self.spec.domain) ? self.spec.domain : self.metadata.name) == (has(oldSelf.value().spec.domain) ? oldSelf.value().spec.domain : self.metadata.name)",optionalOldSelf=true,message="is immutable, since the names of allocations contain it: apply another pool with that domain, and delete this one",fieldPath=".spec.domain"
type CIDRPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   CIDRPoolSpec   `json:"spec"`
	Status CIDRPoolStatus `json:"status,omitempty"`
}

// For the rules see IPPoolSpec. maxItems of staticAllocations limits the cost of the
// rules as the server estimates it. An object has no room for more items.

// CIDRPoolSpec is the desired state of a CIDRPool.
//
// +kubebuilder:validation:XValidation:rule="oldSelf == optional.of(self) || !has(self.defaultGateway) || !self.defaultGateway || has(self.gatewayIndex)",optionalOldSelf=true,message="cannot be true if spec.gatewayIndex is not set",fieldPath=".defaultGateway"
// +kubebuilder:validation:XValidation:rule="oldSelf == optional.of(self) || !has(self.routes) || size(self.routes) == 0 || has(self.gatewayIndex)",optionalOldSelf=true,message="cannot be set if spec.gatewayIndex is not set",fieldPath=".routes"
// +kubebuilder:validation:XValidation:rule="oldSelf == optional.of(self) || !has(self.routes) || !has(self.defaultGateway) || !self.defaultGateway || self.routes.all(r, !r.dst.endsWith('/0'))",optionalOldSelf=true,message="a default route cannot be set together with spec.defaultGateway",fieldPath=".routes"
// +kubebuilder:validation:XValidation:rule="oldSelf == optional.of(self) || !has(self.routes) || [self.cidr.contains(':')].all(six, self.routes.all(r, r.dst.contains(':') == six))",optionalOldSelf=true,message="is not of the address family of spec.cidr",fieldPath=".routes"
// +kubebuilder:validation:XValidation:rule="oldSelf == optional.of(self) || self.perNodeNetworkPrefix >= 1 && self.perNodeNetworkPrefix <= (self.cidr.contains(':') ? 128 : 32) && (!self.cidr.matches('/[0-9]{1,3}$') || self.perNodeNetworkPrefix >= int(self.cidr.substring(self.cidr.lastIndexOf('/') + 1)))",optionalOldSelf=true,message="must be at least the prefix length of cidr and at most the length of an address",fieldPath=".perNodeNetworkPrefix"
// +kubebuilder:validation:XValidation:rule="oldSelf == optional.of(self) || !has(self.gatewayIndex) || [(self.cidr.contains(':') ? 128 : 32) - self.perNodeNetworkPrefix].all(bits, self.gatewayIndex >= (bits < 2 ? 0 : 1) && (bits < 0 || bits > 31 || self.gatewayIndex < [1, 2, 4, 8, 16, 32, 64, 128][bits % 8] * [1, 256, 65536, 16777216][bits / 8] - (bits < 2 || self.cidr.contains(':') ? 0 : 1)))",optionalOldSelf=true,message="is outside of the host addresses of a node's prefix",fieldPath=".gatewayIndex"
// +kubebuilder:validation:XValidation:rule="oldSelf == optional.of(self) || !has(self.perNodeExclusions) || self.perNodeExclusions.all(e, e.endIndex >= e.startIndex)",optionalOldSelf=true,message="endIndex must not be less than startIndex",fieldPath=".perNodeExclusions"
// +kubebuilder:validation:XValidation:rule="oldSelf == optional.of(self) || !has(self.perNodeExclusions) || [(self.cidr.contains(':') ? 128 : 32) - self.perNodeNetworkPrefix].all(bits, bits < 0 || bits > 31 || self.perNodeExclusions.all(e, e.endIndex < [1, 2, 4, 8, 16, 32, 64, 128][bits % 8] * [1, 256, 65536, 16777216][bits / 8]))",optionalOldSelf=true,message="is outside of a node's block, which has as many addresses as spec.perNodeNetworkPrefix leaves",fieldPath=".perNodeExclusions"
// +kubebuilder:validation:XValidation:rule="oldSelf == optional.of(self) || !has(self.staticAllocations) || self.staticAllocations.all(a, !a.prefix.matches('/[0-9]{1,3}$') || int(a.prefix.substring(a.prefix.lastIndexOf('/') + 1)) == self.perNodeNetworkPrefix)",optionalOldSelf=true,message="prefix length must be spec.perNodeNetworkPrefix",fieldPath=".staticAllocations"
// +kubebuilder:validation:XValidation:rule="oldSelf == optional.of(self) || !has(self.nodeSelector) || size(self.nodeSelector.nodeSelectorTerms) > 0",optionalOldSelf=true,message="must have at least one node selector term",fieldPath=".nodeSelector.nodeSelectorTerms"
// +kubebuilder:validation:XValidation:rule="oldSelf == optional.of(self) || !self.cidr.matches('^(0[.]0[.]0[.]0/|2(2[4-9]|3[0-9]|4[0-9]|5[0-5])[.]|[0:]+/|[fF]{2}[0-9a-fA-F]{2}:)')",optionalOldSelf=true,message="overlaps with 0.0.0.0/32, 224.0.0.0/4, 240.0.0.0/4, ::/128 or ff00::/8, which have no addresses for hosts",fieldPath=".cidr"
// +kubebuilder:validation:XValidation:rule="oldSelf == optional.of(self) || !has(self.sticky) && !has(self.stickyWhenScaled)",optionalOldSelf=true,message="is only for IPPools: an address of a CIDRPool belongs to a node, and a pod may come up on another one",fieldPath=".sticky"
type CIDRPoolSpec struct {
	// cidr is the prefix, in CIDR notation, that is cut into one prefix for each node.
	// +kubebuilder:validation:MaxLength=49
	// +kubebuilder:validation:Format=cidr
	CIDR string `json:"cidr"`
	// gatewayIndex is the position of the gateway in each node's prefix; 0 is the
	// prefix's network address. If it is absent, there is no gateway.
	// +kubebuilder:validation:Minimum=-2147483648
	// +kubebuilder:validation:Maximum=2147483647
	GatewayIndex *int32 `json:"gatewayIndex,omitempty"`
	// perNodeNetworkPrefix is the prefix length of each node's prefix, in bits: at least
	// that of cidr and at most the length of an address.
	PerNodeNetworkPrefix int32 `json:"perNodeNetworkPrefix"`
	// exclusions are never allocated automatically; a pod may still request them.
	Exclusions []ExcludeRange `json:"exclusions,omitempty"`
	// perNodeExclusions are positions in every node's prefix; 0 is the prefix's network
	// address. Their addresses are never allocated automatically; a pod may still
	// request them.
	PerNodeExclusions []ExcludeIndexRange `json:"perNodeExclusions,omitempty"`
	// staticAllocations give a certain prefix to a node, or to no node.
	// +kubebuilder:validation:MaxItems=80000
	StaticAllocations []CIDRPoolStaticAllocation `json:"staticAllocations,omitempty"`
	PoolAccess        `json:",inline"`

	// nodeSelector says which nodes get a prefix. If it is empty, all do.
	NodeSelector *corev1.NodeSelector `json:"nodeSelector,omitempty"`
	// defaultGateway adds a default route via the gateway to every interface.
	DefaultGateway bool `json:"defaultGateway,omitempty"`
	// routes via the node's gateway that are added to every interface.
	Routes []Route `json:"routes,omitempty"`
}

// CIDRPoolStaticAllocation gives a certain prefix to a node, or to no node.
type CIDRPoolStaticAllocation struct {
	// nodeName is the node that gets the prefix. If it is empty, no node gets it.
	NodeName string `json:"nodeName,omitempty"`
	// gateway of the prefix, instead of the one at gatewayIndex.
	// +kubebuilder:validation:MaxLength=45
	// +kubebuilder:validation:Pattern=`^(((25[0-5]|(2[0-4]|1\d|[1-9]?)\d)\.){3}(25[0-5]|(2[0-4]|1\d|[1-9]?)\d)|([\da-fA-F]{0,4}:){2,8}[\da-fA-F.]{0,15})?$`
	Gateway string `json:"gateway,omitempty"`
	// prefix in CIDR notation, with the length perNodeNetworkPrefix.
	// +kubebuilder:validation:MaxLength=49
	// +kubebuilder:validation:Format=cidr
	Prefix string `json:"prefix"`
}

// CIDRPoolStatus says which node has which prefix, and the state of the pool.
type CIDRPoolStatus struct {
	// allocations are the nodes' prefixes, in the order of their addresses. A node may
	// have two: a prefix of an earlier specification, as long as it holds addresses in
	// it, and the one that it allocates from.
	Allocations []CIDRPoolAllocation `json:"allocations"`

	PoolStatus `json:",inline"`
}

// CIDRPoolAllocation is the prefix of one node.
type CIDRPoolAllocation struct {
	// nodeName is the node that has the prefix.
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
