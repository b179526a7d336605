// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/tests/internal/simnode"
)

// networkConfig is what network-operator generates for the MacvlanNetwork of the
// walkthrough, plus confDir.
func networkConfig(confDir string) string {
	return `{ "cniVersion":"0.3.1", "name":"example-macvlannetwork", "type":"macvlan","master": "eth0","mode" : "bridge","mtu" : 1500,"ipam":{"type":"nv-ipam","poolName":"pool1","confDir":"` + confDir + `"} }`
}

// schedule creates a Pod from its file, binds it to a node as the scheduler
// would, and makes its network namespace as the runtime would.
func (d *demo) schedule(ctx context.Context, name, node string) (*pod, error) {
	if _, err := d.shell(ctx, "kubectl apply -f tests/demo/testdata/"+name+".yaml"); err != nil {
		return nil, err
	}
	pods := d.client.CoreV1().Pods(metav1.NamespaceDefault)
	err := pods.Bind(ctx, &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: name},
		Target:     corev1.ObjectReference{Kind: "Node", Name: node},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	obj, err := pods.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	netns, err := simnode.NewNetns()
	if err != nil {
		return nil, err
	}
	d.undo = append(d.undo, netns.Close)
	var id [32]byte
	_, _ = rand.Read(id[:]) // never fails
	p := &pod{node: d.node(node), Pod: simnode.Pod{
		Namespace: obj.Namespace, Name: name, UID: string(obj.UID),
		ContainerID: hex.EncodeToString(id[:]), Netns: netns, Interface: "net1",
	}}
	if d.pods == nil {
		d.pods = map[string]*pod{}
	}
	d.pods[name] = p
	d.order = append(d.order, p)
	return p, nil
}

// attach creates a Pod that is to get the address want.
func (d *demo) attach(ctx context.Context, name, node, ask, want string) error {
	p, err := d.schedule(ctx, name, node)
	if err != nil {
		return err
	}
	start := time.Now()
	result, err := p.node.Add(ctx, []byte(networkConfig(p.node.Dir)), &p.Pod, ask)
	if err != nil {
		return fmt.Errorf("attaching pod %s on %s: %w", name, node, err)
	}
	took := time.Since(start)
	if err := p.Has(result); err != nil {
		return fmt.Errorf("pod %s: %w", name, err)
	}
	got := result.IPs[0]
	fmt.Printf("%s on %s: %s has %s, gateway %s (ADD of macvlan and nv-ipam: %s)\n", name, node, p.Interface, got.Address.String(), got.Gateway, short(took))
	if got.Address.String() != want {
		return mismatch("the address of pod "+name, want, got.Address.String())
	}
	return nil
}

// refuse creates a Pod that asks for an address which it is not to get, for
// reasons that contain words.
func (d *demo) refuse(ctx context.Context, name, node, ask string, words ...string) error {
	p, err := d.schedule(ctx, name, node)
	if err != nil {
		return err
	}
	network := []byte(networkConfig(p.node.Dir))
	result, err := p.node.Add(ctx, network, &p.Pod, ask)
	if err == nil {
		return mismatch("ADD of pod "+name, "an error: "+strings.Join(words, " ... "), result)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	fmt.Printf("%s on %s asks for %s and is refused:\n  %v\n", name, node, ask, err)
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			return mismatch("the error of pod "+name, w, err)
		}
	}
	// As a runtime does after every ADD that failed. It must not free what the
	// other pod has, as the next steps see.
	return p.node.Del(ctx, network, &p.Pod)
}

// detach is what the kubelet does with a Pod that is being deleted.
func (d *demo) detach(ctx context.Context, p *pod) error {
	start := time.Now()
	if err := p.node.Del(ctx, []byte(networkConfig(p.node.Dir)), &p.Pod); err != nil {
		return fmt.Errorf("detaching pod %s: %w", p.Name, err)
	}
	fmt.Printf("%s: detached (DEL: %s)\n", p.Name, short(time.Since(start)))
	now := int64(0)
	err := d.client.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &now})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
