// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"regexp"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// A CNI configuration may name a pool by labels of the node, so that one configuration is
// for all racks: "rail1-{topology.kubernetes.io/rack}". Here that is a name with labels.

// HasLabels reports whether a pool's name has labels.
func HasLabels(name string) bool { return strings.ContainsAny(name, "{}") }

// CheckLabels checks a name with labels: what is in braces has to be the key of a label,
// and the rest what the name of a pool may have.
func CheckLabels(name string) error {
	literals, keys := splitName(name)
	for _, literal := range literals {
		if HasLabels(literal) {
			return fmt.Errorf("%q has a brace too many: {LABEL} stands for the value of a label of the node, as in rail1-{topology.kubernetes.io/rack}", name)
		}
	}
	for _, key := range keys {
		if wrong := validation.IsQualifiedName(key); len(wrong) > 0 {
			return fmt.Errorf("%q: %q is not the key of a label: %s", name, key, wrong[0])
		}
	}
	return ValidName(strings.Join(literals, "0"))
}

// ExpandName replaces the labels in a name by their values on a node. The error names the
// label that is missing, or whose value gives no name that a pool could have.
func ExpandName(name, node string, labels map[string]string) (string, error) {
	literals, keys := splitName(name)
	out := literals[0]
	var values []string
	for i, key := range keys {
		value, ok := labels[key]
		if !ok {
			return "", fmt.Errorf("node %s has no label %s: set it, as by kubectl label node %s %s=VALUE", node, key, node, key)
		}
		out += value + literals[i+1]
		values = append(values, fmt.Sprintf("%s=%q", key, value))
	}
	if len(out) > v1alpha1.MaxPoolName || len(validation.IsDNS1123Subdomain(out)) > 0 {
		return "", fmt.Errorf("with node %s's label %s it would be %q, which no pool can be called: lower case letters, digits, '-' and '.', at most %d characters; change the label or poolName",
			node, strings.Join(values, ", "), out, v1alpha1.MaxPoolName)
	}
	return out, nil
}

// MatchesName reports whether a name with labels may have stood for a pool.
func MatchesName(name, pool string) bool {
	literals, _ := splitName(name)
	for i, literal := range literals {
		literals[i] = regexp.QuoteMeta(literal)
	}
	return regexp.MustCompile("^" + strings.Join(literals, "[-_.A-Za-z0-9]+") + "$").MatchString(pool)
}

// splitName returns the keys of the labels in a name, and what is before, between and
// after them.
func splitName(name string) (literals, keys []string) {
	for {
		before, rest, found := strings.Cut(name, "{")
		key, after, closed := strings.Cut(rest, "}")
		if !found || !closed {
			return append(literals, name), keys
		}
		literals, keys = append(literals, before), append(keys, key)
		name = after
	}
}
