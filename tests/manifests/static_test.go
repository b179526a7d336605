// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// podSpec is the pod that a workload makes, nil of other objects.
func podSpec(t *testing.T, u *unstructured.Unstructured) *corev1.PodSpec {
	t.Helper()
	raw, found, err := unstructured.NestedMap(u.Object, "spec", "template", "spec")
	if err != nil || !found {
		return nil
	}
	spec := &corev1.PodSpec{}
	// Strict: what a typed object has no place for is a typing error of ours.
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(raw, spec, true); err != nil {
		t.Fatalf("%s/%s: %v", u.GetKind(), u.GetName(), err)
	}
	return spec
}

func containers(t *testing.T, o overlay) (out []corev1.Container) {
	t.Helper()
	for _, u := range render(t, o.dir(t)) {
		if spec := podSpec(t, u); spec != nil {
			out = append(out, spec.Containers...)
		}
	}
	return out
}

// expand returns a container's arguments as the kubelet would.
func expand(c corev1.Container, o overlay) []string {
	values := map[string]string{"metadata.namespace": o.namespace, "spec.nodeName": "node-a"}
	args := slices.Clone(c.Args)
	for i := range args {
		for _, e := range c.Env {
			if e.ValueFrom != nil && e.ValueFrom.FieldRef != nil {
				args[i] = strings.ReplaceAll(args[i], "$("+e.Name+")", values[e.ValueFrom.FieldRef.FieldPath])
			}
		}
	}
	return args
}

// What runs once on each node, in a DaemonSet.
func TestOnceOnEachNode(t *testing.T) {
	image := makefileValue(t, "IMAGE")
	for overlayName, name := range map[string]string{
		"uninstall": "nv-ipam-node", "migrate-dry-run": "crd-ipam-migration", "migrate-only": "crd-ipam-migration",
		"uninstall-openshift": "nv-ipam-node", "migrate-dry-run-openshift": "crd-ipam-migration", "migrate-only-openshift": "crd-ipam-migration",
	} {
		o := overlay{name: overlayName, namespace: "kube-system"}
		if strings.HasSuffix(overlayName, "-openshift") {
			o.namespace = "crd-ipam"
		}
		found := 0
		for _, u := range render(t, o.dir(t)) {
			if spec := podSpec(t, u); spec != nil {
				found++
				fits(t, o, spec, spec.Containers[0], image)
				selector, _, _ := unstructured.NestedString(u.Object, "spec", "selector", "matchLabels", "name")
				label, _, _ := unstructured.NestedString(u.Object, "spec", "template", "metadata", "labels", "name")
				if u.GetName() != name || selector != name || label != name {
					t.Errorf("%s: %s selects %s and makes %s", overlayName, u.GetName(), selector, label)
				}
			}
		}
		if found != 1 {
			t.Errorf("%s has %d workloads", overlayName, found)
		}
	}
}

// What a server does not check: that images, flags and mounts fit what there is.
func TestWorkloadsFitTheImage(t *testing.T) {
	image := makefileValue(t, "IMAGE")
	for _, o := range overlays {
		t.Run(o.name, func(t *testing.T) {
			kinds := map[string]int{}
			for _, u := range render(t, o.dir(t)) {
				if spec := podSpec(t, u); spec != nil {
					kinds[u.GetKind()]++
					for _, c := range spec.Containers {
						fits(t, o, spec, c, image)
					}
				}
			}
			want := 1
			if o.name == "network-operator" { // which has its own
				want = 0
			}
			if kinds["Deployment"] != want || kinds["DaemonSet"] != want || len(kinds) != 2*want {
				t.Errorf("workloads: %v", kinds)
			}
		})
	}
}

