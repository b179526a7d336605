// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"net/http"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/transport"

	"github.com/crd-ipam/crd-ipam/generated/clientset/versioned"
	"github.com/crd-ipam/crd-ipam/generated/clientset/versioned/scheme"
)

// Clients are the ways to the API server that the controller needs.
type Clients struct {
	IPAM     versioned.Interface
	Kube     kubernetes.Interface
	Metadata metadata.Interface // pods: only their metadata is cached
}

// Connect returns clients whose requests go through wrap. An empty kubeconfig stands for
// $KUBECONFIG, and then for the pod's service account.
func Connect(kubeconfig, userAgent string, wrap transport.WrapperFunc) (c Clients, err error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return c, err
	}
	config.UserAgent = userAgent
	// No limit on this side: a handful of workers with one request each cannot do harm, and
	// a server that is busy says so (API priority and fairness).
	config.QPS = -1
	// What a controller reads crosses a cluster's own network. To compress it costs the API
	// server more than to send it: all of a large pool, whenever the pool changes.
	config.DisableCompression = true
	config.Wrap(wrap)
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return c, err
	}
	return ClientsFor(config, client)
}

// ClientsFor returns clients that send their requests by an HTTP client.
func ClientsFor(config *rest.Config, client *http.Client) (c Clients, err error) {
	ipam := rest.CopyConfig(config)
	ipam.APIPath, ipam.GroupVersion, ipam.NegotiatedSerializer = "/apis", &groupVersion, codecs{scheme.Codecs.WithoutConversion()}
	typed, err := rest.RESTClientForConfigAndClient(ipam, client)
	if err != nil {
		return c, err
	}
	c.IPAM = versioned.New(typed)
	if c.Metadata, err = metadata.NewForConfigAndClient(config, client); err != nil {
		return c, err
	}
	protobuf := rest.CopyConfig(config) // which custom resources do not have
	protobuf.AcceptContentTypes, protobuf.ContentType = "application/vnd.kubernetes.protobuf,application/json", "application/vnd.kubernetes.protobuf"
	c.Kube, err = kubernetes.NewForConfigAndClient(protobuf, client)
	return c, err
}
