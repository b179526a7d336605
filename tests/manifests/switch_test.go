// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// with returns an overlay with components, as docs/install.md has it.
func with(t *testing.T, name string, components ...string) string {
	t.Helper()
	dir := t.TempDir()
	rel, err := filepath.Rel(dir, filepath.Join(rig.Root(t), "manifests"))
	if err != nil {
		t.Fatal(err)
	}
	text := "resources: [" + rel + "/overlays/" + name + "]\ncomponents:\n"
	for _, c := range components {
		text += "- " + rel + "/components/" + c + "\n"
	}
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// objectsOf are the objects that a kustomization makes, as kubectl takes them.
func objectsOf(t *testing.T, dir string) (out []string) {
	t.Helper()
	for _, u := range render(t, dir) {
		kind, group, _ := strings.Cut(u.GroupVersionKind().GroupKind().String(), ".")
		out = append(out, strings.TrimSuffix(kind+"."+group, ".")+"/"+u.GetName())
	}
	slices.Sort(out)
	return out
}

// leftBy are the commands of docs/install.md that delete what a part leaves, by how their
// comment begins.
func leftBy(t *testing.T) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	part := ""
	for _, line := range strings.Split(string(readFile(t, filepath.Join(rig.Root(t), "docs/install.md"))), "\n") {
		if m := regexp.MustCompile(`^# (overlay|component) ([a-z-]+)`).FindStringSubmatch(line); m != nil {
			part = m[2]
		}
		if args, ok := strings.CutPrefix(line, "kubectl delete --ignore-not-found "); ok {
			out[part] = append(out[part], "delete --ignore-not-found "+args)
		}
	}
	return out
}

// What docs/install.md deletes of a part is all that the part adds, and no more.
func TestWhatAPartLeaves(t *testing.T) {
	left := leftBy(t)
	for name, tc := range map[string]struct{ part, from, to string }{
		"serviceaccount":                      {"serviceaccount", with(t, "serviceaccount"), with(t, "default", "priority-and-fairness")},
		"priority-and-fairness":               {"priority-and-fairness", with(t, "default", "priority-and-fairness"), with(t, "default")},
		"persistent-addresses":                {"persistent-addresses", with(t, "default", "persistent-addresses"), with(t, "default")},
		"persistent-addresses-serviceaccount": {"persistent-addresses", with(t, "serviceaccount", "persistent-addresses-serviceaccount"), with(t, "serviceaccount")},
		"validation":                          {"validation", with(t, "default"), with(t, "k8s-1.30")},
		"monitoring":                          {"monitoring", with(t, "default", "monitoring"), with(t, "default")},
	} {
		t.Run(name, func(t *testing.T) {
			stays := objectsOf(t, tc.to)
			var want, deleted []string
			for _, o := range objectsOf(t, tc.from) {
				if !slices.Contains(stays, o) {
					kind, object, _ := strings.Cut(strings.ToLower(o), "/")
					kind, _, _ = strings.Cut(kind, ".")
					want = append(want, kind+"/"+object)
				}
			}
			for _, command := range left[tc.part] {
				args := strings.Fields(strings.NewReplacer("delete --ignore-not-found ", "", "-n kube-system ", "").Replace(command))
				for _, object := range args {
					if strings.Contains(object, "/") {
						deleted = append(deleted, object)
						continue
					}
					for _, kind := range strings.Split(args[0], ",") {
						if object != args[0] {
							deleted = append(deleted, kind+"/"+object)
						}
					}
				}
			}
			slices.Sort(want)
			slices.Sort(deleted)
			if !slices.Equal(deleted, want) {
				t.Errorf("docs/install.md deletes %v, what is left is %v", deleted, want)
			}
		})
	}
}

// From one overlay to another, by another manager as well, and after the commands of
// docs/install.md the cluster has what a fresh apply of the other one makes, and no more.
func TestSwitch(t *testing.T) {
	t.Parallel() // it waits for kubectl most of the time
	env := servers.Get(t)
	if env.Minor < 31 {
		t.Skipf("overlay serviceaccount is for 1.31 and newer, this is 1.%d", env.Minor)
	}
	left := leftBy(t)
	for _, tc := range []struct {
		name      string
		from, to  string
		gone      []string // parts
		conflicts bool
	}{
		{"serviceaccount to default", with(t, "serviceaccount", "persistent-addresses-serviceaccount"), with(t, "default"),
			[]string{"serviceaccount", "priority-and-fairness", "persistent-addresses"}, true},
		{"default to serviceaccount", with(t, "default", "persistent-addresses"), with(t, "serviceaccount"), []string{"persistent-addresses"}, true},
		{"serviceaccount to default with all", with(t, "serviceaccount", "persistent-addresses-serviceaccount"), with(t, "default", "persistent-addresses", "priority-and-fairness"),
			[]string{"serviceaccount"}, true},
		{"default to k8s-1.30", with(t, "default", "priority-and-fairness"), with(t, "k8s-1.30"), []string{"validation", "priority-and-fairness"}, false},
		{"serviceaccount to k8s-1.30", with(t, "serviceaccount"), with(t, "k8s-1.30"), []string{"serviceaccount", "validation", "priority-and-fairness"}, true},
		{"k8s-1.30 to default", with(t, "k8s-1.30"), with(t, "default"), nil, false},
		{"default to uninstall", with(t, "default"), with(t, "uninstall"), nil, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			kubectl(t, env, "apply", "-k", tc.from)
			other := []string{"apply", "-k", tc.to, "--server-side", "--field-manager=argocd-controller"}
			if _, err := env.Kubectl(t.Context(), other...); (err != nil && strings.Contains(err.Error(), "conflict")) != tc.conflicts {
				t.Errorf("switched by another manager: %v, want conflicts: %v", err, tc.conflicts)
			}
			kubectl(t, env, append(other, "--force-conflicts")...)
			if diff, err := env.Kubectl(t.Context(), "diff", "-k", tc.to); err != nil {
				t.Errorf("kubectl diff: %v\n%s", err, diff)
			}
			for _, part := range tc.gone {
				if len(left[part]) == 0 {
					t.Fatalf("docs/install.md does not say what %s leaves", part)
				}
				for _, command := range left[part] {
					kubectl(t, env, strings.Fields(command)...)
				}
			}
			after := objectsOf(t, tc.to)
			if there := existing(t, env, after); !slices.Equal(there, after) {
				t.Errorf("there are %v, want %v", there, after)
			}
			if strings.HasSuffix(tc.name, "uninstall") { // the rest is deleted with the overlay
				return
			}
			gone := slices.DeleteFunc(objectsOf(t, tc.from), func(o string) bool { return slices.Contains(after, o) })
			if there := existing(t, env, gone); len(there) > 0 {
				t.Errorf("left by the overlay before: %v", there)
			}
			kubectl(t, env, "delete", "-k", tc.to)
		})
	}
}

// existing are those of the objects that are there.
func existing(t *testing.T, env *testenv.Env, objects []string) (out []string) {
	t.Helper()
	if len(objects) == 0 {
		return nil
	}
	args := append([]string{"get", "-n", "kube-system", "--ignore-not-found", "-o", "jsonpath={range .items[*]}{.kind} {.apiVersion} {.metadata.name}{\"\\n\"}{end}"}, objects...)
	for _, line := range strings.Split(strings.TrimSpace(kubectl(t, env, args...)), "\n") {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		kind := f[0]
		if group, _, grouped := strings.Cut(f[1], "/"); grouped {
			kind += "." + group
		}
		out = append(out, kind+"/"+f[2])
	}
	slices.Sort(out)
	return out
}
