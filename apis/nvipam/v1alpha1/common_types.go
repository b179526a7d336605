// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Labels of an IPAllocation, for selectors. A value of more than 63 characters is
// replaced by its hash: use LabelValue.
const (
	// LabelPool is the name of the pool that the address belongs to.
	LabelPool = "nv-ipam.nvidia.com/pool"
	// LabelNode is the node whose plugin claimed the address.
	LabelNode = "nv-ipam.nvidia.com/node"
	// LabelContainer is the hash of the container ID.
	LabelContainer = "nv-ipam.nvidia.com/container"
	// LabelWindow is the aligned window of 256 addresses that the address lies in, see
	// WindowLabel: "10.0.3.0-24" selects who holds an address of 10.0.3.0/24. Only
	// allocations of pools in which nodes share addresses have it.
	LabelWindow = "nv-ipam.nvidia.com/window"
	// LabelReleased is on the allocations that are released (spec.releasedAt), with the
	// value "true".
	LabelReleased = "nv-ipam.nvidia.com/released"
	// LabelOwner is on the allocations that a workload keeps for one of its pods: OwnerLabel
	// of spec.owner.uid.
	LabelOwner = "nv-ipam.nvidia.com/owner"
)

// MaxPoolName is how many characters the name of a pool may have: an allocation's name
// contains it, a dot, and an IPv6 address of 39 characters.
const MaxPoolName = 253 - 1 - 39

// ConditionReady is the condition that tools wait for: True if the pool's specification
// is valid and every node that its selector matches has a block.
const ConditionReady = "Ready"

// Reasons of ConditionReady, and of events. InvalidSpec and NoFreeRanges are nv-ipam's
// words.
const (
	ReasonBlocksAssigned  = "BlocksAssigned"
	ReasonNoBlocks        = "NoBlocks"
	ReasonDisabled        = "Disabled"
	ReasonNoMatchingNodes = "NoMatchingNodes"
	ReasonNoFreeRanges    = "NoFreeRanges"
	ReasonInvalidSpec     = "InvalidSpec"
	ReasonRecordLost      = "RecordLost"
)

// Conditions of a pool that are True if they apply, and absent otherwise. None of them
// changes Ready.
const (
	// ConditionOverlapping says that the pool's subnet overlaps with another
	// pool's.
	ConditionOverlapping = "Overlapping"
	// ConditionPodNetworkOverlap says that the pool's subnet overlaps with the
	// cluster's pod network, the podCIDRs of the nodes.
	ConditionPodNetworkOverlap = "PodNetworkOverlap"
	// ConditionEarlierSpecInUse says which blocks and addresses of an earlier
	// specification are still held. They stay until they are released.
	ConditionEarlierSpecInUse = "EarlierSpecInUse"
	// ConditionForeignAddresses says that nodes hold addresses of this pool that are
	// outside of its subnet.
	ConditionForeignAddresses = "ForeignAddresses"
	// ConditionBlockFull says that nodes have no free address left in their block.
	ConditionBlockFull = "BlockFull"
	// ConditionFull says that the pool has no free address, although any node may use the
	// whole subnet.
	ConditionFull = "Full"
	// ConditionFieldsDropped says that the installed CRD does not have fields that were
	// applied, so that they have no effect.
	ConditionFieldsDropped = "FieldsDropped"
)

// AnnotationReclaim on a pool says whether the controller may reclaim addresses whose
// pods are gone. With ReclaimDisabled, or an unknown value, it never does. Disable it for
// pools whose addresses are also given to containers that have no Pod object.
const (
	AnnotationReclaim = "nv-ipam.nvidia.com/reclaim"
	ReclaimEnabled    = "enabled" // as without the annotation
	ReclaimDisabled   = "disabled"
)

// AnnotationRecordLost on a pool is an operator's word that allocations of it may have
// been lost, as by a backup of etcd that was restored. If it is set, or its value
// changes, each node writes again what it holds in the pool and the record lacks. Any
// value will do; the time of the loss is a good one.
const AnnotationRecordLost = "nv-ipam.nvidia.com/record-lost"

// BlocksManagerPrefix begins the name of the field manager that owns a pool's
// status.allocations; the rest of the name are hashes of them, one for each group of nodes.
// So metadata.managedFields changes exactly when the blocks change. A plugin that keeps its
// block on disk reads only the metadata to check it: the generation stands for the
// specification, its group's part of this name for the block. Another manager writes
// conditions and counters, which change neither.
const BlocksManagerPrefix = "ipam-blocks-"

