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
	"path/filepath"
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
	// thickImage has multus' daemon. The name and the paths in it are those of its manifest.
	thickImage    = "ghcr.io/k8snetworkplumbingwg/multus-cni:snapshot-thick"
	thickPrograms = "usr/src/multus-cni/bin"
)

// registryAddress is where all nodes look for all images. It has those above, and what
// is pushed: a tag "latest", as the walkthrough has it, makes the kubelet ask for it each
// time.
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
			w.Header().Set("Content-Type", mediaType(filepath.Join(dir, path.Clean(r.URL.Path))))
		}
		files.ServeHTTP(w, r)
	})}
	return server.ListenAndServe()
}

// mediaType is what the manifest in a file says that it is.
func mediaType(file string) string {
	var manifest struct {
		MediaType string `json:"mediaType"`
	}
	data, err := os.ReadFile(file)
	if err != nil || json.Unmarshal(data, &manifest) != nil {
		return manifestType
	}
	return manifest.MediaType
}

// Push puts the image in a directory with an OCI layout into the cluster's registry, from
// which the nodes pull, whatever registry the name says.
func (c *Cluster) Push(layout, name string) error {
	data, err := os.ReadFile(filepath.Join(layout, "index.json"))
	if err != nil {
		return err
	}
	var index struct {
		Manifests []struct{ Digest string }
	}
	if err := json.Unmarshal(data, &index); err != nil {
		return err
	}
	if len(index.Manifests) != 1 {
		return fmt.Errorf("%s has %d images, expected one", layout, len(index.Manifests))
	}
	repository, tag := c.repository(name)
	blobs, err := filepath.Glob(filepath.Join(layout, "blobs/sha256/*"))
	if err != nil {
		return err
	}
	for _, blob := range blobs {
		content, err := os.ReadFile(blob)
		if err != nil {
			return err
		}
		id := digest(content)
		files := []string{"blobs/" + id, "manifests/" + id} // which of them it is, nobody asks
		if id == index.Manifests[0].Digest {
			files = append(files, "manifests/"+tag)
		}
		for _, file := range files {
			if err := write(filepath.Join(repository, file), string(content)); err != nil {
				return err
			}
		}
	}
	return nil
}

// repository is the directory of an image's repository, and tag that of its name.
func (c *Cluster) repository(name string) (dir, tag string) {
	_, repository, _ := strings.Cut(name, "/")
	repository, tag, _ = strings.Cut(repository, ":")
	return c.path("registry/v2", repository), tag
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
	repository, tag := c.repository(name)
	for file, content := range map[string][]byte{
		"blobs/" + digest(config):       config,
		"blobs/" + digest(layer):        layer,
		"manifests/" + tag:              manifest,
		"manifests/" + digest(manifest): manifest,
	} {
		if err := write(filepath.Join(repository, file), string(content)); err != nil {
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

// thick are the programs in the image of multus' daemon, which is the first.
var thick = []string{"multus-daemon", "multus-shim", "install_multus", "passthru"}

// publishImages makes the cluster's own images.
func (c *Cluster) publishImages() error {
	names := []string{"pause", "bash-static", "busybox"}
	if c.thick() {
		names = append(names, thick...)
	}
	content := map[string][]byte{}
	for _, name := range names {
		file, err := c.program(name)
		if err != nil {
			return err
		}
		if content[name], err = os.ReadFile(file); err != nil {
			return err
		}
	}
	if c.thick() {
		// As in Debian's image: the daemon looks who it is, and runtimes say /var/run/netns.
		programs := []program{{path: "etc/passwd", content: []byte(passwd)}, {path: "var/run", target: "/run"}}
		for _, name := range thick {
			programs = append(programs, program{path: path.Join(thickPrograms, name), content: content[name]})
		}
		if err := c.publish(thickImage, []string{path.Join("/", thickPrograms, thick[0])}, programs); err != nil {
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
