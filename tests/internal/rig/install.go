// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// Root is the directory of the project's root module.
func Root(t testing.TB) string {
	t.Helper()
	return must(testenv.Root())(t)
}

// Binary is the path of one of this project's commands.
func Binary(t testing.TB, name string) string {
	t.Helper()
	return must(testenv.Binary(name))(t)
}

// Part is the directory of a part that hack/parts.sh builds, which an environment
// variable has.
func Part(t testing.TB, variable, part string) string {
	t.Helper()
	return must(testenv.Part(variable, part))(t)
}

// CopyTree copies parts of the root module into a new directory, which builds there what they
// are enough for.
func CopyTree(t testing.TB, to string, parts ...string) {
	t.Helper()
	if err := os.MkdirAll(to, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, part := range parts {
		if out, err := exec.CommandContext(t.Context(), "cp", "-r", filepath.Join(Root(t), part), to).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
}

// Kustomization writes one on top of parts of manifests/, as a person would, and
// returns its directory. It has fields, such as namespace; in the lists resources and
// components, paths below manifests, or of anywhere.
func Kustomization(t testing.TB, fields map[string]any) string {
	t.Helper()
	dir := t.TempDir()
	for _, list := range []string{"resources", "components"} {
		parts, _ := fields[list].([]string)
		for i, part := range parts {
			if !filepath.IsAbs(part) {
				part = filepath.Join(Root(t), "manifests", part)
			}
			parts[i] = must(filepath.Rel(dir, part))(t)
		}
	}
	data := must(json.Marshal(fields))(t) // which is YAML, too
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Apply applies parts of manifests/ in the namespace.
func (c *Cluster) Apply(t testing.TB, resources ...string) {
	t.Helper()
	dir := Kustomization(t, map[string]any{"namespace": c.NS, "resources": resources})
	if out, err := c.Env.Kubectl(t.Context(), "apply", "-k", dir); err != nil {
		t.Fatal(err, out)
	}
}

// AwaitPolicy waits until the nodes' role and admission policy are in force.
func (c *Cluster) AwaitPolicy(t testing.TB) {
	t.Helper()
	canary := Client(t, must(c.Env.UserConfig("system:node:canary", testenv.NodesGroup))(t)).IPAllocations(c.NS)
	Until(t, func() string {
		_, err := canary.Create(t.Context(), Allocation("canary", "10.9.9.9", "another", v1alpha1.PodReference{}, "c"), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err == nil || !strings.Contains(err.Error(), "ValidatingAdmissionPolicy 'crd-ipam-node'") {
			return fmt.Sprint("role and policy are not in force: ", err)
		}
		return ""
	})
}

// Allocation is one that the node's plugin makes for a container's net1.
func Allocation(pool, address, node string, pod v1alpha1.PodReference, container string) *v1alpha1.IPAllocation {
	now := metav1.NowMicro()
	return &v1alpha1.IPAllocation{
		ObjectMeta: metav1.ObjectMeta{Name: pool + "." + address, Labels: map[string]string{
			v1alpha1.LabelPool: v1alpha1.LabelValue(pool), v1alpha1.LabelNode: v1alpha1.LabelValue(node), v1alpha1.LabelContainer: v1alpha1.ContainerLabel(container),
		}},
		Spec: v1alpha1.IPAllocationSpec{
			PoolRef: v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: pool}, Address: address, NodeName: node,
			PodRef: pod, ContainerID: container, InterfaceName: "net1", AddStartedAt: &now,
		},
	}
}