func fits(t *testing.T, o overlay, spec *corev1.PodSpec, c corev1.Container, image string) {
	if c.Image != image {
		t.Errorf("%s: image %s, make image makes %s", c.Name, c.Image, image)
	}
	command := strings.TrimPrefix(c.Command[0], "/")
	path := rig.Binary(t, command)
	args := expand(c, o)
	if left := slices.IndexFunc(args, func(s string) bool { return strings.Contains(s, "$(") }); left >= 0 {
		t.Errorf("%s: %s is not in its environment", c.Name, args[left])
	}
	// The flags are parsed before the version is printed.
	if out, err := exec.Command(path, append(args, "--version")...).CombinedOutput(); err != nil {
		t.Errorf("%s %q: %v\n%s", command, args, err, out)
	}

	var paths []string
	mounted := map[string]bool{}
	for _, m := range c.VolumeMounts {
		mounted[m.Name] = true
		paths = append(paths, m.MountPath)
	}
	for _, v := range spec.Volumes {
		if v.EmptyDir == nil && (v.HostPath == nil || *v.HostPath.Type != corev1.HostPathDirectoryOrCreate && v.HostPath.Path != "/") {
			t.Errorf("%s: volume %s is no directory of the host", c.Name, v.Name)
		}
		if !mounted[v.Name] {
			t.Errorf("%s: volume %s is not mounted", c.Name, v.Name)
		}
	}
	for _, arg := range args {
		_, value, _ := strings.Cut(arg, "=")
		if value = strings.TrimPrefix(value, "unix:"); strings.HasPrefix(value, "/") && !slices.ContainsFunc(paths, func(p string) bool {
			return value == p || strings.HasPrefix(value, p+"/")
		}) {
			t.Errorf("%s: %s is in none of the mounts %v", c.Name, arg, paths)
		}
	}
	hardened(t, c)
}

// capabilities are those that a container has, by its name: the installer asks the
// plugin for its STATUS in the host's root directory.
var capabilities = map[string][]corev1.Capability{installer: {"SYS_CHROOT"}}

func hardened(t *testing.T, c corev1.Container) {
	s := c.SecurityContext
	if s == nil || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem ||
		s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || s.Privileged != nil ||
		s.Capabilities == nil || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || !slices.Equal(s.Capabilities.Add, capabilities[c.Name]) {
		t.Errorf("%s: security context %+v", c.Name, s)
	}
	if c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() || c.Resources.Limits.Memory().IsZero() {
		t.Errorf("%s: resources %+v", c.Name, c.Resources)
	}
	for _, e := range c.Env {
		if e.Name != "GOMEMLIMIT" {
			continue
		}
		soft, err := resource.ParseQuantity(strings.TrimSuffix(e.Value, "B"))
		// Go leaves out what the kernel holds for the container.
		if hard := c.Resources.Limits.Memory().Value(); err != nil || soft.Value() > hard*9/10 {
			t.Errorf("%s: GOMEMLIMIT is %s (%v), more than nine tenths of the limit %d", c.Name, e.Value, err, hard)
		}
	}
}

