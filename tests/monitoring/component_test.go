// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package monitoring

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// A server with prometheus-operator's CRDs accepts the component, as a person adds it to
// an overlay; all of it is in the installation's namespace, and Service and
// ServiceMonitor find the controller's port.
func TestComponent(t *testing.T) {
	crds := filepath.Join(rig.Part(t, "PROMETHEUS_OPERATOR", "prometheus-operator"), "crds")
	for _, plural := range []string{"servicemonitors", "prometheusrules"} {
		kubectl(t, "apply", "--server-side", "-f", filepath.Join(crds, "monitoring.coreos.com_"+plural+".yaml"))
		kubectl(t, "wait", "--for=condition=Established", "crd/"+plural+".monitoring.coreos.com")
	}
	c := rig.NewCluster(t, env)
	on := func(part string) string { // what a person writes
		return rig.Kustomization(t, map[string]any{
			"namespace": c.NS, "resources": []string{part}, "components": []string{"components/monitoring"},
			"labels": []any{map[string]any{"pairs": map[string]string{"release": "mine"}}},
		})
	}
	for _, overlay := range []string{"default", "k8s-1.30", "serviceaccount"} {
		kubectl(t, "kustomize", on("overlays/"+overlay))
	}
	// The controller alone: the policies of an overlay are for the whole server.
	kubectl(t, "apply", "--validate=strict", "-k", on("base/controller"))

	var deployment appsv1.Deployment
	get(t, c.NS, "deployment/nv-ipam-controller", &deployment)
	var service corev1.Service
	get(t, c.NS, "service/nv-ipam-controller-metrics", &service)
	for k, v := range service.Spec.Selector {
		if deployment.Spec.Template.Labels[k] != v {
			t.Errorf("the service selects %s=%s, the pods have %v", k, v, deployment.Spec.Template.Labels)
		}
	}
	port := service.Spec.Ports[0]
	if !slices.ContainsFunc(deployment.Spec.Template.Spec.Containers[0].Ports, func(p corev1.ContainerPort) bool { return p.Name == port.TargetPort.StrVal }) {
		t.Errorf("the controller has no port %s", port.TargetPort.StrVal)
	}
	var monitor struct {
		Metadata struct{ Labels map[string]string }
		Spec     struct {
			Selector  struct{ MatchLabels map[string]string }
			Endpoints []struct{ Port string }
		}
	}
	get(t, c.NS, "servicemonitor/nv-ipam-controller", &monitor)
	for k, v := range monitor.Spec.Selector.MatchLabels {
		if service.Labels[k] != v {
			t.Errorf("the ServiceMonitor selects %s=%s, the service has %v", k, v, service.Labels)
		}
	}
	if monitor.Spec.Endpoints[0].Port != port.Name || monitor.Metadata.Labels["release"] != "mine" {
		t.Errorf("ServiceMonitor %+v, the service's port is %s", monitor, port.Name)
	}
	get(t, c.NS, "prometheusrule/crd-ipam", &struct{}{})
	var dashboard corev1.ConfigMap
	get(t, c.NS, "configmap/crd-ipam-dashboard", &dashboard)
	if dashboard.Labels["grafana_dashboard"] != "1" || !json.Valid([]byte(dashboard.Data["crd-ipam.json"])) {
		t.Errorf("the dashboard's ConfigMap has the labels %v and is valid: %v", dashboard.Labels, json.Valid([]byte(dashboard.Data["crd-ipam.json"])))
	}
}

// What docs/metrics.md tells people to write into their kustomization is the component.
func TestComponentDocument(t *testing.T) {
	_, text, _ := strings.Cut(readText(t, filepath.Join(rig.Root(t), "docs", "metrics.md")), "```yaml\n")
	text, _, _ = strings.Cut(text, "```")
	var k struct {
		Namespace             string
		Resources, Components []string
	}
	if err := yaml.Unmarshal([]byte(text), &k); err != nil {
		t.Fatal(err)
	}
	if k.Namespace == "" || !slices.Equal(k.Resources, []string{"bin/manifests"}) || !slices.Equal(k.Components, []string{"manifests/components/monitoring"}) {
		t.Errorf("docs/metrics.md has %+v", k)
	}
}

func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := env.Kubectl(t.Context(), args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

func get(t *testing.T, namespace, what string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(kubectl(t, "-n", namespace, "get", what, "-o", "json")), into); err != nil {
		t.Fatal(err)
	}
}
