// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package simnode

import (
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"path/filepath"

	"k8s.io/client-go/tools/clientcmd"
)

// Uplink is the link of every node that is on the shared network.
const Uplink = "eth0"

// Node is a network namespace with an uplink, from which the API server can be
// reached, and a directory in the place of a disk.
type Node struct {
	Name  string
	Netns *Netns
	// Dir holds nv-ipam.conf, nv-ipam.log and what plugins keep. It is the
	// caller's to remove.
	Dir string
	// Plugins are the directories to find CNI plugins in.
	Plugins []string

	forwarder *Forwarder
}

// NodeOptions of NewNode. All of them are needed.
type NodeOptions struct {
	Name string
	Dir  string
	// Switch that the uplink is connected to.
	Switch *Switch
	// Kubeconfig of the node, for a server on this machine's loopback.
	Kubeconfig string
	// PoolsNamespace is where the node looks for its pools.
	PoolsNamespace string
	Plugins        []string
}

// NewNode makes a node and configures the plugin on it.
func NewNode(o NodeOptions) (*Node, error) {
	n := &Node{Name: o.Name, Dir: o.Dir, Plugins: o.Plugins}
	if err := n.configure(o); err != nil {
		return nil, err
	}
	address, err := serverOf(o.Kubeconfig)
	if err != nil {
		return nil, err
	}
	if n.Netns, err = NewNetns(); err != nil {
		return nil, err
	}
	if err = o.Switch.Connect(n.Netns, Uplink); err == nil {
		n.forwarder, err = Forward(n.Netns, address)
	}
	if err != nil {
		return nil, errors.Join(err, n.Netns.Close())
	}
	return n, nil
}

// Close gives the namespace up. Pods that are attached through it lose their
// interfaces.
func (n *Node) Close() error { return errors.Join(n.forwarder.Close(), n.Netns.Close()) }

// Log is the path of the plugin's log.
func (n *Node) Log() string { return filepath.Join(n.Dir, "nv-ipam.log") }

// configure writes what the node's installer would.
func (n *Node) configure(o NodeOptions) error {
	settings, err := json.Marshal(map[string]string{
		"kubeconfig":     o.Kubeconfig,
		"poolsNamespace": o.PoolsNamespace,
		"nodeName":       n.Name,
		"dataDir":        filepath.Join(n.Dir, "data"),
		"logFile":        n.Log(),
		"logLevel":       "debug",
	})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(n.Dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(n.Dir, "nv-ipam.conf"), settings, 0o600)
}

func serverOf(kubeconfig string) (address string, err error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return "", err
	}
	u, err := url.Parse(config.Host)
	if err != nil {
		return "", err
	}
	return u.Host, nil
}
