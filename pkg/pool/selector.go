// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"errors"

	corev1 "k8s.io/api/core/v1"
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
	parsed, err := nodeaffinity.NewNodeSelector(s, field.WithPath(path))
	for _, e := range parts(err) {
		var at *field.Error // names the very field
		if !errors.As(e, &at) {
			at = field.Invalid(path, s.String(), e.Error())
		}
		c.errs = append(c.errs, at)
	}
	return parsed
}

// parts returns the errors that err is made of.
func parts(err error) []error {
	if all, ok := err.(utilerrors.Aggregate); ok {
		return all.Errors()
	}
	if err != nil {
		return []error{err}
	}
	return nil
}
