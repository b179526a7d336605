// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
)

// Images that the cluster makes itself: there is no registry.
const (
	// PauseImage holds a pod's namespaces.
	PauseImage = "registry.k8s.io/pause:crd-ipam"
	// ToolsImage has a shell and busybox. The name is the walkthrough's.
	ToolsImage = "docker.io/centos/tools:latest"
)

// entry of an image's one layer: a program, or a link where target is set.
type entry struct {
	path, target string
	content      []byte
}

// writeImage writes a docker archive of an image with one layer.
func writeImage(to, name string, command []string, entries []entry) error {
	var layer bytes.Buffer
	tw := tar.NewWriter(&layer)
	for _, e := range entries {
		header := &tar.Header{Name: e.path, Mode: 0o755, Size: int64(len(e.content)), Typeflag: tar.TypeReg}
		if e.target != "" {
			header.Typeflag, header.Linkname = tar.TypeSymlink, e.target
		}
		if err := add(tw, header, e.content); err != nil {
			return err
		}
	}
	if err := tw.Close(); err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config":       map[string]any{"Entrypoint": command, "Env": []string{"PATH=/bin"}},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer.Bytes()))}},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{name}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	file, err := os.Create(to)
	if err != nil {
		return err
	}
	defer file.Close()
	tw = tar.NewWriter(file)
	for _, f := range []struct {
		name    string
		content []byte
	}{{"config.json", config}, {"layer.tar", layer.Bytes()}, {"manifest.json", manifest}} {
		if err := add(tw, &tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.content))}, f.content); err != nil {
			return err
		}
	}
	return tw.Close()
}

func add(tw *tar.Writer, header *tar.Header, content []byte) error {
	if err := tw.WriteHeader(header); err != nil {
		return err
	}
	_, err := io.Copy(tw, bytes.NewReader(content))
	return err
}

// applets of busybox that tests call in pods.
var applets = []string{"sh", "sleep", "ip", "ping", "cat", "ls", "true", "false", "wget", "nc"}

// writeImages writes the archives of the cluster's own images.
func (c *Cluster) writeImages() error {
	pause, err := c.read("pause")
	if err != nil {
		return err
	}
	if err := writeImage(c.path("pause.tar"), PauseImage, []string{"/pause"}, []entry{{path: "pause", content: pause}}); err != nil {
		return err
	}
	bash, err := c.read("bash-static")
	if err != nil {
		return err
	}
	busybox, err := c.read("busybox")
	if err != nil {
		return err
	}
	entries := []entry{{path: "bin/bash", content: bash}, {path: "bin/busybox", content: busybox}}
	for _, name := range applets {
		entries = append(entries, entry{path: path.Join("bin", name), target: "busybox"})
	}
	return writeImage(c.path("tools.tar"), ToolsImage, []string{"/bin/bash"}, entries)
}

func (c *Cluster) read(program string) ([]byte, error) {
	path, err := c.program(program)
	if err != nil {
		return nil, err
	}
	return os.ReadFile(path)
}
