// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// AllocationName returns the name of the IPAllocation of an address: the pool's name, a
// dot, and the address; IPv4 as it is written, IPv6 as eight groups of four
// digits, since an object name has no colons and "::" has no place in it. An
// IPv4 address in IPv6 notation is the IPv4 address.
//
// No two pairs of pool and address have one name: what stands after the last dot
// is either four groups of digits joined by "-", which only IPv6 has, or the last
// of exactly four decimal numbers.
func AllocationName(poolName string, addr netip.Addr) string {
	addr = addr.Unmap()
	if addr.Is4() {
		return poolName + "." + addr.String()
	}
	return poolName + "." + strings.ReplaceAll(addr.StringExpanded(), ":", "-")
}

// ParseAllocationName is the reverse of AllocationName.
func ParseAllocationName(name string) (poolName string, addr netip.Addr, err error) {
	text := name[strings.LastIndexByte(name, '.')+1:]
	if strings.Contains(text, "-") {
		addr, err = netip.ParseAddr(strings.ReplaceAll(text, "-", ":"))
	} else {
		parts := strings.Split(name, ".")
		text = strings.Join(parts[max(0, len(parts)-4):], ".")
		addr, err = netip.ParseAddr(text)
	}
	poolName = strings.TrimSuffix(name, "."+text)
	if err != nil || poolName == "" || AllocationName(poolName, addr) != name {
		return "", netip.Addr{}, fmt.Errorf("%q is not the name of an IPAllocation: want POOL.ADDRESS", name)
	}
	return poolName, addr, nil
}

// LabelValue returns s where it can be a label's value, else its hash: names of
// nodes and pools may have 253 characters and a label value 63.
func LabelValue(s string) string {
	if len(validation.IsValidLabelValue(s)) == 0 {
		return s
	}
	return hash(s)
}

// ContainerLabel returns the label value for a container ID, which has 64 hex
// digits in every runtime there is: one too many.
func ContainerLabel(containerID string) string { return hash(containerID) }

// hash has 40 hex digits, of which none can be told apart from a random one.
func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:20])
}
