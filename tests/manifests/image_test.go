// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// The image, built twice, the second time elsewhere and by somebody with another
// environment, is the same to the bit; and what is in it runs.
func TestImage(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the commands for two platforms, twice")
	}
	t.Parallel()
	first, second := t.TempDir(), t.TempDir()
	digest := buildImage(t, rig.Root(t), first)
	elsewhere := filepath.Join(t.TempDir(), "copy")
	rig.CopyTree(t, elsewhere, "go.mod", "go.sum", "apis", "cmd", "generated", "hack", "pkg")
	again := buildImage(t, elsewhere, second, "TZ=Asia/Tokyo", "LANG=C", "GOFLAGS=-tags=other", "GOAMD64=v3")
	if digest != again {
		t.Errorf("digests %s and %s", digest, again)
	}
	outputs := []string{
		"image.tar", "image-amd64.docker.tar", "image-arm64.docker.tar", "image-amd64.spdx.json", "image-arm64.spdx.json",
	}
	for _, name := range outputs {
		a, err := os.ReadFile(filepath.Join(first, name))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(second, name))
		if err != nil || !bytes.Equal(a, b) {
			t.Errorf("%s differs (%v)", name, err)
		}
		t.Logf("%s: %d bytes, sha256:%x", name, len(a), sha256.Sum256(a))
	}
	t.Logf("image digest %s", digest)
	archive := untar(t, readFile(t, filepath.Join(first, "image.tar")))
	for _, arch := range []string{"amd64", "arm64"} {
		t.Run(arch, func(t *testing.T) { checkPlatform(t, archive, digest, arch, first) })
	}
}

const imageVersion = "v0.0.0-test"

func buildImage(t *testing.T, tree, out string, env ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(tree, "hack", "image.sh"))
	cmd.Env = append(append(os.Environ(), env...), "OUT="+out, "VERSION="+imageVersion)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.Output()
	if err != nil {
		t.Fatalf("hack/image.sh: %v\n%s", err, &stderr)
	}
	return strings.TrimSpace(string(stdout))
}

type descriptor struct {
	Digest      string            `json:"digest"`
	Annotations map[string]string `json:"annotations"`
	Platform    struct {
		OS           string `json:"os"`
		Architecture string `json:"architecture"`
	} `json:"platform"`
}

// checkPlatform follows the digests from the archive's index to the files.
func checkPlatform(t *testing.T, archive map[string][]byte, digest, arch, out string) {
	var top, index struct {
		Manifests []descriptor `json:"manifests"`
	}
	parse(t, archive["index.json"], &top)
	if len(top.Manifests) != 1 || top.Manifests[0].Digest != digest || top.Manifests[0].Annotations["io.containerd.image.name"] != makefileValue(t, "IMAGE") {
		t.Fatalf("index.json: %+v", top)
	}
	parse(t, blob(t, archive, digest), &index)
	i := slices.IndexFunc(index.Manifests, func(d descriptor) bool { return d.Platform.OS == "linux" && d.Platform.Architecture == arch })
	if i < 0 {
		t.Fatalf("no linux/%s in %+v", arch, index)
	}
	var manifest struct {
		Config descriptor   `json:"config"`
		Layers []descriptor `json:"layers"`
	}
	parse(t, blob(t, archive, index.Manifests[i].Digest), &manifest)
	var config struct {
		Architecture string `json:"architecture"`
		Config       struct {
			User   string            `json:"User"`
			Labels map[string]string `json:"Labels"`
		} `json:"config"`
	}
	parse(t, blob(t, archive, manifest.Config.Digest), &config)
	if config.Architecture != arch || config.Config.User != "65532:65532" || config.Config.Labels["org.opencontainers.image.version"] != imageVersion {
		t.Errorf("config %+v", config)
	}
	if len(manifest.Layers) != 1 {
		t.Fatalf("%d layers", len(manifest.Layers))
	}
	unzipped, err := gzip.NewReader(bytes.NewReader(blob(t, archive, manifest.Layers[0].Digest)))
	if err != nil {
		t.Fatal(err)
	}
	layer, err := io.ReadAll(unzipped)
	if err != nil {
		t.Fatal(err)
	}
	files := untar(t, layer)
	const bill = "usr/share/sbom/crd-ipam.spdx.json"
	if got, want := slices.Sorted(maps.Keys(files)), []string{"etc/group", "etc/passwd", "ipam-controller", "ipam-node", "nv-ipam", bill}; !slices.Equal(got, want) {
		t.Fatalf("files %v, want %v", got, want)
	}
	if !bytes.Equal(files[bill], readFile(t, filepath.Join(out, "image-"+arch+".spdx.json"))) {
		t.Error("the bill of materials in the image is not the one beside it")
	}
	checkBill(t, files, bill)
	if arch == runtime.GOARCH {
		commandsRun(t, files)
	}
}

// checkBill compares the bill of materials with the commands.
func checkBill(t *testing.T, files map[string][]byte, name string) {
	var doc struct {
		Packages []struct {
			Name, VersionInfo string
			Checksums         []struct{ ChecksumValue string }
		}
	}
	parse(t, files[name], &doc)
	found := map[string]bool{}
	for _, p := range doc.Packages {
		found[p.Name] = true
		if data, ok := files[p.Name]; ok && (p.VersionInfo != imageVersion || p.Checksums[0].ChecksumValue != fmt.Sprintf("%x", sha256.Sum256(data))) {
			t.Errorf("package %+v", p)
		}
	}
	for _, p := range []string{"ipam-controller", "ipam-node", "nv-ipam", "stdlib", "k8s.io/client-go", "github.com/containernetworking/cni"} {
		if !found[p] {
			t.Errorf("%s is not in the bill of materials", p)
		}
	}
}

// commandsRun runs the commands with nothing around them but the image.
func commandsRun(t *testing.T, files map[string][]byte) {
	for _, name := range []string{"ipam-controller", "ipam-node", "nv-ipam"} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, files[name], 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), path, "--version")
		cmd.Env = []string{}
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), imageVersion) {
			t.Errorf("%s --version: %v\n%s", name, err, out)
		}
	}
}

func blob(t *testing.T, archive map[string][]byte, digest string) []byte {
	t.Helper()
	data := archive["blobs/"+strings.Replace(digest, ":", "/", 1)]
	if got := fmt.Sprintf("sha256:%x", sha256.Sum256(data)); got != digest {
		t.Fatalf("blob %s has digest %s", digest, got)
	}
	return data
}

func parse(t *testing.T, data []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatalf("%v in %s", err, data)
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// untar returns the files of an archive in which everything is root's and of the
// same time.
func untar(t *testing.T, data []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for in := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.ModTime.Unix() != 0 {
			t.Errorf("%s: %d:%d %v", h.Name, h.Uid, h.Gid, h.ModTime)
		}
		if h.Typeflag == tar.TypeReg {
			if files[h.Name], err = io.ReadAll(in); err != nil {
				t.Fatal(err)
			}
		}
	}
}
