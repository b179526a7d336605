// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// What holds the record is not deleted by mistake, whoever tries, and goes when the
// annotation says so, which the refusal names.
func TestDeletionIsRefused(t *testing.T) {
	env := servers.Get(t)
	o := overlays[1] // which every server takes
	crds := o.record()
	kubectl(t, env, "apply", "-k", crds.dir(t))
	kubectl(t, env, "apply", "-k", filepath.Join(rig.Root(t), "manifests", "base", "protection"))
	kubectl(t, env, "wait", "--for=condition=Established", "crd", "--all")
	apply(t, env, `
apiVersion: v1
kind: Namespace
metadata:
  name: pools
  labels: {nv-ipam.nvidia.com/protected: ""}
---
`+strings.ReplaceAll(poolManifest, "NAMESPACE", "pools"))
	apply(t, env, "apiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n")
	for _, pool := range []string{"ippool/pool1", "cidrpool/pool2"} {
		setUsed(t, env, pool, 3)
	}
	for _, tc := range []struct{ object, words string }{
		{"crd/ippools.nv-ipam.nvidia.com", "the record of which pod has which address"},
		{"crd/cidrpools.nv-ipam.nvidia.com", "the record of which pod has which address"},
		{"crd/ipallocations.nv-ipam.nvidia.com", "the record of which pod has which address"},
		{"ippool/pool1", "3 addresses of this pool are held"},
		{"cidrpool/pool2", "3 addresses of this pool are held"},
		{"namespace/pools", "deletes the pools in it"},
	} {
		refused(t, env, tc.words, "delete", "-n", "pools", tc.object, "--wait=false")
	}
	refused(t, env, "3 addresses", "delete", "-n", "pools", "ippools", "--all")
	for range 2 { // whoever is refused tries again
		refused(t, env, "the record of which pod", "delete", "-k", crds.dir(t), "--wait=false")
	}

	// With its namespace, a pool goes, whoever deletes it there: nobody here is the
	// namespace controller.
	apply(t, env, "apiVersion: v1\nkind: Namespace\nmetadata: {name: ending}\n---\n"+strings.ReplaceAll(poolManifest, "NAMESPACE", "ending"))
	config, err := env.UserKubeconfig("system:kube-controller-manager", "system:masters")
	if err != nil {
		t.Fatal(err)
	}
	for _, pool := range []string{"ippool/pool1", "cidrpool/pool2"} {
		kubectl(t, env, "patch", "-n", "ending", pool, "--subresource=status", "--type=merge", "-p", `{"status":{"allocations":[],"used":3}}`)
		refused(t, env, "3 addresses", "delete", "-n", "ending", pool, "--kubeconfig="+config)
	}
	kubectl(t, env, "delete", "namespace/ending", "--wait=false")
	rig.Until(t, func() string { // admission learns of it a moment later
		if _, err := env.Kubectl(t.Context(), "delete", "-n", "ending", "ippools,cidrpools", "--all", "--kubeconfig="+config); err != nil {
			return err.Error()
		}
		return ""
	})

	// What nobody uses goes, and so does what the refusal's own command has released.
	kubectl(t, env, "delete", "namespace/other", "--wait=false")
	setUsed(t, env, "cidrpool/pool2", 0)
	kubectl(t, env, "delete", "-n", "pools", "cidrpool/pool2")
	says := refused(t, env, "If you mean it", "delete", "-n", "pools", "ippool/pool1")
	_, command, _ := strings.Cut(says, "If you mean it: kubectl ")
	kubectl(t, env, strings.Fields(strings.TrimSpace(command))...)
	kubectl(t, env, "delete", "-n", "pools", "ippool/pool1")
}

func setUsed(t *testing.T, env *testenv.Env, pool string, used int) {
	t.Helper()
	kubectl(t, env, "patch", "-n", "pools", pool, "--subresource=status", "--type=merge", "-p", fmt.Sprintf(`{"status":{"allocations":[],"used":%d}}`, used))
}

// refused runs kubectl, which has to fail with these words, and returns what it says.
func refused(t *testing.T, env *testenv.Env, words string, args ...string) string {
	t.Helper()
	var says string
	rig.Until(t, func() string { // a policy takes effect some time after it was applied
		out, err := env.Kubectl(t.Context(), append(args, "--dry-run=server")...)
		if err == nil || !strings.Contains(err.Error(), words) {
			return fmt.Sprintf("%v: %v, not %q: %s", args, err, words, out)
		}
		says = err.Error()
		return ""
	})
	out, err := env.Kubectl(t.Context(), args...)
	if err == nil || !strings.Contains(err.Error(), words) {
		t.Errorf("%v: %v, not %q: %s", args, err, words, out)
	}
	return says
}

