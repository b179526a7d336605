// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/crd-ipam/crd-ipam/pkg/cni"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// What multus and its kind read and write, by the multi-network specification.
const (
	annotationNetworks = "k8s.v1.cni.cncf.io/networks"
	annotationStatus   = "k8s.v1.cni.cncf.io/network-status"
	// resourceNAD are NetworkAttachmentDefinitions.
	resourceNAD = "k8s.cni.cncf.io/v1/network-attachment-definitions"
)

// selection is one network in a pod's annotation.
type selection struct {
	Name      string          `json:"name"`
	Namespace string          `json:"namespace"`
	Interface string          `json:"interface"`
	IPs       []string        `json:"ips"`
	Args      json.RawMessage `json:"cni-args"`
}

func (s selection) String() string { return s.Namespace + "/" + s.Name }

// parseNetworks reads the annotation, which is JSON or "NAMESPACE/NAME@INTERFACE, ...", and
// fills in namespaces and the interfaces that multus gives.
func parseNetworks(text, namespace string) ([]selection, error) {
	var out []selection
	text = strings.TrimSpace(text)
	if strings.HasPrefix(text, "[") {
		if err := json.Unmarshal([]byte(text), &out); err != nil {
			return nil, fmt.Errorf("annotation %s is not valid: %w", annotationNetworks, err)
		}
	} else {
		for item := range strings.SplitSeq(text, ",") {
			if item = strings.TrimSpace(item); item == "" {
				continue
			}
			var s selection
			item, s.Interface, _ = strings.Cut(item, "@")
			if s.Namespace, s.Name, _ = strings.Cut(item, "/"); s.Name == "" {
				s.Namespace, s.Name = "", item
			}
			out = append(out, s)
		}
	}
	for i := range out {
		if out[i].Namespace == "" {
			out[i].Namespace = namespace
		}
		if out[i].Interface == "" {
			out[i].Interface = fmt.Sprintf("net%d", i+1)
		}
	}
	return out, nil
}

// status is one network in the annotation that says what a pod has.
type status struct {
	Name      string   `json:"name"`
	Interface string   `json:"interface"`
	IPs       []string `json:"ips"`
	Default   bool     `json:"default"`
}

// parseStatus reads it. What cannot be read says nothing.
func parseStatus(text string) (out []status) {
	if json.Unmarshal([]byte(text), &out) != nil {
		return nil
	}
	return slices.DeleteFunc(out, func(s status) bool { return s.Default })
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
func networkOf(nad *object, s selection) (*cni.Network, error) {
	return cni.ReadNetwork([]byte(configOf(nad)), cni.Request{Name: s.Name, IPs: s.IPs, Args: s.Args})
}
