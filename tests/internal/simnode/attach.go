// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package simnode

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// Pod is what a runtime knows of a pod when it calls CNI plugins for it.
type Pod struct {
	Namespace, Name, UID string
	// ContainerID of the sandbox.
	ContainerID string
	Netns       *Netns
	// Interface to make in the pod.
	Interface string
}

// Add attaches a pod, as multus does: ip, where it is not empty, goes into
// CNI_ARGS.
func (n *Node) Add(ctx context.Context, network []byte, p *Pod, ip string) (*types100.Result, error) {
	config, err := libcni.NetworkPluginConfFromBytes(network)
	if err != nil {
		return nil, err
	}
	result, err := n.cni().AddNetwork(ctx, config, p.runtimeConf(ip))
	if err != nil {
		return nil, err
	}
	return types100.GetResult(result)
}

// Del detaches a pod.
func (n *Node) Del(ctx context.Context, network []byte, p *Pod) error {
	config, err := libcni.NetworkPluginConfFromBytes(network)
	if err != nil {
		return err
	}
	return n.cni().DelNetwork(ctx, config, p.runtimeConf(""))
}

func (n *Node) cni() *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir(n.Plugins, filepath.Join(n.Dir, "libcni"), newExec(n.Netns))
}

func (p *Pod) runtimeConf(ip string) *libcni.RuntimeConf {
	conf := &libcni.RuntimeConf{
		ContainerID: p.ContainerID,
		NetNS:       p.Netns.Path(),
		IfName:      p.Interface,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", p.Namespace},
			{"K8S_POD_NAME", p.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", p.ContainerID},
			{"K8S_POD_UID", p.UID},
		},
	}
	if ip != "" {
		conf.Args = append(conf.Args, [2]string{"IP", ip})
	}
	return conf
}

// Has checks that the pod's interface carries the address that ADD returned.
func (p *Pod) Has(result *types100.Result) error {
	if len(result.IPs) != 1 {
		return fmt.Errorf("expected one address, seen %v", result.IPs)
	}
	addrs, err := p.Netns.Addresses(p.Interface)
	if err != nil {
		return err
	}
	if want := result.IPs[0].Address.String(); len(addrs) != 1 || addrs[0].String() != want {
		return fmt.Errorf("expected %s on %s in the pod, seen %v", want, p.Interface, addrs)
	}
	return nil
}
