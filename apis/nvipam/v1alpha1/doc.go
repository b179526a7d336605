// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 is the API of crd-ipam.
//
// IPPool and CIDRPool are nv-ipam's (v0.4) in every field, default and JSON
// name, so that one manifest serves both; what crd-ipam adds to them is
// optional and in their status only. IPAllocation is crd-ipam's own: one
// object for each address that is held.
//
// +k8s:deepcopy-gen=package
// +groupName=nv-ipam.nvidia.com
// +groupGoName=NvIpam
package v1alpha1
