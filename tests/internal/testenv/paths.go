// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const rootModule = "module github.com/crd-ipam/crd-ipam\n"

// Root is the directory of the project's root module: the nearest one upwards
// from the working directory.
func Root() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(mod), rootModule) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is not inside of the crd-ipam source tree", wd)
		}
	}
}

// Binary is the path of one of this project's commands, as `make build` left it.
func Binary(name string) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	path := filepath.Join(root, "bin", name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w: run make build", err)
	}
	return path, nil
}

// CNIPlugins is the directory of the standard CNI plugins (macvlan, host-local).
func CNIPlugins() (string, error) { return Part("CNI_PLUGINS", "cni") }

// Part is the directory of a part that hack/parts.sh builds, which an environment
// variable has.
func Part(variable, part string) (string, error) {
	dir := os.Getenv(variable)
	if dir == "" {
		return "", fmt.Errorf("%[1]s is not set: run make test, or export %[1]s=$(hack/parts.sh %[2]s)", variable, part)
	}
	return dir, nil
}

// assets is the directory of etcd, kube-apiserver and kubectl.
func assets() (string, error) {
	dir := os.Getenv("KUBEBUILDER_ASSETS")
	if dir == "" {
		return "", errors.New("KUBEBUILDER_ASSETS is not set: run make test, or export KUBEBUILDER_ASSETS=$(hack/parts.sh assets)")
	}
	for _, name := range []string{"etcd", "kube-apiserver", "kubectl"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return "", fmt.Errorf("KUBEBUILDER_ASSETS: %w", err)
		}
	}
	return filepath.Abs(dir)
}
