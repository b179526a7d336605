// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 is the API of crd-ipam.
//
// IPPool and CIDRPool have the fields, defaults and JSON names of nv-ipam v0.4, so that
// the same manifest works with both. What crd-ipam adds is optional, and only in their
// status. IPAllocation is crd-ipam's own: one object for each address that is held.
//
// +k8s:deepcopy-gen=package
// +groupName=nv-ipam.nvidia.com
// +groupGoName=NvIpam
package v1alpha1
