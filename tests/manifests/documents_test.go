// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// notRun are the commands of the documents that are not run here, by how they begin,
// and why.
var notRun = map[string]string{
	"make cluster":                         "takes a machine; make e2e brings up the same cluster",
	"make demo":                            "a target of CI itself",
	"make e2e":                             "a target of CI itself",
	"make test":                            "a target of CI itself",
	"crane push":                           "needs a registry; TestQuickStart has one",
	"bin/cluster":                          "needs that cluster; make e2e uses the same code",
	"export ":                              "is about that cluster",
	"ipam-node":                            "runs on a node; tests/install runs it",
	"kubectl ipam migrate":                 "needs whereabouts; tests/whereabouts runs it",
	"kubectl apply -f pools.yaml":          "needs whereabouts; tests/whereabouts runs it",
	"sudo env":                             "a target of CI itself",
	"kubectl apply -f first.yaml":          "needs multus and kubelets; TestQuickStart runs it",
	"kubectl wait --for=condition=Ready":   "needs that pod",
	"kubectl delete --ignore-not-found":    "takes away what the next commands delete; TestSwitch runs it",
	"kubectl annotate -A ippools":          "the commands before it have removed the CRDs; tests/loss sets this annotation",
	"kubectl apply -f tests/demo/testdata": "needs network-operator and kubelets; TestWalkthrough applies these files",
}

// rollouts need a kubelet: TestTransitions waits for them.
var rollouts = regexp.MustCompile(`^kubectl -n [^ ]+ rollout status `)

// Every command in the documents for operators, word for word, in their order, against
// an API server of its own. What stands for something of the reader's is replaced.
func TestDocuments(t *testing.T) {
	for _, document := range []string{"README.md", "docs/install.md", "docs/migration.md", "docs/cluster.md", "docs/metrics.md"} {
		t.Run(filepath.Base(document), func(t *testing.T) {
			commands := commandsOf(t, string(readFile(t, filepath.Join(rig.Root(t), document))))
			if before[document] == nil && len(commands) == 0 {
				return
			}
			if before[document] == nil || len(commands) == 0 {
				t.Fatalf("%d commands were found", len(commands))
			}
			env := servers.Get(t)
			if env.Minor < 31 {
				t.Skipf("the documents' first choice is for 1.31 and newer, this is 1.%d", env.Minor)
			}
			before[document](t, env)
			d := &desk{env: env, dir: newDesk(t)}
			for _, command := range commands {
				d.run(t, command)
			}
		})
	}
}

// before makes what the reader of a document has already. Documents without an entry
// have no commands.
var before = map[string]func(*testing.T, *testenv.Env){
	"README.md":       func(*testing.T, *testenv.Env) {},
	"docs/cluster.md": func(*testing.T, *testenv.Env) {},
	"docs/install.md": func(t *testing.T, env *testenv.Env) {
		kubectl(t, env, "create", "namespace", "ml")
		kubectl(t, env, "create", "namespace", "nvidia-network-operator")
	},
	"docs/migration.md": func(t *testing.T, env *testenv.Env) {
		kubectl(t, env, "create", "namespace", "ml")
		for _, plural := range []string{"ippools", "cidrpools"} {
			kubectl(t, env, "apply", "-f", filepath.Join(rig.Root(t), "manifests/base/crds/nv-ipam.nvidia.com_"+plural+".yaml"))
		}
		kubectl(t, env, "wait", "--for=condition=Established", "crd", "--all")
	},
}

// desk is where somebody types what a document says: a copy of the tree in which
// images are not really built.
type desk struct {
	env *testenv.Env
	dir string
}

