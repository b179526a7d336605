// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package simnode makes nodes out of network namespaces: on one machine, on one
// Layer 2 network, with nothing of a kubelet but its calls of CNI plugins.
//
// The namespaces have no name and no mount. The kernel removes them, and every
// link in them, when the last process that has them open ends, however it ends.
package simnode

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
)

// Netns is a network namespace that this process holds.
type Netns struct{ ns.NetNS }

// NewNetns makes a network namespace in which only the loopback device exists,
// and is up.
func NewNetns() (*Netns, error) {
	made, err := ns.TempNetNS()
	if err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	n := &Netns{made}
	if err := n.do(func() error { return setUp("lo") }); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// Path names the namespace for other processes, as long as this one lives.
func (n *Netns) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.Fd()) }

// Addresses are those of a link inside of the namespace, with their prefix
// lengths.
func (n *Netns) Addresses(link string) (out []netip.Prefix, err error) {
	return out, n.do(func() error {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return fmt.Errorf("link %s: %w", link, err)
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
		if err != nil {
			return fmt.Errorf("addresses of %s: %w", link, err)
		}
		for _, a := range addrs {
			ip, _ := netip.AddrFromSlice(a.IP)
			bits, _ := a.Mask.Size()
			out = append(out, netip.PrefixFrom(ip.Unmap(), bits))
		}
		return nil
	})
}

// do runs f on a thread that is in the namespace. What f opens stays there: a
// socket belongs to the namespace that it was made in.
func (n *Netns) do(f func() error) error { return n.Do(func(ns.NetNS) error { return f() }) }

func setUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}
