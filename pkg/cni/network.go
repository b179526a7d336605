// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"fmt"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// typeName is this plugin's name in a configuration.
const typeName = "nv-ipam"

// Network is what a network's configuration says about addresses. What a node's
// nv-ipam.conf adds to it is not known here.
type Network struct {
	// Name of the network: an IPAMClaim and an allocation name it.
	Name string
	// Pools, whose names may have labels of the node in them.
	Pools []v1alpha1.PoolReference
	// PoolsNamespace is "" if the configuration does not say it.
	PoolsNamespace string
	// Want is what a pod asks for.
	Want pool.Want
	// Persistent says that the network lets pods keep addresses by an IPAMClaim.
	Persistent bool
}

// Request is what a pod's annotation says about one of its networks.
type Request struct {
	// Name of the network if the configuration has none.
	Name string
	// IPs are requested addresses.
	IPs []string
	// Args are those in args.cni.
	Args json.RawMessage
}

// ReadNetwork reads a network's configuration, as a NetworkAttachmentDefinition has it:
// that of a plugin, or of a list of them. It returns nil if addresses are the concern of
// another plugin. The errors are those that an ADD returns.
func ReadNetwork(config []byte, req Request) (*Network, error) {
	var list struct {
		Name       string            `json:"name"`
		CNIVersion string            `json:"cniVersion"`
		Plugins    []json.RawMessage `json:"plugins"`
	}
	if err := json.Unmarshal(config, &list); err != nil {
		return nil, fmt.Errorf("network configuration is not valid: %w", err)
	}
	if list.Plugins == nil {
		list.Plugins = []json.RawMessage{config}
	}
	for _, plugin := range list.Plugins {
		n := &network{stdin: plugin}
		if err := json.Unmarshal(plugin, n); err != nil {
			return nil, fmt.Errorf("network configuration is not valid: %w", err)
		}
		if n.IPAM.Type != typeName {
			continue
		}
		n.Name = first(n.Name, list.Name, req.Name)
		return n.read(req)
	}
	return nil, nil
}

func (n *network) read(req Request) (*Network, error) {
	if len(req.Args) > 0 {
		if err := json.Unmarshal(req.Args, &n.Args.CNI); err != nil {
			return nil, fmt.Errorf("cni-args are not valid: %w", err)
		}
	}
	if len(req.IPs) > 0 {
		n.Runtime.IPs = req.IPs
	}
	out := &Network{Name: n.Name, PoolsNamespace: n.IPAM.PoolsNamespace, Persistent: n.persistent()}
	n.IPAM.fillFrom(Settings{PoolType: string(pool.DefaultKind)})
	var err error
	if out.Pools, err = n.pools(); err != nil {
		return nil, err
	}
	out.Want, err = n.want("")
	return out, err
}
