// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// IPPool is one subnet that the nodes share: each node gets a block of perNodeBlockSize
// addresses. All addresses have the subnet's prefix length.
//
//	subnet     192.168.0.0/24
//	           ├─ .1 … .100   node-a
//	           ├─ .101 … .200 node-b
//	           └─ .201 … .254 too small for a third block of 100
//
// Without perNodeBlockSize there are no blocks: every node may use the whole subnet.
//
// +genclient
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Subnet",type="string",JSONPath=`.spec.subnet`
// +kubebuilder:printcolumn:name="Gateway",type="string",JSONPath=`.spec.gateway`
// +kubebuilder:printcolumn:name="Block Size",type="integer",JSONPath=`.spec.perNodeBlockSize`
// +kubebuilder:printcolumn:name="Capacity",type="integer",JSONPath=`.status.capacity`
// +kubebuilder:printcolumn:name="Used",type="integer",JSONPath=`.status.used`
// +kubebuilder:printcolumn:name="Ready",type="string",JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Domain",type="string",JSONPath=`.spec.domain`,priority=1
// +kubebuilder:validation:XValidation:rule="oldSelf.hasValue() || size(self.metadata.name) <= 213",optionalOldSelf=true,message="metadata.name must have at most 213 characters, since an allocation's name contains it"
// +kubebuilder:validation:XValidation:rule="!oldSelf.hasValue() || (has(self.spec.domain) ? self.spec.domain : self.metadata.name) == (has(oldSelf.value().spec.domain) ? oldSelf.value().spec.domain : self.metadata.name)",optionalOldSelf=true,message="is immutable, since the names of allocations contain it: apply another pool with that domain, and delete this one",fieldPath=".spec.domain"
type IPPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   IPPoolSpec   `json:"spec"`
	Status IPPoolStatus `json:"status,omitempty"`
}

// The rules on a spec repeat those of pkg/pool that need no address arithmetic; admission
// policies have the others (docs/validation.md). No rule may restrict the status: each is
// true if the spec does not change, since a 1.30 server evaluates it when the status is
// updated, too. And no rule may fail to evaluate, whatever is stored. CEL has no powers:
// 2 to the power of n is [1, 2, 4, ...][n % 8] * [1, 256, 65536, ...][n / 8].