// ExcludeRange is a range of addresses, both ends included, that are never allocated
// automatically. A pod may still request them.
type ExcludeRange struct {
	// startIP is the first excluded address.
	// +kubebuilder:validation:MaxLength=45
	// +kubebuilder:validation:Pattern=`^(((25[0-5]|(2[0-4]|1\d|[1-9]?)\d)\.){3}(25[0-5]|(2[0-4]|1\d|[1-9]?)\d)|([\da-fA-F]{0,4}:){2,8}[\da-fA-F.]{0,15})$`
	StartIP string `json:"startIP"`
	// endIP is the last excluded address; not before startIP.
	// +kubebuilder:validation:MaxLength=45
	// +kubebuilder:validation:Pattern=`^(((25[0-5]|(2[0-4]|1\d|[1-9]?)\d)\.){3}(25[0-5]|(2[0-4]|1\d|[1-9]?)\d)|([\da-fA-F]{0,4}:){2,8}[\da-fA-F.]{0,15})$`
	EndIP string `json:"endIP"`
}

// ExcludeIndexRange is a range of positions in every node's block, both ends included.
type ExcludeIndexRange struct {
	// startIndex is the first excluded position; 0 is the block's first address.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=2147483647
	StartIndex int32 `json:"startIndex"`
	// endIndex is the last excluded position; not before startIndex.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=2147483647
	EndIndex int32 `json:"endIndex"`
}

// Route is a static route that every interface with an address of the pool gets.
type Route struct {
	// dst is the destination in CIDR notation, of the pool's address family.
	// +kubebuilder:validation:MaxLength=49
	// +kubebuilder:validation:Format=cidr
	Dst string `json:"dst"`
}

// PoolAccess says which network the addresses of a pool belong to, who may use them, and
// when they are given again.
type PoolAccess struct {
	// domain is the network that the addresses are unique in; the name of an allocation
	// begins with it. Pools of one domain may overlap: each address is given once. If it
	// is not set, it is the pool's name. It is immutable.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=213
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`
	// +optional
	Domain string `json:"domain,omitempty"`
	// allowedNamespaces are the namespaces whose pods may use the pool; a name that ends
	// with "*" stands for all that begin with the rest. Without it all may. It decides about
	// requested addresses, too, and leaves alone who has an address already. The plugin on
	// each node enforces it.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=1000
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^([a-z0-9]([-a-z0-9]*[a-z0-9])?|([a-z0-9][-a-z0-9]*)?[*])$`
	// +listType=atomic
	// +optional
	AllowedNamespaces []string `json:"allowedNamespaces,omitempty"`
	// disabled is true if the pool gives no addresses, not even requested ones. Those that
	// are held stay, and are released as always.
	// +optional
	Disabled bool `json:"disabled,omitempty"`
	// releaseCooldown is how long an address rests after its release before another pod
	// gets it, "90s" or "1h30m", at most 24h. The same pod may have it back at once. It
	// counts for addresses that are claimed from now on. If it is not set, the default of
	// the node counts (--released-ip-cooldown of ipam-node); 0s gives addresses again at
	// once, whatever the node says.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MinLength=2
	// +kubebuilder:validation:MaxLength=16
	// +kubebuilder:validation:Pattern=`^([0-9]{1,2}h)?([0-9]{1,4}m)?([0-9]{1,5}s)?$`
	// +kubebuilder:validation:XValidation:rule="duration(self) <= duration('24h')",message="must be at most 24h"
	// +optional
	ReleaseCooldown *metav1.Duration `json:"releaseCooldown,omitempty"`
	// sticky are the kinds of workload whose pods keep their addresses: each pod of a
	// StatefulSet has its address again after a restart, on whichever node, for as long as
	// the StatefulSet exists. It is taken from the whole subnet, whoever's block it lies in.
	// It counts for addresses that are claimed from now on. Only IPPools can be sticky: an
	// address of a CIDRPool belongs to a node.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=4
	// +listType=set
	// +optional
	Sticky []StickyKind `json:"sticky,omitempty"`
	// stickyWhenScaled says what becomes of the address of a pod that its StatefulSet does
	// not have any more because it was scaled down: it is kept (Retain), or released
	// (Delete). Without it, Retain.
	// +optional
	StickyWhenScaled StickyRetention `json:"stickyWhenScaled,omitempty"`
}

// StickyKind is a kind of workload whose pods keep their addresses.
// +kubebuilder:validation:Enum=StatefulSet
type StickyKind string

// StickyStatefulSet is a StatefulSet of API group apps.
const StickyStatefulSet StickyKind = "StatefulSet"

// StickyRetention says what becomes of an address, in the words of a StatefulSet's
// persistentVolumeClaimRetentionPolicy.
// +kubebuilder:validation:Enum=Retain;Delete
type StickyRetention string

// The retentions.
const (
	StickyRetain StickyRetention = "Retain"
	StickyDelete StickyRetention = "Delete"
)

// Overflow says where a node goes on whose block is full.
// +kubebuilder:validation:Enum=Subnet
type Overflow string

// OverflowSubnet is the rest of the subnet, whatever blocks it has.
const OverflowSubnet Overflow = "Subnet"

// AssignmentMode says which requests a pool serves.
// +kubebuilder:validation:Enum=Auto;Manual
type AssignmentMode string

// The modes.
const (
	AssignmentAuto   AssignmentMode = "Auto"
	AssignmentManual AssignmentMode = "Manual"
)
