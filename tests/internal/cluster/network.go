// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// All machines and the host are on one Layer 2 network, a bridge in the control
// plane's namespace; the nodes' eth0, which macvlan networks have as master, are
// on it too. Pods of the cluster network are routed, without any translation.
//
//	10.213.77.1    the host, on the link crd-ipam
//	10.213.77.2    the control plane
//	10.213.77.11   the first node, and so on
//	10.244.0.0/24  the pods of the first node, and so on
//	10.96.0.1      the service "kubernetes", on the control plane's loopback device:
//	               the API server listens there, and nothing else is a service, so
//	               that there is no need for kube-proxy
const (
	hostLink     = "crd-ipam"
	hostIP       = "10.213.77.1"
	controlIP    = "10.213.77.2"
	serviceIP    = "10.96.0.1"
	serviceCIDR  = "10.96.0.0/16"
	clusterBits  = 24
	serverURL    = "https://" + controlIP + ":443"
	bridgeName   = "br0"
	nodeLinkName = "eth0"
)

func nodeIP(i int) string    { return fmt.Sprintf("10.213.77.%d", 11+i) }
func podSubnet(i int) string { return fmt.Sprintf("10.244.%d.0/24", i) }
func inNetns(pid int) string { return fmt.Sprintf("/proc/%d/ns/net", pid) }
func peerName(i int) string  { return fmt.Sprintf("node%d", i) }

// connectControlPlane makes the bridge, and the link to it from the host.
func connectControlPlane(pid, nodes int) error {
	if _, err := netlink.LinkByName(hostLink); err == nil {
		return fmt.Errorf("there is a link %s: is another cluster running?", hostLink)
	}
	host := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: hostLink},
		PeerName:      "host",
		PeerNamespace: netlink.NsPid(pid),
	}
	if err := netlink.LinkAdd(host); err != nil {
		return fmt.Errorf("add link %s: %w", hostLink, err)
	}
	if err := configure(hostLink, hostIP, clusterBits); err != nil {
		return err
	}
	return within(pid, func() error {
		// Without one of its own, a bridge has the lowest address of its ports, and another one when
		// a node crashes or boots: nobody reaches the API server until their neighbour entries expire.
		mac := net.HardwareAddr{0x02, 0, 10, 213, 77, 2}
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName, HardwareAddr: mac}}
		if err := netlink.LinkAdd(bridge); err != nil {
			return fmt.Errorf("add bridge: %w", err)
		}
		if err := errors.Join(
			configure("lo", serviceIP, 32),
			configure(bridgeName, controlIP, clusterBits),
			attach("host"),
			forward(),
		); err != nil {
			return err
		}
		for i := range nodes {
			if err := route(podSubnet(i), nodeIP(i)); err != nil {
				return err
			}
		}
		return nil
	})
}

// removeLink removes a link of this network namespace, if it is there. The kernel
// removes a link some time after the namespace of its other end, so that it may
// go at any moment.
func removeLink(name string) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// connectNode links node number i of several to the control plane's bridge.
func connectNode(pid, control, i, nodes int) error {
	err := within(control, func() error {
		if err := removeLink(peerName(i)); err != nil { // of an earlier boot
			return err
		}
		node, err := os.Open(inNetns(pid))
		if err != nil {
			return err
		}
		defer node.Close()
		veth := &netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: peerName(i)},
			PeerName:      nodeLinkName,
			PeerNamespace: netlink.NsFd(int(node.Fd())),
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("add link %s: %w", peerName(i), err)
		}
		return attach(peerName(i))
	})
	if err != nil {
		return err
	}
	return within(pid, func() error {
		err := errors.Join(
			configure("lo", "127.0.0.1", 8),
			configure(nodeLinkName, nodeIP(i), clusterBits),
			forward(),
			route(serviceCIDR, controlIP),
			route("0.0.0.0/0", controlIP),
		)
		for other := range nodes {
			if other != i {
				err = errors.Join(err, route(podSubnet(other), nodeIP(other)))
			}
		}
		return err
	})
}

// within calls f in the network namespace of a process.
func within(pid int, f func() error) error {
	return ns.WithNetNSPath(inNetns(pid), func(ns.NetNS) error { return f() })
}

// configure gives a link its address and sets it up. The loopback device may have
// its own already.
func configure(link, ip string, bits int) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return fmt.Errorf("link %s: %w", link, err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(ip).To4(), Mask: net.CIDRMask(bits, 32)}}
	if err := netlink.AddrReplace(l, addr); err != nil {
		return fmt.Errorf("address %s on %s: %w", ip, link, err)
	}
	return netlink.LinkSetUp(l)
}

func attach(link string) error {
	bridge, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return err
	}
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetMaster(l, bridge), netlink.LinkSetUp(l))
}

func route(to, via string) error {
	_, dst, err := net.ParseCIDR(to)
	if err != nil {
		return err
	}
	if err := netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(via)}); err != nil {
		return fmt.Errorf("route to %s via %s: %w", to, via, err)
	}
	return nil
}

// forward has the namespace forward packets. Each thread finds its namespace's
// own file there.
func forward() error {
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
}
