// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package release

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"debug/macho"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

var platforms = []string{"darwin_amd64", "darwin_arm64", "linux_amd64", "linux_arm64"}

// What is asked for is refused before anything is built.
func TestRefusals(t *testing.T) {
	elsewhere := copyTree(t)
	others := t.TempDir()
	if err := os.WriteFile(filepath.Join(others, "thesis.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		out  string
		env  []string
		want string
	}{
		"no repository and no time": {t.TempDir(), []string{"SOURCE_DATE_EPOCH="}, "SOURCE_DATE_EPOCH has to be"},
		"no time":                   {t.TempDir(), []string{"SOURCE_DATE_EPOCH=today"}, "SOURCE_DATE_EPOCH has to be"},
		"somebody's directory":      {others, []string{"SOURCE_DATE_EPOCH=1"}, "has files"},
	} {
		t.Run(name, func(t *testing.T) {
			if said, err := release(t, elsewhere, tc.out, tc.env...); err == nil || !strings.Contains(said, tc.want) || strings.Contains(said, "build:") {
				t.Errorf("%v: %s", err, said)
			}
		})
	}
	if _, err := os.Stat(filepath.Join(others, "thesis.txt")); err != nil {
		t.Error(err)
	}
}

// The release, made twice, the second time elsewhere, without the repository and by somebody
// with another environment, is the same to the bit; and what is in it works.
func TestRelease(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the commands for four platforms, twice: make test-release")
	}
	at := fmt.Sprintf("SOURCE_DATE_EPOCH=%d", epoch)
	dist, again := filepath.Join(t.TempDir(), "dist"), filepath.Join(t.TempDir(), "again")
	for _, run := range []struct {
		tree, out string
		env       []string
	}{
		{rig.Root(t), dist, []string{at}},
		{copyTree(t), again, []string{at, "TZ=Asia/Tokyo", "LANG=C", "LC_ALL=C.UTF-8", "GOFLAGS=-tags=other", "GOAMD64=v3", "NAMESPACE=elsewhere", "UMASK=077"}},
	} {
		if said, err := release(t, run.tree, run.out, run.env...); err != nil {
			t.Fatalf("%v: %s", err, said)
		}
	}
	files, others := read(t, dist), read(t, again)
	for name := range others {
		if !bytes.Equal(files[name], others[name]) {
			t.Errorf("%s differs", name)
		}
	}
	isComplete(t, files)
	t.Run("image", func(t *testing.T) { imageIsPinned(t, files) })
	for _, platform := range platforms {
		t.Run(platform, func(t *testing.T) { isFor(t, files, platform) })
	}
	env := start(t)
	t.Run("krew", func(t *testing.T) { krewTakesIt(t, dist, files) })
	t.Run("document", func(t *testing.T) { asDocumented(t, env, dist) })
	t.Run("manifests", func(t *testing.T) { manifestsApply(t, env, dist) })
}

