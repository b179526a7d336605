// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package monitoring tests manifests/components/monitoring: its rules with promtool,
// and rules and dashboard with a real Prometheus that scrapes the real controller.
package monitoring

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

var env *testenv.Env

func TestMain(m *testing.M) { os.Exit(testenv.Run(m, &env, testenv.Options{})) }

// component is the path of a file of the component.
func component(t testing.TB, name string) string {
	return filepath.Join(rig.Root(t), "manifests", "components", "monitoring", name)
}

// rules are the groups of the PrometheusRule, which is what a file of rules has.
type rules struct {
	Groups []struct {
		Name  string `json:"name"`
		Rules []rule `json:"rules"`
	} `json:"groups"`
}

type rule struct {
	Alert       string            `json:"alert"`
	Expr        string            `json:"expr"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

// rulesFile writes the groups into a file as Prometheus reads it.
func rulesFile(t *testing.T) (path string, alerts []rule) {
	t.Helper()
	var manifest struct {
		Spec json.RawMessage `json:"spec"`
	}
	read(t, component(t, "prometheusrule.yaml"), &manifest)
	path = filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(path, manifest.Spec, 0o600); err != nil { // JSON is YAML, too
		t.Fatal(err)
	}
	var all rules
	read(t, path, &all)
	for _, g := range all.Groups {
		alerts = append(alerts, g.Rules...)
	}
	if len(alerts) < 10 {
		t.Fatalf("only %d alerts were read", len(alerts))
	}
	return path, alerts
}

func readText(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// read decodes a file of YAML or JSON.
func read(t *testing.T, path string, into any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(readText(t, path)), into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// selector selects nodes that have a label.
func selector(label string) *corev1.NodeSelector {
	return &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchExpressions: []corev1.NodeSelectorRequirement{{Key: label, Operator: corev1.NodeSelectorOpExists}},
	}}}
}