// IPPoolSpec is the desired state of an IPPool.
//
// +kubebuilder:validation:XValidation:rule="oldSelf == optional.of(self) || !has(self.defaultGateway) || !self.defaultGateway || has(self.gateway) && size(self.gateway) > 0",optionalOldSelf=true,message="cannot be true if spec.gateway is not set",fieldPath=".defaultGateway"
// +kubebuilder:validation:XValidation:rule="oldSelf == optional.of(self) || !has(self.routes) || size(self.routes) == 0 || has(self.gateway) && size(self.gateway) > 0",optionalOldSelf=true,message="cannot be set if spec.gateway is not set",fieldPath=".routes"
// +kubebuilder:validation:XValidation:rule="oldSelf == optional.of(self) || !has(self.routes) || !has(self.defaultGateway) || !self.defaultGateway || self.routes.all(r, !r.dst.endsWith('/0'))",optionalOldSelf=true,message="a default route cannot be set together with spec.defaultGateway",fieldPath=".routes"
// +kubebuilder:validation:XValidation:rule="oldSelf == optional.of(self) || !has(self.routes) || [self.subnet.contains(':')].all(six, self.routes.all(r, r.dst.contains(':') == six))",optionalOldSelf=true,message="is not of the address family of spec.subnet",fieldPath=".routes"
// +kubebuilder:validation:XValidation:rule="oldSelf == optional.of(self) || !has(self.perNodeExclusions) || self.perNodeExclusions.all(e, e.endIndex >= e.startIndex)",optionalOldSelf=true,message="endIndex must not be less than startIndex",fieldPath=".perNodeExclusions"
// +kubebuilder:validation:XValidation:rule="oldSelf == optional.of(self) || !has(self.perNodeExclusions) || !has(self.perNodeBlockSize) || self.perNodeExclusions.all(e, e.endIndex < self.perNodeBlockSize)",optionalOldSelf=true,message="is outside of a node's block of spec.perNodeBlockSize addresses",fieldPath=".perNodeExclusions"
// +kubebuilder:validation:XValidation:rule="oldSelf == optional.of(self) || !has(self.perNodeBlockSize) || !self.subnet.matches('/[0-9]{1,3}$') || [(self.subnet.contains(':') ? 128 : 32) - int(self.subnet.substring(self.subnet.lastIndexOf('/') + 1))].all(bits, bits < 0 || bits > 62 || self.perNodeBlockSize <= [1, 2, 4, 8, 16, 32, 64, 128][bits % 8] * [1, 256, 65536, 16777216, 4294967296, 1099511627776, 281474976710656, 72057594037927936][bits / 8] - (bits < 2 ? 0 : self.subnet.contains(':') ? 1 : 2))",optionalOldSelf=true,message="is larger than the number of addresses in the subnet",fieldPath=".perNodeBlockSize"
// +kubebuilder:validation:XValidation:rule="oldSelf == optional.of(self) || !has(self.nodeSelector) || size(self.nodeSelector.nodeSelectorTerms) > 0",optionalOldSelf=true,message="must have at least one node selector term",fieldPath=".nodeSelector.nodeSelectorTerms"
// +kubebuilder:validation:XValidation:rule="oldSelf == optional.of(self) || !self.subnet.matches('^(0[.]0[.]0[.]0/|2(2[4-9]|3[0-9]|4[0-9]|5[0-5])[.]|[0:]+/|[fF]{2}[0-9a-fA-F]{2}:)')",optionalOldSelf=true,message="overlaps with 0.0.0.0/32, 224.0.0.0/4, 240.0.0.0/4, ::/128 or ff00::/8, which have no addresses for hosts",fieldPath=".subnet"
// +kubebuilder:validation:XValidation:rule="oldSelf == optional.of(self) || !has(self.gateway) || !self.gateway.matches('^[0-9]{1,3}([.][0-9]{1,3}){3}$') || !self.subnet.matches('^[0-9.]+/[0-9]{1,2}$') || [32 - int(self.subnet.substring(self.subnet.lastIndexOf('/') + 1))].all(bits, bits < 2 || [[1, 2, 4, 8, 16, 32, 64, 128][bits % 8] * [1, 256, 65536, 16777216, 4294967296][bits / 8]].all(n, [self.gateway.split('.').map(o, int(o))].all(o, [(((o[0] * 256 + o[1]) * 256 + o[2]) * 256 + o[3]) % n].all(at, at > 0 && at < n - 1))))",optionalOldSelf=true,message="is the network or broadcast address of the subnet",fieldPath=".gateway"
// +kubebuilder:validation:XValidation:rule="oldSelf == optional.of(self) || !has(self.perNodeExclusions) || size(self.perNodeExclusions) == 0 || has(self.perNodeBlockSize)",optionalOldSelf=true,message="cannot be set if spec.perNodeBlockSize is not set: there are no blocks",fieldPath=".perNodeExclusions"
// +kubebuilder:validation:XValidation:rule="oldSelf == optional.of(self) || !has(self.overflow) || has(self.perNodeBlockSize)",optionalOldSelf=true,message="cannot be set if spec.perNodeBlockSize is not set: every node uses the whole subnet",fieldPath=".overflow"
// +kubebuilder:validation:XValidation:rule="oldSelf == optional.of(self) || !has(self.overflow) || !has(self.perNodeExclusions) || size(self.perNodeExclusions) == 0",optionalOldSelf=true,message="cannot be set together with spec.perNodeExclusions: a node that goes on in another node's block would need that one's",fieldPath=".overflow"
// +kubebuilder:validation:XValidation:rule="oldSelf == optional.of(self) || !has(self.ranges) || [self.subnet.contains(':')].all(six, self.ranges.all(r, r.contains(':') == six))",optionalOldSelf=true,message="is not of the address family of spec.subnet",fieldPath=".ranges"
// +kubebuilder:validation:XValidation:rule="oldSelf == optional.of(self) || !has(self.stickyWhenScaled) || has(self.sticky)",optionalOldSelf=true,message="cannot be set if spec.sticky is not set",fieldPath=".stickyWhenScaled"
// +kubebuilder:validation:XValidation:rule="oldSelf == optional.of(self) || !has(self.sticky) || !has(self.perNodeExclusions) || size(self.perNodeExclusions) == 0",optionalOldSelf=true,message="cannot be set together with spec.perNodeExclusions: an address that a pod keeps lies in whoever's block, and would need that one's",fieldPath=".sticky"
type IPPoolSpec struct {
	// subnet of the pool's addresses, in CIDR notation.
	// +kubebuilder:validation:MaxLength=49
	// +kubebuilder:validation:Format=cidr
	Subnet string `json:"subnet"`
	// perNodeBlockSize is the number of addresses in each node's block: at least 1 and
	// at most the number of host addresses in the subnet. Without it there are no blocks:
	// every node that nodeSelector matches uses the whole subnet.
	// +kubebuilder:validation:Minimum=1
	// +optional
	PerNodeBlockSize int `json:"perNodeBlockSize,omitempty"`
	// overflow says where a node goes on whose block is full. Subnet: in space of the
	// subnet that is nobody's block, then in the blocks of other nodes.
	// +optional
	Overflow Overflow `json:"overflow,omitempty"`
	// ranges are the addresses that are allocated automatically, "10.0.0.20" or
	// "10.0.0.10-10.0.0.99", both ends included. Without them that is the whole subnet.
	// Exclusions and the gateway are never allocated. A pod may still request any address
	// of the subnet.
	// +kubebuilder:validation:MaxItems=1000
	// +kubebuilder:validation:items:MaxLength=91
	// +kubebuilder:validation:items:Pattern=`^[0-9a-fA-F.:]+(-[0-9a-fA-F.:]+)?$`
	// +listType=atomic
	// +optional
	Ranges []string `json:"ranges,omitempty"`
	// assignment says which requests the pool serves. Auto: all. Manual: only those that
	// ask for an address, by itself, by its index in the node's block, or as the gateway.
	// +optional
	Assignment AssignmentMode `json:"assignment,omitempty"`
	PoolAccess `json:",inline"`

	// exclusions are never allocated automatically; a pod may still request them.
	Exclusions []ExcludeRange `json:"exclusions,omitempty"`
	// perNodeExclusions are positions in every node's block. Their addresses are never
	// allocated automatically; a pod may still request them.
	PerNodeExclusions []ExcludeIndexRange `json:"perNodeExclusions,omitempty"`
	// gateway of the subnet. It is never allocated automatically. Optional.
	// +kubebuilder:validation:MaxLength=45
	// +kubebuilder:validation:Pattern=`^(((25[0-5]|(2[0-4]|1\d|[1-9]?)\d)\.){3}(25[0-5]|(2[0-4]|1\d|[1-9]?)\d)|([\da-fA-F]{0,4}:){2,8}[\da-fA-F.]{0,15})?$`
	Gateway string `json:"gateway,omitempty"`
	// nodeSelector says which nodes get a block, or may use a pool without blocks. If it is
	// empty, all do.
	NodeSelector *corev1.NodeSelector `json:"nodeSelector,omitempty"`
	// defaultGateway adds a default route via the gateway to every interface.
	DefaultGateway bool `json:"defaultGateway,omitempty"`
	// routes via the gateway that are added to every interface.
	Routes []Route `json:"routes,omitempty"`
}

