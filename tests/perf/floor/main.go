// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Floor makes one IPAllocation and ends: what a process that claims an address
// with one create, and nothing else, costs. It is written as anybody would with
// client-go and the generated client.
package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
)

func main() {
	if len(os.Args) != 6 {
		fmt.Fprintln(os.Stderr, "usage: floor KUBECONFIG NAMESPACE NODE ADDRESS CONTAINER")
		os.Exit(2)
	}
	if err := create(os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func create(kubeconfig, namespace, node, address, container string) error {
	addr, err := netip.ParseAddr(address)
	if err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := clientv1alpha1.NewForConfig(config)
	if err != nil {
		return err
	}
	const pool = "floor"
	_, err = client.IPAllocations(namespace).Create(context.Background(), &v1alpha1.IPAllocation{
		ObjectMeta: metav1.ObjectMeta{
			Name: pool + "." + addr.String(),
			Labels: map[string]string{
				v1alpha1.LabelPool: pool, v1alpha1.LabelNode: node, v1alpha1.LabelContainer: container[:40],
			},
		},
		Spec: v1alpha1.IPAllocationSpec{
			PoolRef: v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: pool},
			Address: addr.String(), NodeName: node,
			PodRef:      v1alpha1.PodReference{Namespace: "default", Name: "pod-" + container[:10], UID: "9d9a3f0e-2a5c-4f0e-8a53-0d3f0c6f6a11"},
			ContainerID: container, InterfaceName: "net1", NetworkName: "net",
		},
	}, metav1.CreateOptions{})
	return err
}