// Another namespace is one line, in a kustomization on top of an overlay.
func TestAnotherNamespace(t *testing.T) {
	for _, o := range overlays {
		dir := t.TempDir()
		rel, err := filepath.Rel(dir, o.dir(t))
		if err != nil {
			t.Fatal(err)
		}
		if o.name == "network-operator" {
			continue // has its own line; see there
		}
		if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte("namespace: elsewhere\nresources:\n- "+rel+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		out := kubectl(t, &testenv.Env{}, "kustomize", dir)
		if strings.Contains(out, "namespace: "+o.namespace) || strings.Contains(out, "namespace: default") || strings.Contains(out, "kube-system") {
			t.Errorf("%s: something stays behind:\n%s", o.name, out)
		}
	}
}

// What is applied as it is, with an image that nobody has named, runs nothing of
// anybody's: the name's domain is reserved, and no registry can have it.
func TestImageOfNobody(t *testing.T) {
	for _, o := range overlays {
		for _, c := range containers(t, o) {
			if host, _, _ := strings.Cut(c.Image, "/"); !strings.HasSuffix(host, ".invalid") {
				t.Errorf("%s: %s has the image %s", o.name, c.Name, c.Image)
			}
		}
	}
}

// docs/install.md tells how the policy for tokens learns what an API server calls
// itself.
func TestAnotherAudience(t *testing.T) {
	doc := string(readFile(t, filepath.Join(rig.Root(t), "docs", "install.md")))
	before, after, found := strings.Cut(doc, "    name: crd-ipam-plugin-token\n")
	if !found {
		t.Fatal("docs/install.md has no patch of the policy")
	}
	start := strings.LastIndex(before, "```yaml\n") + len("```yaml\n")
	end, _, _ := strings.Cut(after, "```")
	patch := before[start:] + "    name: crd-ipam-plugin-token\n" + end
	dir := t.TempDir()
	rel, err := filepath.Rel(dir, filepath.Join(rig.Root(t), "manifests", "overlays", "serviceaccount"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte("resources:\n- "+rel+"\n"+patch), 0o600); err != nil {
		t.Fatal(err)
	}
	out := kubectl(t, &testenv.Env{}, "kustomize", dir)
	if !strings.Contains(out, "expression: '[''https://issuer.example.com'']'\n    name: audiences") {
		t.Errorf("the patch has no effect:\n%s", out)
	}
}

// make manifests pins the image by its digest, in every container of every overlay.
func TestPinnedImage(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0123456789abcdef", 4)
	built := "sha256:" + strings.Repeat("fedcba9876543210", 4)
	for _, tc := range []struct {
		image, overlay, built string
		want                  string // image; a complaint where there is none
	}{
		{"registry.example.com/crd-ipam@" + digest, "default", "", "registry.example.com/crd-ipam@" + digest},
		{"registry.example.com:5000/a/b:v1@" + digest, "k8s-1.30", built, "registry.example.com:5000/a/b@" + digest},
		{"registry.example.com:5000/a/b", "serviceaccount", built, "registry.example.com:5000/a/b@" + built},
		{"registry.example.com/crd-ipam:v1", "default", built, "registry.example.com/crd-ipam@" + built},
		{"registry.example.com/crd-ipam:v1", "openshift", built, "registry.example.com/crd-ipam@" + built},
		{"registry.example.com/crd-ipam:v1", "default", "", "no digest"},
		{"registry.example.com/crd-ipam@sha256:12", "default", built, "is not a digest"},
		{"registry.example.com/crd-ipam:v1", "none", built, "there is no manifests/overlays/none"},
		{makefileValue(t, "IMAGE"), "default", built, "in a registry of yours"},
		{"", "default", built, "in a registry of yours"},
	} {
		t.Run(tc.image+" "+tc.overlay, func(t *testing.T) {
			out := t.TempDir()
			if tc.built != "" {
				if err := os.WriteFile(filepath.Join(out, "image.digest"), []byte(tc.built+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.CommandContext(t.Context(), filepath.Join(rig.Root(t), "hack", "manifests.sh"))
			cmd.Env = append(os.Environ(), "IMAGE="+tc.image, "OVERLAY="+tc.overlay, "OUT="+out)
			says, err := cmd.CombinedOutput()
			if !strings.Contains(tc.want, "@") {
				if err == nil || !strings.Contains(string(says), tc.want) {
					t.Errorf("%v: %s", err, says)
				}
				return
			}
			if err != nil {
				t.Fatalf("%v: %s", err, says)
			}
			found := 0
			for _, u := range append(render(t, filepath.Join(out, "manifests")), render(t, filepath.Join(out, "manifests", "uninstall"))...) {
				if u.GetKind() == "CustomResourceDefinition" {
					t.Errorf("%s is not apart in bin/manifests/crds", u.GetName())
				}
				if spec := podSpec(t, u); spec != nil {
					for _, c := range spec.Containers {
						if found++; c.Image != tc.want {
							t.Errorf("%s has the image %s, want %s", c.Name, c.Image, tc.want)
						}
					}
				}
			}
			if found != 3 {
				t.Errorf("%d containers", found)
			}
		})
	}
}

// makeManifests runs hack/manifests.sh with an image and variables, as make manifests does, and
// returns where it wrote, or that it has refused with the complaint; "" wants none.
func makeManifests(t *testing.T, complaint string, variables ...string) (out string, refused bool) {
	t.Helper()
	out = t.TempDir()
	cmd := exec.CommandContext(t.Context(), filepath.Join(rig.Root(t), "hack", "manifests.sh"))
	cmd.Env = append(os.Environ(), append(variables, "IMAGE=registry.example.com/crd-ipam@sha256:"+strings.Repeat("0123456789abcdef", 4), "OUT="+out)...)
	says, err := cmd.CombinedOutput()
	if refused = err != nil; refused != (complaint != "") || !strings.Contains(string(says), complaint) {
		t.Fatalf("%v: %s", err, says)
	}
	return out, refused
}

// The installer of every manifest that make manifests writes puts the plugin where the nodes
// have their plugins: where the overlay says, or where CNI_BIN_DIR does.
func TestCNIBinDirOfManifests(t *testing.T) {
	for _, tc := range []struct{ overlay, dir, want, complaint string }{
		{"default", "", "/opt/cni/bin", ""},
		{"default", "/var/lib/rancher/k3s/data/cni", "/var/lib/rancher/k3s/data/cni", ""},
		{"serviceaccount", "/var/snap/microk8s/current/opt/cni/bin", "/var/snap/microk8s/current/opt/cni/bin", ""},
		{"openshift", "", "/var/lib/cni/bin", ""},
		{"openshift", "/opt/multus/bin", "/opt/multus/bin", ""},
		{"default", "opt/cni/bin", "", "has to be an absolute path"},
		{"default", "/opt/../etc", "", "has to be an absolute path"},
		{"default", "/opt/cni bin", "", "has to be an absolute path"},
		{"default", "/opt}, {op: remove", "", "has to be an absolute path"},
	} {
		t.Run(tc.overlay+" "+tc.dir, func(t *testing.T) {
			out, refused := makeManifests(t, tc.complaint, "OVERLAY="+tc.overlay, "CNI_BIN_DIR="+tc.dir)
			if refused {
				return
			}
			for _, part := range []string{"", "uninstall", "migrate-dry-run", "migrate-only"} {
				found := false
				for _, u := range render(t, filepath.Join(out, "manifests", part)) {
					if u.GetKind() != "DaemonSet" {
						continue
					}
					found = true
					data, err := json.Marshal(u.Object)
					if err != nil {
						t.Fatal(err)
					}
					for _, want := range []string{"--cni-bin-dir=" + tc.want, `"mountPath":"` + tc.want + `"`, `"hostPath":{"path":"` + tc.want + `"`} {
						if !strings.Contains(string(data), want) {
							t.Errorf("%s/%s in %q has no %s", u.GetKind(), u.GetName(), part, want)
						}
					}
					if tc.want != "/opt/cni/bin" && strings.Contains(string(data), "/opt/cni/bin\"") && !strings.HasSuffix(tc.want, "/opt/cni/bin") {
						t.Errorf("%s/%s in %q still has /opt/cni/bin", u.GetKind(), u.GetName(), part)
					}
				}
				if !found {
					t.Errorf("%q has no DaemonSet", part)
				}
			}
		})
	}
}

// make manifests puts everything into one namespace, which is among the CRDs unless the
// cluster has it: the overlay's own, or the one that was asked for.
func TestNamespaceOfManifests(t *testing.T) {
	const cluster, theirs = "kube-system", "nvidia-network-operator"
	for _, tc := range []struct{ overlay, asked, want, complaint string }{
		{"default", "", cluster, ""},
		{"default", cluster, cluster, ""},
		{"serviceaccount", "ml", "ml", ""},
		{"openshift", "", "crd-ipam", ""},
		{"openshift", "ml", "ml", ""},
		{"network-operator", "ml", theirs, ""},
		{"openshift", cluster, "", "security context constraints do not count there"},
		{"default", "Ml", "", "is no name of a namespace"},
		{"default", "-ml", "", "is no name of a namespace"},
	} {
		t.Run(tc.overlay+" "+tc.asked, func(t *testing.T) {
			out, refused := makeManifests(t, tc.complaint, "OVERLAY="+tc.overlay, "NAMESPACE="+tc.asked)
			if refused {
				return
			}
			parts := []string{"", "uninstall", "migrate-dry-run", "migrate-only"}
			if tc.overlay == "network-operator" { // which has no installer of ours
				parts = parts[:1]
			}
			for _, part := range parts {
				for _, u := range render(t, filepath.Join(out, "manifests", part)) {
					if got := u.GetNamespace(); got != "" && got != tc.want {
						t.Errorf("%s/%s in %q is in %s", u.GetKind(), u.GetName(), part, got)
					}
				}
			}
			var made []string
			for _, u := range render(t, filepath.Join(out, "manifests", "crds")) {
				if u.GetKind() == "Namespace" {
					made = append(made, u.GetName())
					if u.GetLabels()["pod-security.kubernetes.io/enforce"] != "privileged" || u.GetLabels()["nv-ipam.nvidia.com/protected"] != "" {
						t.Errorf("labels %v", u.GetLabels())
					}
				}
			}
			if want := []string{tc.want}; tc.want != cluster && tc.want != theirs && !slices.Equal(made, want) || (tc.want == cluster || tc.want == theirs) && made != nil {
				t.Errorf("the namespaces %q are made", made)
			}
		})
	}
}

// On OpenShift the plugin is where CRI-O and multus look for it, on the host as in the
// installer, and pods ask for nothing that their security context constraints refuse.
func TestOpenShift(t *testing.T) {
	const theirs = "/var/lib/cni/bin"
	for _, name := range []string{"openshift", "uninstall-openshift", "migrate-dry-run-openshift", "migrate-only-openshift"} {
		for _, u := range render(t, overlay{name: name}.dir(t)) {
			spec := podSpec(t, u)
			if spec == nil {
				continue
			}
			constraints, _, _ := unstructured.NestedString(u.Object, "spec", "template", "metadata", "annotations", "openshift.io/required-scc")
			c := spec.Containers[0]
			if u.GetKind() == "Deployment" {
				// A user of the namespace's range, whatever that is.
				if s := spec.SecurityContext; constraints != "restricted-v2" || s.RunAsUser != nil || s.RunAsGroup != nil || s.RunAsNonRoot == nil || !*s.RunAsNonRoot {
					t.Errorf("%s: %s is admitted by %q, as %+v", name, u.GetName(), constraints, s)
				}
				continue
			}
			if constraints != "privileged" {
				t.Errorf("%s: %s is admitted by %q", name, u.GetName(), constraints)
			}
			if !slices.Contains(c.Args, "--cni-bin-dir="+theirs) || !slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == "cnibin" && m.MountPath == theirs }) ||
				!slices.ContainsFunc(spec.Volumes, func(v corev1.Volume) bool { return v.Name == "cnibin" && v.HostPath.Path == theirs }) {
				t.Errorf("%s: %s installs elsewhere: %q, %+v, %+v", name, u.GetName(), c.Args, c.VolumeMounts, spec.Volumes)
			}
		}
	}
}

// network-operator deletes what has its label and is not its own.
func TestNetworkOperatorLeavesOursAlone(t *testing.T) {
	theirs := []string{
		"CustomResourceDefinition/ippools.nv-ipam.nvidia.com", "CustomResourceDefinition/cidrpools.nv-ipam.nvidia.com",
		"ServiceAccount/nv-ipam-controller", "ServiceAccount/nv-ipam-node",
		"ClusterRole/nv-ipam-controller", "ClusterRole/nv-ipam-node",
		"ClusterRoleBinding/nv-ipam-controller", "ClusterRoleBinding/nv-ipam-node",
		"Deployment/nv-ipam-controller", "DaemonSet/nv-ipam-node",
	}
	for _, u := range render(t, overlays[len(overlays)-1].dir(t)) {
		if _, found := u.GetLabels()["nvidia.network-operator.state"]; found {
			t.Errorf("%s/%s has the label", u.GetKind(), u.GetName())
		}
		if slices.Contains(theirs, u.GetKind()+"/"+u.GetName()) {
			t.Errorf("%s/%s is network-operator's", u.GetKind(), u.GetName())
		}
	}
}

// What network-operator 26.7 starts our image with.
func TestNetworkOperatorsArguments(t *testing.T) {
	for command, args := range map[string][]string{
		"ipam-controller": {"--leader-elect=true", "--leader-elect-namespace=n", "--ippools-namespace=n", "--webhook=true"},
		"ipam-node": {
			"--node-name=node-a", "--v=1", "--logging-format=json", "--bind-address=unix:///var/lib/cni/nv-ipam/daemon.sock",
			"--store-file=/var/lib/cni/nv-ipam/store", "--cni-daemon-socket=unix:///var/lib/cni/nv-ipam/daemon.sock",
			"--cni-daemon-call-timeout=5", "--cni-bin-dir=/opt/cni/bin", "--cni-conf-dir=/etc/cni/net.d/nv-ipam.d",
			"--cni-log-file=/var/log/nv-ipam-cni.log", "--cni-log-level=info", "--ippools-namespace=n",
		},
	} {
		path := rig.Binary(t, command)
		if out, err := exec.Command(path, append(args, "--version")...).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", command, err, out)
		}
	}
}
