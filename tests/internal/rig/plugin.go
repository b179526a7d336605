// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Call is one call of the plugin, as a runtime makes it.
type Call struct {
	Verb, Container string
	Interface       string // net1 where empty
	Pod             string // in namespace default; named as the container where empty
	Args            string // further CNI_ARGS, each with a semicolon before it
	Stdin           []byte // see NetConf
}

// Environ is what a runtime tells the plugin in its environment. The plugin runs
// alone, without the main plugin that enters the container's namespace: skel has to
// be told that this is no mistake.
func (c Call) Environ(plugin string) []string {
	if c.Interface == "" {
		c.Interface = "net1"
	}
	if c.Pod == "" {
		c.Pod = c.Container
	}
	return []string{
		"CNI_COMMAND=" + c.Verb, "CNI_CONTAINERID=" + c.Container, "CNI_IFNAME=" + c.Interface, "CNI_PATH=" + filepath.Dir(plugin),
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + c.Pod + c.Args,
		"CNI_NETNS=/proc/self/ns/net", "CNI_NETNS_OVERRIDE=1",
	}
}

// On runs the call as a command and returns what it printed. Where the plugin fails,
// its CNI error is a *types.Error; any other error says what is wrong with it.
func (c Call) On(cmd *exec.Cmd, plugin string) ([]byte, error) {
	cmd.Env = append(c.Environ(plugin), cmd.Env...)
	cmd.Stdin = bytes.NewReader(c.Stdin)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err := cmd.Run()
	if err == nil {
		return out.Bytes(), nil
	}
	said := &types.Error{}
	if json.Unmarshal(out.Bytes(), said) == nil {
		return nil, said
	}
	return nil, fmt.Errorf("%s %s: %w, and no CNI error: %q, stderr %q", c.Verb, c.Container, err, out.String(), stderr.String())
}

// Run is On a command of its own, for a test, which anything but a CNI error ends.
func (c Call) Run(t testing.TB, cmd *exec.Cmd, plugin string) ([]byte, *types.Error) {
	t.Helper()
	out, err := c.On(cmd, plugin)
	var said *types.Error
	if errors.As(err, &said) {
		return nil, said
	}
	if err != nil {
		t.Fatal(err)
	}
	return out, nil
}

// NetConf is the network configuration of a macvlan network; ipam are the keys of
// its section, more are those beside it.
func NetConf(t testing.TB, version string, ipam, more map[string]any) []byte {
	t.Helper()
	conf := map[string]any{"cniVersion": version, "name": "net", "type": "macvlan", "ipam": map[string]any{"type": "nv-ipam"}}
	Merge(conf["ipam"].(map[string]any), ipam)
	Merge(conf, more)
	return must(json.Marshal(conf))(t)
}

// Absent takes a key out of a configuration.
var Absent = struct{}{}

// Merge sets keys.
func Merge(into, from map[string]any) {
	for k, v := range from {
		into[k] = v
		if v == any(Absent) {
			delete(into, k)
		}
	}
}

// Given are the addresses of an ADD's result, with their prefix lengths.
func Given(out []byte) (addrs []string, err error) {
	raw, err := types100.NewResult(out)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	result, err := types100.GetResult(raw)
	if err != nil {
		return nil, err
	}
	for _, ip := range result.IPs {
		addrs = append(addrs, ip.Address.String())
	}
	return addrs, nil
}

// WriteKubeconfig writes a kubeconfig file for a user of a server.
func WriteKubeconfig(t testing.TB, path, server string, ca []byte, user *clientcmdapi.AuthInfo) {
	t.Helper()
	err := clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"c": {Server: server, CertificateAuthorityData: ca}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"u": user},
		Contexts:       map[string]*clientcmdapi.Context{"x": {Cluster: "c", AuthInfo: "u"}},
		CurrentContext: "x",
	}, path)
	if err != nil {
		t.Fatal(err)
	}
}
