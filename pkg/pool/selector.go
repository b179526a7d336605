// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"errors"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
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
	c.nodeFields(path.Child("nodeSelectorTerms"), s.NodeSelectorTerms)
	parsed, err := nodeaffinity.NewNodeSelector(s, field.WithPath(path))
	if err != nil {
		c.errs = append(c.errs, selectorErrors(path, s, err)...)
	}
	return parsed
}

// nodeFields refuses fields other than the name: they would select no node.
func (c *checker) nodeFields(path *field.Path, terms []corev1.NodeSelectorTerm) {
	for i, term := range terms {
		for j, f := range term.MatchFields {
			if f.Key != metav1.ObjectNameField {
				c.invalid(path.Index(i).Child("matchFields").Index(j).Child("key"), f.Key, "nodes are selected by the field "+metav1.ObjectNameField+" only")
			}
		}
	}
}

// selectorErrors takes apart what NewNodeSelector found: each part names the
// very field where it can.
func selectorErrors(path *field.Path, s *corev1.NodeSelector, err error) field.ErrorList {
	parts := []error{err}
	var all utilerrors.Aggregate
	if errors.As(err, &all) {
		parts = all.Errors()
	}
	var out field.ErrorList
	for _, part := range parts {
		var named *field.Error
		if !errors.As(part, &named) {
			named = field.Invalid(path, s.String(), part.Error())
		}
		out = append(out, named)
	}
	return out
}