// Where others have a CRD of ippools, whose group comes before this project's, the refusal's
// advice and the commands of docs/install.md are about this project's all the same.
func TestBesideCalico(t *testing.T) {
	env := servers.Get(t)
	apply(t, env, calicoCRD)
	kubectl(t, env, "wait", "--for=condition=Established", "crd", "--all")
	apply(t, env, "apiVersion: crd.projectcalico.org/v1\nkind: IPPool\nmetadata: {name: pool1}\n")
	d := &desk{env: env, dir: newDesk(t)}
	kubectl(t, env, "create", "namespace", "ml")
	kubectl(t, env, "apply", "-k", overlays[1].record().dir(t))
	kubectl(t, env, "apply", "-k", filepath.Join(rig.Root(t), "manifests", "base", "protection"))
	kubectl(t, env, "wait", "--for=condition=Established", "crd", "--all")
	apply(t, env, strings.ReplaceAll(poolManifest, "NAMESPACE", "ml"))
	const ours = "ippools.nv-ipam.nvidia.com"
	if theirs := kubectl(t, env, "get", "ippools", "-A", "-o", "jsonpath={.items[*].apiVersion}"); theirs != "crd.projectcalico.org/v1" {
		t.Fatalf("kubectl takes ippools of %q: the test proves nothing", theirs)
	}
	annotations := func(resource string) string {
		return kubectl(t, env, "get", resource, "pool1", "-n", "ml", "-o", "jsonpath={.metadata.annotations}")
	}
	before := annotations("ippools")

	ran := 0
	for _, command := range commandsOf(t, string(readFile(t, filepath.Join(rig.Root(t), "docs/install.md")))) {
		if strings.HasPrefix(command, "kubectl annotate ") || strings.HasPrefix(command, "kubectl get ippools") || strings.HasPrefix(command, "kubectl get ipallocations") {
			ran++
			d.exec(t, command)
		}
	}
	if exported := string(readFile(t, filepath.Join(d.dir, "record.yaml"))); ran != 4 || strings.Contains(exported, "calico") || !strings.Contains(exported, "kind: IPPool\n") {
		t.Errorf("%d commands were run, exported is\n%s", ran, exported)
	}
	if !strings.Contains(annotations(ours), "record-lost") {
		t.Errorf("the pool has the annotations %s", annotations(ours))
	}
	kubectl(t, env, "patch", ours, "pool1", "-n", "ml", "--subresource=status", "--type=merge", "-p", `{"status":{"allocations":[],"used":3}}`)
	says := refused(t, env, "If you mean it", "delete", "-n", "ml", ours, "pool1")
	_, command, _ := strings.Cut(says, "If you mean it: ")
	d.exec(t, strings.TrimSpace(command))
	kubectl(t, env, "delete", "-n", "ml", ours, "pool1")
	if after := annotations("ippools"); after != before {
		t.Errorf("Calico's pool has the annotations %s, and had %s", after, before)
	}
}

const calicoCRD = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: ippools.crd.projectcalico.org
spec:
  group: crd.projectcalico.org
  scope: Cluster
  names: {kind: IPPool, listKind: IPPoolList, plural: ippools, singular: ippool}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

// No command of a document, an example or a message leaves open whose ippools are meant.
func TestPoolsAreNamedWithTheirGroup(t *testing.T) {
	command := regexp.MustCompile(`kubectl (?:-n [A-Z]+ )?(?:get|edit|annotate|delete|patch|label|describe) [^\n` + "`" + `]*`)
	resource := regexp.MustCompile(`[ ,](?:ippool|cidrpool)s?\b(\.nv-ipam\.nvidia\.com)?`)
	found := 0
	for _, dir := range []string{"README.md", "docs", "manifests", "cmd"} {
		err := filepath.WalkDir(filepath.Join(rig.Root(t), dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || filepath.Ext(path) == ".png" {
				return err
			}
			for _, c := range command.FindAllString(string(readFile(t, path)), -1) {
				for _, m := range resource.FindAllStringSubmatch(c, -1) {
					if found++; m[1] == "" {
						t.Errorf("%s: %s: whose?", path, c)
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if found < 10 {
		t.Errorf("only %d were found", found)
	}
}
