// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// file is what is written to a tar archive: root's, and from 1970.
type file struct {
	path string
	mode int64
	data []byte
}

// writeTar writes the files, sorted, each after the directories that lead to it.
func writeTar(w io.Writer, files []file) error {
	files = slices.SortedFunc(slices.Values(files), func(a, b file) int { return strings.Compare(a.path, b.path) })
	out := tar.NewWriter(w)
	made := map[string]bool{".": true}
	for _, f := range files {
		for _, dir := range parents(f.path) {
			if made[dir] {
				continue
			}
			made[dir] = true
			if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}); err != nil {
				return err
			}
		}
		if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.path, Mode: f.mode, Size: int64(len(f.data))}); err != nil {
			return err
		}
		if _, err := out.Write(f.data); err != nil {
			return err
		}
	}
	return out.Close()
}

// parents are the directories that lead to p, outermost first.
func parents(p string) (dirs []string) {
	for d := path.Dir(p); d != "."; d = path.Dir(d) {
		dirs = append([]string{d}, dirs...)
	}
	return dirs
}

func newLayer(files []file) (v1.Layer, error) {
	var b bytes.Buffer
	if err := writeTar(&b, files); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
}

// writeLayout writes an OCI layout as one archive. Its index names the image
// twice: as the specification has it, and as containerd's import wants it.
func writeLayout(archive string, index v1.ImageIndex, tag name.Tag) (err error) {
	dir, err := os.MkdirTemp(filepath.Dir(archive), ".layout.")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	to, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	err = to.AppendIndex(index, layout.WithAnnotations(map[string]string{
		"org.opencontainers.image.ref.name": tag.TagStr(),
		"io.containerd.image.name":          tag.Name(),
	}))
	if err != nil {
		return err
	}
	files, err := read(dir)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := writeTar(&b, files); err != nil {
		return err
	}
	return os.WriteFile(archive, b.Bytes(), 0o644)
}

// read returns the files below dir.
func read(dir string) (files []file, err error) {
	tree := os.DirFS(dir)
	err = fs.WalkDir(tree, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(tree, p)
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		files = append(files, file{path: p, mode: 0o644, data: data})
		return nil
	})
	return files, err
}
