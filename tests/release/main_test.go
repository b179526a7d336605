// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package release makes a release as a maintainer does, and uses it as somebody does who has
// downloaded it.
package release

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

const (
	version = "v1.2.3-test.1"
	image   = "registry.example.com/crd-ipam"
	url     = "https://example.com/releases/" + version
	epoch   = 1700000000
)

// release runs hack/release.sh of a tree, in an environment that has env in addition.
func release(t *testing.T, tree, out string, env ...string) (said string, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", "-c", `umask "${UMASK:-022}" && exec hack/release.sh`)
	cmd.Dir = tree
	cmd.Env = append(append(os.Environ(), "VERSION="+version, "IMAGE="+image+":v1", "URL="+url, "OUT="+out), env...)
	output, err := cmd.CombinedOutput()
	return string(output), err
}

// copyTree copies what a release is made from, without the repository.
func copyTree(t *testing.T) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "elsewhere")
	rig.CopyTree(t, to, "LICENSE", "go.mod", "go.sum", "apis", "cmd", "generated", "hack", "manifests", "pkg")
	return to
}

// read returns the files of a directory.
func read(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		data, failed := os.ReadFile(filepath.Join(dir, e.Name()))
		files[e.Name()], err = data, errors.Join(err, failed)
	}
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// sum is a checksum as sha256sum writes it.
func sum(data []byte) string { return fmt.Sprintf("%x", sha256.Sum256(data)) }

// unpack returns the files of a tar.gz. Everything in it is root's, of the same time, and in
// order, and everybody may read it.
func unpack(t *testing.T, data []byte) map[string][]byte {
	t.Helper()
	unzipped, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if unzipped.Name != "" || !unzipped.ModTime.IsZero() {
		t.Errorf("gzip's header has %q, %v", unzipped.Name, unzipped.ModTime)
	}
	files := map[string][]byte{}
	for in := tar.NewReader(unzipped); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.ModTime.Unix() != epoch || h.Mode&0o444 != 0o444 || h.Mode&0o022 != 0 {
			t.Errorf("%s: %d:%d %q %v %o", h.Name, h.Uid, h.Gid, h.Uname, h.ModTime, h.Mode)
		}
		if h.Typeflag == tar.TypeReg {
			if files[h.Name], err = io.ReadAll(in); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// commands are the lines of a document's code blocks below a heading.
func commands(t *testing.T, document, heading string) (out []string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(rig.Root(t), "docs", document))
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(data), "\n## "+heading+"\n")
	if !found {
		t.Fatalf("%s has no section %q", document, heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	for i, block := range strings.Split(section, "```") {
		if i%2 == 1 && strings.HasPrefix(block, "\n") {
			out = append(out, strings.Split(strings.TrimSpace(block), "\n")...)
		}
	}
	return out
}

// start starts a server without anything of this project.
func start(t *testing.T) *testenv.Env {
	t.Helper()
	env, err := testenv.Start(testenv.Options{NoCRDs: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := env.Stop(); err != nil {
			t.Error(err)
		}
	})
	return env
}

func kubectl(t *testing.T, env *testenv.Env, args ...string) string {
	t.Helper()
	out, err := env.Kubectl(t.Context(), args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// overlays are the directories of manifests/overlays, sorted.
func overlays(t *testing.T) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(rig.Root(t), "manifests", "overlays"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	return names
}