// isComplete checks the list of files, and that each has its checksum.
func isComplete(t *testing.T, files map[string][]byte) {
	want := []string{
		"SHA256SUMS", "ipam.yaml", "crd-ipam-manifests.tar.gz", "crd-ipam-image.tar", "crd-ipam-image-amd64.docker.tar", "crd-ipam-image-arm64.docker.tar",
		"crd-ipam-image-amd64.spdx.json", "crd-ipam-image-arm64.spdx.json",
	}
	for _, p := range platforms {
		want = append(want, "kubectl-ipam_"+p+".tar.gz", "kubectl-ipam_"+p+".spdx.json")
	}
	for _, o := range overlays(t) {
		want = append(want, "crd-ipam-"+o+".yaml")
	}
	slices.Sort(want)
	if got := slices.Sorted(maps.Keys(files)); !slices.Equal(got, want) {
		t.Errorf("files\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	var sums strings.Builder
	for _, name := range want {
		if name != "SHA256SUMS" {
			fmt.Fprintf(&sums, "%s  %s\n", sum(files[name]), name)
		}
	}
	if got := string(files["SHA256SUMS"]); got != sums.String() {
		t.Errorf("SHA256SUMS\n%s\nwant\n%s", got, &sums)
	}
	t.Logf("SHA256SUMS\n%s", &sums)
	if own := unpack(t, files["crd-ipam-manifests.tar.gz"]); own["LICENSE"] == nil || own["manifests/components/monitoring/kustomization.yaml"] == nil {
		t.Errorf("the archive of the manifests has %q", slices.Sorted(maps.Keys(own)))
	}
}

// imageIsPinned checks that each container runs the image in the archive.
func imageIsPinned(t *testing.T, files map[string][]byte) {
	var index struct {
		Manifests []struct {
			Digest      string
			Annotations map[string]string
		}
	}
	for in := tar.NewReader(bytes.NewReader(files["crd-ipam-image.tar"])); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == "index.json" {
			if err := json.NewDecoder(in).Decode(&index); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(index.Manifests) != 1 || index.Manifests[0].Annotations["io.containerd.image.name"] != image+":v1" {
		t.Fatalf("index.json: %+v", index)
	}
	pinned := image + "@" + index.Manifests[0].Digest
	found := 0
	for name, data := range files {
		if !strings.HasPrefix(name, "crd-ipam-") || !strings.HasSuffix(name, ".yaml") {
			continue
		}
		for _, m := range regexp.MustCompile(`(?m)^ *(?:- )?image: (.*)$`).FindAllSubmatch(data, -1) {
			if found++; string(m[1]) != pinned {
				t.Errorf("%s runs %s, want %s", name, m[1], pinned)
			}
		}
		// Otherwise it is the overlay.
		overlay := strings.TrimSuffix(strings.TrimPrefix(name, "crd-ipam-"), ".yaml")
		want := kubectl(t, &testenv.Env{}, "kustomize", filepath.Join(rig.Root(t), "manifests", "overlays", overlay))
		if got := strings.ReplaceAll(string(data), pinned, "crd-ipam.invalid/crd-ipam:dev"); got != want {
			t.Errorf("%s is not the overlay:\n%s", name, got)
		}
	}
	if found < 10 {
		t.Errorf("only %d containers were found", found)
	}
}

// isFor checks an archive's program, and its bill of materials.
func isFor(t *testing.T, files map[string][]byte, platform string) {
	own := unpack(t, files["kubectl-ipam_"+platform+".tar.gz"])
	if got := slices.Sorted(maps.Keys(own)); !slices.Equal(got, []string{"LICENSE", "kubectl-ipam"}) {
		t.Fatalf("it has %q", got)
	}
	binary := own["kubectl-ipam"]
	format := ""
	if f, err := elf.NewFile(bytes.NewReader(binary)); err == nil {
		format = map[elf.Machine]string{elf.EM_X86_64: "linux_amd64", elf.EM_AARCH64: "linux_arm64"}[f.Machine]
	}
	if f, err := macho.NewFile(bytes.NewReader(binary)); err == nil {
		format = map[macho.Cpu]string{macho.CpuAmd64: "darwin_amd64", macho.CpuArm64: "darwin_arm64"}[f.Cpu]
	}
	if format != platform {
		t.Errorf("the program is for %q", format)
	}
	var bill struct {
		Packages []struct {
			Name, VersionInfo, PackageFileName string
			Checksums                          []struct{ ChecksumValue string }
		}
	}
	if err := json.Unmarshal(files["kubectl-ipam_"+platform+".spdx.json"], &bill); err != nil {
		t.Fatal(err)
	}
	first := bill.Packages[0]
	if first.Name != "kubectl-ipam" || first.PackageFileName != "kubectl-ipam" || first.VersionInfo != version || first.Checksums[0].ChecksumValue != sum(binary) {
		t.Errorf("the bill of materials is of %+v", first)
	}
	if len(bill.Packages) < 10 {
		t.Errorf("the bill of materials has %d packages", len(bill.Packages))
	}
}

// manifest is krew's, as far as its rules go.
type manifest struct {
	Metadata struct{ Name string }
	Spec     struct {
		Version, Homepage, ShortDescription string
		Platforms                           []struct {
			Selector         struct{ MatchLabels map[string]string }
			URI, SHA256, Bin string
		}
	}
}

// krewTakesIt has krew itself install the plugin on each platform, and refuse another one's
// archive.
func krewTakesIt(t *testing.T, dist string, files map[string][]byte) {
	var m manifest
	if err := yaml.UnmarshalStrict(files["ipam.yaml"], &map[string]any{}); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(files["ipam.yaml"], &m); err != nil {
		t.Fatal(err)
	}
	// krew's guide: a name in lower case, a description that fits into a list.
	if m.Metadata.Name != "ipam" || m.Spec.Version != version || !strings.HasPrefix(m.Spec.Homepage, "https://") || len(m.Spec.ShortDescription) > 50 {
		t.Errorf("the manifest is %+v", m)
	}
	var of []string
	for _, p := range m.Spec.Platforms {
		platform := p.Selector.MatchLabels["os"] + "_" + p.Selector.MatchLabels["arch"]
		of = append(of, platform)
		name := "kubectl-ipam_" + platform + ".tar.gz"
		if p.URI != url+"/"+name || p.SHA256 != sum(files[name]) || p.Bin != "kubectl-ipam" || len(p.Selector.MatchLabels) != 2 {
			t.Errorf("%+v", p)
		}
	}
	if slices.Sort(of); !slices.Equal(of, platforms) {
		t.Errorf("platforms %q, want each of %q once", of, platforms)
	}
	for i, platform := range platforms {
		root := t.TempDir()
		if said, err := krew(t, root, dist, platform, platforms[(i+1)%len(platforms)]); err == nil || !strings.Contains(said, "checksum") {
			t.Errorf("on %s with another archive: %v\n%s", platform, err, said)
		}
		if said, err := krew(t, root, dist, platform, platform); err != nil {
			t.Errorf("on %s: %v\n%s", platform, err, said)
		}
		for _, file := range []string{"bin/kubectl-ipam", "store/ipam/" + version + "/LICENSE"} {
			if _, err := os.Stat(filepath.Join(root, file)); err != nil {
				t.Errorf("on %s: %v", platform, err)
			}
		}
	}
}

// krew installs the archive of a platform on a machine that krew takes for another one.
func krew(t *testing.T, root, dist, machine, archive string) (said string, err error) {
	os_, arch, _ := strings.Cut(machine, "_")
	cmd := exec.CommandContext(t.Context(), filepath.Join(rig.Part(t, "KREW", "krew"), "krew"), "install",
		"--manifest="+filepath.Join(dist, "ipam.yaml"), "--archive="+filepath.Join(dist, "kubectl-ipam_"+archive+".tar.gz"))
	cmd.Env = append(os.Environ(), "KREW_ROOT="+root, "KREW_OS="+os_, "KREW_ARCH="+arch, "KREW_NO_UPGRADE_CHECK=1")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// asDocumented types what docs/release.md tells its reader, word for word.
func asDocumented(t *testing.T, env *testenv.Env, dist string) {
	home := t.TempDir()
	bin := filepath.Join(home, "bin")
	if err := errors.Join(os.Mkdir(bin, 0o755), os.Symlink(filepath.Join(rig.Part(t, "KREW", "krew"), "krew"), filepath.Join(bin, "kubectl-krew"))); err != nil {
		t.Fatal(err)
	}
	path := strings.Join([]string{bin, filepath.Join(home, "krew", "bin"), os.Getenv("KUBEBUILDER_ASSETS"), os.Getenv("PATH")}, ":")
	typed := commands(t, "release.md", "Check it and install it")
	if len(typed) < 8 {
		t.Fatalf("only %d commands were found: %q", len(typed), typed)
	}
	versions := 0
	for _, command := range typed {
		if strings.HasPrefix(command, "crane ") {
			t.Logf("not run: %s: needs a registry; TestQuickStart has one", command)
			continue
		}
		cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", strings.ReplaceAll(command, "linux_amd64", "linux_"+runtime.GOARCH))
		cmd.Dir = dist
		cmd.Env = append(os.Environ(), "KUBECONFIG="+env.Kubeconfig, "HOME="+home, "KREW_ROOT="+filepath.Join(home, "krew"), "KREW_NO_UPGRADE_CHECK=1", "PATH="+path)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", command, err, out)
		}
		if strings.HasSuffix(command, "--version") {
			if versions++; !strings.Contains(string(out), version) {
				t.Errorf("%s says %s", command, out)
			}
		}
	}
	if versions != 2 {
		t.Errorf("%d commands have said a version", versions)
	}
	// The program answers: there are CRDs, and no pools.
	cmd := exec.CommandContext(t.Context(), filepath.Join(home, "krew", "bin", "kubectl-ipam"), "show", "--kubeconfig="+env.Kubeconfig)
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "There are no pools.") {
		t.Errorf("kubectl ipam show: %v\n%s", err, out)
	}
}

// manifestsApply has a server check all manifests; the document has applied two of them.
func manifestsApply(t *testing.T, env *testenv.Env, dist string) {
	kubectl(t, env, "create", "namespace", "nvidia-network-operator")
	kubectl(t, env, "apply", "-f", filepath.Join(dist, "crd-ipam-crds-openshift.yaml")) // and a namespace
	for _, o := range overlays(t) {
		if out, err := env.Kubectl(t.Context(), "apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", filepath.Join(dist, "crd-ipam-"+o+".yaml")); err != nil {
			t.Errorf("%s: %v\n%s", o, err, out)
		}
	}
}
