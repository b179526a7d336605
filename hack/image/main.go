// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// image puts the commands, built for each platform, into one container image,
// without a container runtime and without a base image: static binaries need
// nothing else. The same binaries give the same digest: no file, layer or
// configuration carries a time, a host name or an order that happened to be.
//
// It writes, into the directory given by -out,
//
//	image.tar               all platforms, an OCI layout
//	image-ARCH.docker.tar   one platform, as docker save would write it
//	image-ARCH.spdx.json    what the image's binaries are made of; also in the image
//
// and prints the digest of the whole on stdout. With -bill-of DIR it prints of what the
// commands in that directory are made, and makes no image.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// commands are what the image holds, in its root: that is where nv-ipam's image
// has them, and where network-operator's manifests look.
var commands = []string{"ipam-controller", "ipam-node", "nv-ipam"}

// options of the command line.
type options struct {
	binaries string // has a directory for each architecture
	arches   []string
	tag      name.Tag
	version  string
	user     string
	out      string
	billOf   string
}

func main() {
	o, err := parse()
	switch {
	case err != nil:
	case o.billOf != "":
		err = printBill(o)
	default:
		err = run(o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func parse() (o options, err error) {
	flag.StringVar(&o.binaries, "binaries", "bin/image", "directory with the commands in a directory for each architecture")
	arches := flag.String("arches", "amd64,arm64", "architectures, separated by commas")
	tag := flag.String("tag", "", "the image's name, as in registry.example.com/crd-ipam:v1")
	flag.StringVar(&o.version, "version", "dev", "the version that the image's label gives")
	flag.StringVar(&o.user, "user", "65532:65532", "the user that a container runs as when its manifest does not say")
	flag.StringVar(&o.out, "out", "bin", "directory to write into")
	flag.StringVar(&o.billOf, "bill-of", "", "a directory: print the bill of materials of the commands in it, and make no image")
	flag.Parse()
	if flag.NArg() > 0 {
		return o, fmt.Errorf("unexpected arguments: %q", flag.Args())
	}
	if o.billOf != "" {
		return o, nil
	}
	o.arches = strings.Split(*arches, ",")
	o.tag, err = name.NewTag(*tag)
	return o, err
}

func printBill(o options) error {
	entries, err := os.ReadDir(o.billOf)
	if err != nil {
		return err
	}
	var commands []string
	for _, e := range entries {
		commands = append(commands, e.Name())
	}
	bill, err := billOfMaterials(o.billOf, "", commands, o.version)
	if err == nil {
		_, err = os.Stdout.Write(bill)
	}
	return err
}

func run(o options) error {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range o.arches {
		img, err := o.platform(arch)
		if err != nil {
			return fmt.Errorf("%s: %w", arch, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add:        img,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
		})
		if err := tarball.WriteToFile(filepath.Join(o.out, "image-"+arch+".docker.tar"), o.tag, img); err != nil {
			return err
		}
	}
	if err := writeLayout(filepath.Join(o.out, "image.tar"), index, o.tag); err != nil {
		return err
	}
	digest, err := index.Digest()
	if err != nil {
		return err
	}
	fmt.Println(digest)
	return nil
}

// platform makes the image for one architecture, and writes its bill of
// materials beside it.
func (o options) platform(arch string) (v1.Image, error) {
	dir := filepath.Join(o.binaries, arch)
	bill, err := billOfMaterials(dir, "/", commands, o.version)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(o.out, "image-"+arch+".spdx.json"), bill, 0o644); err != nil {
		return nil, err
	}
	files := []file{
		{path: "etc/group", mode: 0o644, data: []byte("root:x:0:\nnonroot:x:65532:\n")},
		{path: "etc/passwd", mode: 0o644, data: []byte("root:x:0:0:root:/:/\nnonroot:x:65532:65532:nonroot:/:/\n")},
		{path: "usr/share/sbom/crd-ipam.spdx.json", mode: 0o644, data: bill},
	}
	for _, c := range commands {
		data, err := os.ReadFile(filepath.Join(dir, c))
		if err != nil {
			return nil, err
		}
		files = append(files, file{path: c, mode: 0o755, data: data})
	}
	layer, err := newLayer(files)
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if img, err = mutate.Append(img, mutate.Addendum{Layer: layer, MediaType: types.OCILayer}); err != nil {
		return nil, err
	}
	return o.configure(img, arch)
}

func (o options) configure(img v1.Image, arch string) (v1.Image, error) {
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", arch
	config.Config = v1.Config{
		// No entrypoint: there are three commands, and manifests say which.
		User:       o.user,
		WorkingDir: "/",
		Env:        []string{"PATH=/"},
		Labels: map[string]string{
			"org.opencontainers.image.title":       "crd-ipam",
			"org.opencontainers.image.description": "IP address manager for Kubernetes secondary networks",
			"org.opencontainers.image.source":      "https://github.com/crd-ipam/crd-ipam",
			"org.opencontainers.image.licenses":    "Apache-2.0",
			"org.opencontainers.image.version":     o.version,
		},
	}
	for i := range config.History {
		config.History[i].CreatedBy = "crd-ipam hack/image"
	}
	return mutate.ConfigFile(img, config)
}
