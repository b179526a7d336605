// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// The containers of all nodes are below this cgroup, in each hierarchy.
const cgroupParent = "crd-ipam-cluster"

// cgroupOf is the kubelet's cgroup root on a node.
func cgroupOf(node string) string { return "/" + cgroupParent + "/" + node }

// cgroupHierarchies are where cgroups are mounted: one place for version 2, one
// for each controller with version 1.
func cgroupHierarchies() ([]string, error) {
	const root = "/sys/fs/cgroup"
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err == nil {
		return []string{root}, nil
	}
	found, err := filepath.Glob(filepath.Join(root, "*", "cgroup.procs"))
	for i := range found {
		found[i] = filepath.Dir(found[i])
	}
	return found, err
}

// makeCgroup makes a node's cgroup in all hierarchies. The kubelet demands that
// it is there.
func makeCgroup(node string) error {
	hierarchies, err := cgroupHierarchies()
	if err != nil {
		return err
	}
	for _, h := range hierarchies {
		parent := h
		for _, name := range []string{cgroupParent, node} {
			if err := delegate(parent); err != nil {
				return err
			}
			dir := filepath.Join(parent, name)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			if err := inherit(parent, dir); err != nil {
				return err
			}
			parent = dir
		}
	}
	return nil
}

// delegate enables all controllers for the children of a cgroup of version 2.
func delegate(dir string) error {
	controllers, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, c := range bytes.Fields(controllers) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), append([]byte("+"), c...), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// inherit copies what a cpuset of version 1 has to have before it can hold a
// process.
func inherit(parent, dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(parent, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && len(bytes.TrimSpace(value)) > 0 {
			err = os.WriteFile(filepath.Join(dir, name), value, 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// removeCgroups removes a cgroup below cgroupParent, or that, with all in it. No
// process may be left there, but the kernel may still be at work on the last.
func removeCgroups(name ...string) error {
	hierarchies, err := cgroupHierarchies()
	if err != nil {
		return err
	}
	for _, h := range hierarchies {
		root := filepath.Join(append([]string{h, cgroupParent}, name...)...)
		if err := poll(context.Background(), time.Minute, root+" to be removed", func() error { return removeTree(root) }); err != nil {
			return err
		}
	}
	return nil
}

func removeTree(root string) error {
	var dirs []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, dir := range slices.Backward(dirs) { // children first
		err = errors.Join(err, os.Remove(dir))
	}
	return err
}
