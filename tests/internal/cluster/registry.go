// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path"
	"runtime"
	"strings"
	"time"
)

// Images that the cluster makes itself.
const (
	// PauseImage holds a pod's namespaces.
	PauseImage = "registry.k8s.io/pause:crd-ipam"
	// ToolsImage has a shell and busybox. The name is the walkthrough's.
	ToolsImage = "docker.io/centos/tools:latest"
)

// registryAddress is where all nodes look for all images. It has the two above:
// a tag "latest", as the walkthrough has it, makes the kubelet ask for it each time.
const registryAddress = controlIP + ":5000"

// hostsTOML is containerd's configuration of it, for any registry's name.
const hostsTOML = `[host."http://` + registryAddress + `"]
capabilities = ["pull", "resolve"]
`

const manifestType = "application/vnd.oci.image.manifest.v1+json"

// serveRegistry serves files to whoever pulls: that is all a registry has to do.
func serveRegistry(dir string) error {
	files := http.FileServer(http.Dir(dir))
	server := &http.Server{Addr: registryAddress, ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/manifests/") {
			w.Header().Set("Content-Type", manifestType)
		}
		files.ServeHTTP(w, r)
	})}
	return server.ListenAndServe()
}

// program of an image, or a link to one where target is set.
type program struct {
	path, target string
	content      []byte
}

// publish puts an image with one layer into the registry.
func (c *Cluster) publish(name string, command []string, programs []program) error {
	layer, err := pack(programs)
	if err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config":       map[string]any{"Entrypoint": command, "Env": []string{"PATH=/bin"}},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{digest(layer)}},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2,
		"mediaType":     manifestType,
		"config":        descriptor("application/vnd.oci.image.config.v1+json", config),
		"layers":        []any{descriptor("application/vnd.oci.image.layer.v1.tar", layer)},
	})
	if err != nil {
		return err
	}
	_, repository, _ := strings.Cut(name, "/")
	repository, tag, _ := strings.Cut(repository, ":")
	for file, content := range map[string][]byte{
		"blobs/" + digest(config):       config,
		"blobs/" + digest(layer):        layer,
		"manifests/" + tag:              manifest,
		"manifests/" + digest(manifest): manifest,
	} {
		if err := write(c.path("registry/v2", repository, file), string(content)); err != nil {
			return err
		}
	}
	return nil
}

func pack(programs []program) ([]byte, error) {
	var layer bytes.Buffer
	tw := tar.NewWriter(&layer)
	for _, p := range programs {
		header := &tar.Header{Name: p.path, Mode: 0o755, Size: int64(len(p.content)), Typeflag: tar.TypeReg}
		if p.target != "" {
			header.Typeflag, header.Linkname = tar.TypeSymlink, p.target
		}
		if err := tw.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := tw.Write(p.content); err != nil {
			return nil, err
		}
	}
	return layer.Bytes(), tw.Close()
}

func digest(content []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(content)) }

func descriptor(mediaType string, content []byte) map[string]any {
	return map[string]any{"mediaType": mediaType, "digest": digest(content), "size": len(content)}
}

// applets of busybox that tests call in pods.
var applets = []string{"sh", "sleep", "ip", "ping", "cat", "ls", "true", "false", "wget", "nc"}

// publishImages makes the cluster's own images.
func (c *Cluster) publishImages() error {
	content := map[string][]byte{}
	for _, name := range []string{"pause", "bash-static", "busybox"} {
		file, err := c.program(name)
		if err != nil {
			return err
		}
		if content[name], err = os.ReadFile(file); err != nil {
			return err
		}
	}
	tools := []program{{path: "bin/bash", content: content["bash-static"]}, {path: "bin/busybox", content: content["busybox"]}}
	for _, name := range applets {
		tools = append(tools, program{path: path.Join("bin", name), target: "busybox"})
	}
	if err := c.publish(ToolsImage, []string{"/bin/bash"}, tools); err != nil {
		return err
	}
	return c.publish(PauseImage, []string{"/pause"}, []program{{path: "pause", content: content["pause"]}})
}
