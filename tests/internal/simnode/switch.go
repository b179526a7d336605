// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package simnode

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
)

const bridgeName = "switch"

// Switch is a Layer 2 network: a bridge in a namespace of its own, so that
// nothing of it is seen on the machine.
type Switch struct {
	netns *Netns
	ports int
}

// NewSwitch makes a network that nothing is connected to.
func NewSwitch() (*Switch, error) {
	n, err := NewNetns()
	if err != nil {
		return nil, err
	}
	err = n.do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = bridgeName
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("make a bridge: %w", err)
		}
		return setUp(bridgeName)
	})
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return &Switch{netns: n}, nil
}

// Close gives the namespace up.
func (s *Switch) Close() error { return s.netns.Close() }

// Connect makes link ifName in n, with its other end in the bridge.
func (s *Switch) Connect(n *Netns, ifName string) error {
	port := fmt.Sprintf("port%d", s.ports)
	s.ports++
	err := s.netns.do(func() error {
		bridge, err := netlink.LinkByName(bridgeName)
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MasterIndex = port, bridge.Attrs().Index
		// The other end is made where it belongs: moved there, it would exist here
		// first, under a name that may be taken.
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: ifName, PeerNamespace: netlink.NsFd(n.Fd())}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("make a veth pair: %w", err)
		}
		return setUp(port)
	})
	if err != nil {
		return err
	}
	return n.do(func() error { return setUp(ifName) })
}
