// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"encoding/json"
	"fmt"
	"strings"
)

// AnnotationNetworks is where a pod says which networks it wants, by the multi-network
// specification.
const AnnotationNetworks = "k8s.v1.cni.cncf.io/networks"

// Selection is one network in that annotation.
type Selection struct {
	Name      string          `json:"name"`
	Namespace string          `json:"namespace"`
	Interface string          `json:"interface"`
	IPs       []string        `json:"ips"`
	Args      json.RawMessage `json:"cni-args"`
	// IPAMClaim is the name of an IPAMClaim in the pod's namespace. Multus does not pass it
	// on.
	IPAMClaim string `json:"ipam-claim-reference"`
	// Assumed says that the annotation names no interface, and Interface is what multus gives
	// unless it has networks of its own before the pod's.
	Assumed bool `json:"-"`
}

func (s Selection) String() string { return s.Namespace + "/" + s.Name }

// ParseNetworks reads the annotation of a pod in a namespace. It is JSON if it contains one of
// [{", as multus decides, else "NAMESPACE/NAME@INTERFACE, ...". Namespaces and the interfaces that
// multus gives are filled in.
func ParseNetworks(text, namespace string) ([]Selection, error) {
	var out []Selection
	text = strings.TrimSpace(text)
	if strings.ContainsAny(text, `[{"`) {
		if err := json.Unmarshal([]byte(text), &out); err != nil {
			return nil, fmt.Errorf("annotation %s is not valid: %w", AnnotationNetworks, err)
		}
	} else {
		for item := range strings.SplitSeq(text, ",") {
			if item = strings.TrimSpace(item); item == "" {
				continue
			}
			var s Selection
			item, s.Interface, _ = strings.Cut(item, "@")
			if s.Namespace, s.Name, _ = strings.Cut(item, "/"); s.Name == "" {
				s.Namespace, s.Name = "", item
			}
			out = append(out, s)
		}
	}
	for i := range out {
		if out[i].Name == "" {
			return nil, fmt.Errorf("annotation %s is not valid: entry %d has no name", AnnotationNetworks, i+1)
		}
		if out[i].Namespace == "" {
			out[i].Namespace = namespace
		}
		if out[i].Interface == "" {
			out[i].Assumed = true
			out[i].Interface = fmt.Sprintf("net%d", i+1)
		}
	}
	return out, nil
}
