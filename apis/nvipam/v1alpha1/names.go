// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
)

// AllocationName returns the name of the IPAllocation of an address: the domain, a dot,
// and the address. IPv4 is in its usual form. IPv6 is eight groups of four digits
// joined by "-", since an object name cannot contain colons. An IPv4 address in IPv6
// form counts as IPv4.
//
// Two different pairs of domain and address never have the same name: after the last dot
// is either an IPv6 address, which contains "-", or the last of the four numbers of an
// IPv4 address.
func AllocationName(domain string, addr netip.Addr) string {
	addr = addr.Unmap()
	if addr.Is4() {
		return domain + "." + addr.String()
	}
	return domain + "." + strings.ReplaceAll(addr.StringExpanded(), ":", "-")
}

// ParseAllocationName is the reverse of AllocationName.
func ParseAllocationName(name string) (domain string, addr netip.Addr, err error) {
	text := name[strings.LastIndexByte(name, '.')+1:]
	if strings.Contains(text, "-") {
		addr, err = netip.ParseAddr(strings.ReplaceAll(text, "-", ":"))
	} else {
		parts := strings.Split(name, ".")
		text = strings.Join(parts[max(0, len(parts)-4):], ".")
		addr, err = netip.ParseAddr(text)
	}
	domain = strings.TrimSuffix(name, "."+text)
	if err != nil || domain == "" || AllocationName(domain, addr) != name {
		return "", netip.Addr{}, fmt.Errorf("%q is not the name of an IPAllocation: want DOMAIN.ADDRESS", name)
	}
	return domain, addr, nil
}

// DomainOf returns the domain of an allocation: the one in its name, which decides.
func (a *IPAllocation) DomainOf() string {
	if domain, _, err := ParseAllocationName(a.Name); err == nil {
		return domain
	}
	if a.Spec.Domain != "" {
		return a.Spec.Domain
	}
	return a.Spec.PoolRef.Name
}

// VersionNumber returns a resource version as a number, 0 if it is none. Those of one kind
// of object only grow, unless etcd is set back.
func VersionNumber(resourceVersion string) uint64 {
	n, _ := strconv.ParseUint(resourceVersion, 10, 64)
	return n
}

// LabelValue returns s if it can be a label value, else its hash: names of nodes and
// pools may have 253 characters, label values 63.
func LabelValue(s string) string {
	if len(validation.IsValidLabelValue(s)) == 0 {
		return s
	}
	return hash(s)
}

// ContainerLabel returns the label value for a container ID: its hash, since the IDs of
// all runtimes have 64 hex digits, and a label value at most 63.
func ContainerLabel(containerID string) string { return hash(containerID) }

// OwnerLabel returns the label value for the UID of an owner.
func OwnerLabel(uid types.UID) string { return hash(string(uid)) }

// WindowOf returns the window of an address: the aligned range of 256 addresses that it
// lies in, a /24 of IPv4 and a /120 of IPv6.
func WindowOf(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap()
	p, _ := addr.Prefix(addr.BitLen() - 8) // fails on an invalid address only
	return p
}

// WindowLabel returns the label value for the window of an address: its first address as
// in AllocationName, a dash, and the prefix length.
func WindowLabel(addr netip.Addr) string {
	w := WindowOf(addr)
	if !w.IsValid() {
		return ""
	}
	name := AllocationName("", w.Addr())
	return fmt.Sprintf("%s-%d", name[1:], w.Bits())
}

// AllocationLabels returns the labels of an allocation, by which it is found.
func AllocationLabels(spec *IPAllocationSpec) map[string]string {
	addr, _ := netip.ParseAddr(spec.Address) // if it fails: invalid, and without a window
	labels := map[string]string{LabelPool: LabelValue(spec.PoolRef.Name)}
	if addr.IsValid() {
		labels[LabelWindow] = WindowLabel(addr)
	}
	if spec.NodeName != "" {
		labels[LabelNode] = LabelValue(spec.NodeName)
	}
	if spec.ContainerID != "" {
		labels[LabelContainer] = ContainerLabel(spec.ContainerID)
	}
	if spec.Released() {
		labels[LabelReleased] = "true"
	}
	if spec.IsSticky() {
		labels[LabelOwner] = OwnerLabel(spec.Owner.UID)
	}
	return labels
}

// hash returns 40 hex digits.
func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:20])
}
