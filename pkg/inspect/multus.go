// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"

	"github.com/crd-ipam/crd-ipam/pkg/cni"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// What multus and its kind read and write, by the multi-network specification.
const (
	annotationStatus = "k8s.v1.cni.cncf.io/network-status"
	// annotationDefault names the pod's first network, in place of the cluster's. Multus looks for
	// one without a namespace in its own.
	annotationDefault = "v1.multus-cni.io/default-network"
	multusNamespace   = "kube-system"
	defaultInterface  = "eth0"
	// resourceNAD are NetworkAttachmentDefinitions.
	resourceNAD = "k8s.cni.cncf.io/v1/network-attachment-definitions"

	// The longest names of an interface, and of a network with its namespace. The author of a pod
	// may write anything.
	maxInterface = 15
	maxNetwork   = 63 + len("/") + 253
)

// status is one network in the annotation that says what a pod has.
type status struct {
	Name      string   `json:"name"`
	Interface string   `json:"interface"`
	IPs       []string `json:"ips"`
	Default   bool     `json:"default"`
}

// parseStatus reads it, without the cluster's own network, which is no NetworkAttachmentDefinition.
// What cannot be read says nothing, nor what no interface or network can be called.
func parseStatus(text string) (out []status) {
	if json.Unmarshal([]byte(text), &out) != nil {
		return nil
	}
	return slices.DeleteFunc(out, func(s status) bool {
		return s.Default && !strings.Contains(s.Name, "/") || len(s.Name) > maxNetwork || len(s.Interface) > maxInterface
	})
}

func (s status) addresses() (out []netip.Addr) {
	for _, text := range s.IPs {
		addr, _, _ := strings.Cut(text, "/")
		if a, err := pool.ParseAddr(addr); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// configOf returns the configuration in a NetworkAttachmentDefinition; "" if it has none.
func configOf(nad *object) string {
	var spec struct {
		Config string `json:"config"`
	}
	_ = json.Unmarshal(nad.Spec, &spec) // a NAD without a configuration
	return spec.Config
}

// networkOf reads a NetworkAttachmentDefinition.
func networkOf(nad *object, s ledger.Selection) (*cni.Network, error) {
	return cni.ReadNetwork([]byte(configOf(nad)), cni.Request{Name: s.Name, IPs: s.IPs, Args: s.Args})
}