// IPPoolStatus says which node has which block, and the state of the pool.
type IPPoolStatus struct {
	// allocations are the nodes' blocks, in the order of their addresses. A node may
	// have two: a block of an earlier specification, as long as it holds addresses in
	// it, and the one that it allocates from.
	Allocations []Allocation `json:"allocations"`

	PoolStatus `json:",inline"`
}

// Allocation is the block of one node: every address from startIP to endIP,
// both included.
type Allocation struct {
	// nodeName is the node that has the block.
	NodeName string `json:"nodeName"`
	// startIP is the block's first address.
	StartIP string `json:"startIP"`
	// endIP is the block's last address.
	EndIP string `json:"endIP"`
}

// PoolStatus is what crd-ipam adds to the status of both kinds of pool. All of it is
// optional: with nv-ipam's own CRDs the API server drops it, and nothing depends on it.
type PoolStatus struct {
	// observedGeneration is the metadata.generation that this status describes.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// capacity is the number of addresses that can be allocated automatically: those in
	// the blocks of all nodes, or in the whole subnet if any node may use it (no blocks,
	// or overflow). The gateway and exclusions do not count.
	// 9007199254740991 (2^53-1) means that many or more.
	// +optional
	Capacity *int64 `json:"capacity,omitempty"`
	// used is the number of addresses of the pool that are held, including requested
	// addresses, addresses outside of the blocks, and addresses of the subnet that were
	// taken from other pools of its domain. It may be some minutes old.
	// +optional
	Used *int64 `json:"used,omitempty"`
	// cooling is the number of addresses that were released and rest
	// (spec.releaseCooldown). They are not among used, and not free either. As old as used.
	// +optional
	Cooling *int64 `json:"cooling,omitempty"`
	// topNodes are up to five nodes that hold most of the addresses, if any node may use
	// the whole subnet. As old as used.
	// +listType=map
	// +listMapKey=nodeName
	// +optional
	TopNodes []NodeUse `json:"topNodes"`
	// conditions: Ready always; EarlierSpecInUse, BlockFull, Full, Overlapping,
	// PodNetworkOverlap, ForeignAddresses and FieldsDropped only if they apply.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// NodeUse is how much of a pool a node holds.
type NodeUse struct {
	// nodeName is the node.
	NodeName string `json:"nodeName"`
	// used is the number of addresses that it holds.
	Used int64 `json:"used"`
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
