// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Command nv-ipam is the CNI IPAM plugin. It claims addresses of pools in the Kubernetes
// API: one create claims one address.
package main

import (
	"fmt"

	"github.com/containernetworking/cni/pkg/skel"
	cniversion "github.com/containernetworking/cni/pkg/version"

	"github.com/crd-ipam/crd-ipam/pkg/cni"
)

// version is set by the build.
var version = "dev"

func main() {
	plugin := cni.Plugin{Version: version}
	skel.PluginMainFuncs(plugin.Funcs(), cniversion.All, fmt.Sprintf("CNI nv-ipam plugin of crd-ipam, version %s", version))
}
