// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// Selects reports whether node is given a block of the pool.
func (p *Pool) Selects(node *corev1.Node) bool {
	if p.selector == nil {
		return true
	}
	return p.selector.Match(node)
}

// nodeSelector parses a selector; nil selects all nodes.
func (c *checker) nodeSelector(path *field.Path, s *corev1.NodeSelector) *nodeaffinity.NodeSelector {
	if s == nil {
		return nil
	}
	if len(s.NodeSelectorTerms) == 0 {
		c.errs = append(c.errs, field.Required(path.Child("nodeSelectorTerms"), "must have at least one node selector term"))
		return nil
	}
	parsed, err := nodeaffinity.NewNodeSelector(s, field.WithPath(path))
	if err != nil {
		c.errs = append(c.errs, field.Invalid(path, "", err.Error()))
	}
	return parsed
}