func newDesk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"Makefile", "manifests", "tests", "docs"} {
		if err := os.Symlink(filepath.Join(rig.Root(t), name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"hack/manifests.sh": string(readFile(t, filepath.Join(rig.Root(t), "hack/manifests.sh"))),
		"hack/image.sh":     "#!/bin/sh\nmkdir -p bin/x && echo sha256:" + strings.Repeat("0123456789abcdef", 4) + " > bin/image.digest && tar -cf bin/image.tar -C bin x\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// run runs a command, or says why not.
func (d *desk) run(t *testing.T, command string) {
	for prefix, reason := range notRun {
		if strings.HasPrefix(command, prefix) {
			t.Logf("not run: %s: %s", command, reason)
			return
		}
	}
	if strings.Contains(command, " logs -l ") {
		t.Logf("not run: %s: nothing writes logs without kubelets", command)
		return
	}
	if rollouts.MatchString(command) {
		t.Logf("not run: %s: nothing rolls out without kubelets; TestTransitions waits for it", command)
		return
	}
	if prepare, ok := map[string]func(*testing.T){"kubectl get " + record: d.fillRecord, "kubectl create -f record.yaml": d.loseRecord}[strings.Split(command, " -A")[0]]; ok {
		prepare(t)
	}
	for placeholder, value := range map[string]string{
		"=NAMESPACE": "=ml", "-n NAMESPACE": "-n ml", "sha256:DIGEST": "sha256:" + strings.Repeat("89abcdef01234567", 4),
		"crane push layout registry.example.com/crd-ipam:v1": "true",
	} {
		command = strings.ReplaceAll(command, placeholder, value)
	}
	d.exec(t, command)
	if strings.HasPrefix(command, "kubectl create -f record.yaml") {
		d.recordIsBack(t)
	}
}

// exec runs a command as it is.
func (d *desk) exec(t *testing.T, command string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", command)
	cmd.Dir = d.dir
	cmd.Env = append(os.Environ(), "KUBECONFIG="+d.env.Kubeconfig, "HOME="+d.env.Dir, "PATH="+os.Getenv("KUBEBUILDER_ASSETS")+":"+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", command, err, out)
	}
}

// fillRecord makes something that can be exported.
func (d *desk) fillRecord(t *testing.T) {
	kubectl(t, d.env, "apply", "-k", filepath.Join(rig.Root(t), "manifests/overlays/crds"))
	kubectl(t, d.env, "wait", "--for=condition=Established", "crd", "--all")
	apply(t, d.env, strings.ReplaceAll(poolManifest+"---"+leakManifest, "NAMESPACE", "ml"))
}

const (
	ofRecord = `jsonpath={range .items[*]}{.kind}/{.metadata.namespace}/{.metadata.name} {.spec}{"\n"}{end}`
	record   = "ipallocations.nv-ipam.nvidia.com,ipreservations.nv-ipam.nvidia.com,ippools.nv-ipam.nvidia.com,cidrpools.nv-ipam.nvidia.com"
)

// loseRecord deletes all of it.
func (d *desk) loseRecord(t *testing.T) {
	before := kubectl(t, d.env, "get", record, "-A", "-o", ofRecord)
	if err := os.WriteFile(filepath.Join(d.dir, "before"), []byte(before), 0o600); err != nil {
		t.Fatal(err)
	}
	kubectl(t, d.env, "delete", record, "-n", "ml", "--all")
}

func (d *desk) recordIsBack(t *testing.T) {
	before, after := string(readFile(t, filepath.Join(d.dir, "before"))), kubectl(t, d.env, "get", record, "-A", "-o", ofRecord)
	if after != before || strings.Count(after, "\n") != 3 {
		t.Errorf("imported\n%s\nlost\n%s", after, before)
	}
}

// commandsOf are the commands of a document's blocks, fenced or indented: blocks whose
// first word is a command, without their comments.
func commandsOf(t *testing.T, text string) (out []string) {
	t.Helper()
	isCommand := regexp.MustCompile(`^(kubectl|make|rm|export|crane|bin/cluster|ipam-node|mkdir) `)
	within, fenced, block := false, false, false
	for _, line := range strings.Split(text, "\n") {
		trimmed := strings.TrimSpace(line)
		if strings.HasPrefix(trimmed, "```") {
			within = !within
			fenced = within && trimmed == "```" // and not ```yaml
			block = false
			continue
		}
		if !fenced && !strings.HasPrefix(line, "    ") {
			block = false
			continue
		}
		if block = block || isCommand.MatchString(trimmed); block && isCommand.MatchString(trimmed) {
			command, _, _ := strings.Cut(trimmed, " #")
			out = append(out, strings.TrimSpace(command))
		}
	}
	return out
}
