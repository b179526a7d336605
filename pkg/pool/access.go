// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// access says who may use a pool. See v1alpha1.PoolAccess.
type access struct {
	// AllowedNamespaces are those of the pods that may use the pool; nil allows all.
	AllowedNamespaces []string `json:"allowedNamespaces,omitempty"`
	// Disabled is true if the pool gives nothing.
	Disabled bool `json:"disabled,omitempty"`
	// Manual is true if the pool gives only addresses that are asked for.
	Manual bool `json:"manual,omitempty"`
	// NodeSelector selects the nodes that may use a pool without blocks; nil selects all.
	// In a pool with blocks, a node that has a block is selected.
	NodeSelector *corev1.NodeSelector `json:"nodeSelector,omitempty"`
	// ReleaseCooldown is how long addresses rest after their release; nil if the pool does
	// not say.
	ReleaseCooldown *metav1.Duration `json:"releaseCooldown,omitempty"`
	// Sticky is true if the pods of StatefulSets keep their addresses.
	Sticky bool `json:"sticky,omitempty"`
}

// maxEntries is how many entries a list has room for that only this project's pools have.
const maxEntries = 1000

// access checks and parses who may use a pool.
func (c *checker) access(in v1alpha1.PoolAccess) access {
	spec := field.NewPath("spec")
	if in.Domain != "" && (len(in.Domain) > v1alpha1.MaxPoolName || len(validation.IsDNS1123Subdomain(in.Domain)) > 0) {
		c.invalid(spec.Child("domain"), in.Domain, fmt.Sprintf("must be a name that a pool could have, of lower case letters, digits, '-' and '.', with at most %d characters", v1alpha1.MaxPoolName))
	}
	path := spec.Child("allowedNamespaces")
	if in.AllowedNamespaces != nil && len(in.AllowedNamespaces) == 0 {
		c.invalid(path, in.AllowedNamespaces, `must have at least one entry: an empty list could mean all or none; "*" allows all, spec.disabled none`)
	}
	c.atMost(path, len(in.AllowedNamespaces))
	for i, name := range in.AllowedNamespaces {
		if prefix, wild := strings.CutSuffix(name, "*"); wild {
			name = prefix + "x" // what the shortest name would be that begins so
		}
		if len(validation.IsDNS1123Label(name)) > 0 {
			c.invalid(path.Index(i), in.AllowedNamespaces[i], `is neither the name of a namespace nor the beginning of one and a "*"`)
		}
	}
	if d := in.ReleaseCooldown; d != nil && (d.Duration < 0 || d.Duration > v1alpha1.MaxCooldown || d.Duration%time.Second != 0) {
		c.invalid(spec.Child("releaseCooldown"), d.Duration.String(), "must be from 0s to 24h, in whole seconds")
	}
	for i, kind := range in.Sticky {
		if slices.Contains(in.Sticky[:i], kind) {
			c.invalid(spec.Child("sticky").Index(i), kind, "is named twice")
		}
		oneOf(c, spec.Child("sticky").Index(i), kind, v1alpha1.StickyStatefulSet)
	}
	oneOf(c, spec.Child("stickyWhenScaled"), in.StickyWhenScaled, v1alpha1.StickyRetain, v1alpha1.StickyDelete)
	if in.StickyWhenScaled != "" && len(in.Sticky) == 0 {
		c.invalid(spec.Child("stickyWhenScaled"), in.StickyWhenScaled, "cannot be set if spec.sticky is not set")
	}
	return access{AllowedNamespaces: in.AllowedNamespaces, Disabled: in.Disabled, ReleaseCooldown: in.ReleaseCooldown, Sticky: len(in.Sticky) > 0}
}

func (c *checker) atMost(path *field.Path, n int) {
	if n > maxEntries {
		c.errs = append(c.errs, field.TooMany(path, n, maxEntries))
	}
}

// oneOf refuses a value that is set and unknown.
func oneOf[T ~string](c *checker, path *field.Path, value T, known ...T) {
	if value != "" && !slices.Contains(known, value) {
		c.errs = append(c.errs, field.NotSupported(path, value, known))
	}
}

// Admit returns a RequestError if the pool gives nothing to pods of a namespace, whatever
// they ask for. Match decides about what they ask for.
func (b *Block) Admit(namespace string) error {
	kind := Type(b.Pool.Kind)
	if b.Disabled {
		return refuse("pool %q, poolType %q gives no addresses because its spec.disabled is true: set it to false, or name another pool", b.Pool.Name, kind)
	}
	if b.AllowedNamespaces != nil && !allows(b.AllowedNamespaces, namespace) {
		return refuse("pool %q, poolType %q gives no addresses to pods of namespace %q because its spec.allowedNamespaces has only %s: add the namespace there, or name another pool",
			b.Pool.Name, kind, namespace, firstOf(b.AllowedNamespaces))
	}
	return nil
}

// allows reports whether one of the patterns is the name, or its beginning and a "*".
func allows(patterns []string, name string) bool {
	return name != "" && slices.ContainsFunc(patterns, func(pattern string) bool {
		prefix, wild := strings.CutSuffix(pattern, "*")
		return pattern == name || wild && strings.HasPrefix(name, prefix)
	})
}

// firstOf returns the first names of a list that may have a thousand.
func firstOf(names []string) string { return enumerate(names, 5, "%q") }

// SelectsByLabels reports whether it depends on a node's labels whether the node may use
// the pool. A block is already one of a node that is selected.
func (b *Block) SelectsByLabels() bool { return b.NodeSelector != nil }

// Selects reports whether a node with these labels may use the pool.
func (b *Block) Selects(node string, labels map[string]string) bool {
	selector, err := nodeaffinity.NewNodeSelector(b.NodeSelector)
	return err == nil && selector.Match(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node, Labels: labels}})
}

// Selector returns the pool's node selector as a person writes it.
func (b *Block) Selector() string {
	var terms []string
	for _, term := range b.NodeSelector.NodeSelectorTerms {
		var parts []string
		for _, r := range slices.Concat(term.MatchFields, term.MatchExpressions) {
			part := r.Key + " " + string(r.Operator)
			if len(r.Values) > 0 {
				part += " (" + firstOf(r.Values) + ")"
			}
			parts = append(parts, part)
		}
		terms = append(terms, strings.Join(parts, " and "))
	}
	return Cut(strings.Join(terms, ", or "), maxSelector)
}
