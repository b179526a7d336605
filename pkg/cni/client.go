// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"mime"
	"net/http"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/generated/clientset/versioned/scheme"
	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
)

// newClient returns a client of the API server, and of nothing else that may
// answer in its place.
func newClient(config *rest.Config) (clientv1alpha1.NvIpamV1alpha1Interface, error) {
	config.QPS = -1 // a process makes two requests
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return jsonOnly{next} })
	config.APIPath, config.GroupVersion = "/apis", &schema.GroupVersion{Group: v1alpha1.GroupName, Version: v1alpha1.GroupVersion.Version}
	config.NegotiatedSerializer = scheme.Codecs.WithoutConversion()
	c, err := rest.RESTClientFor(config)
	return clientv1alpha1.New(once{c}), err
}

// once sends each request once. The client's own retries know nothing of the time
// that a call may take, and hide what the API server has said.
type once struct{ rest.Interface }

func (o once) Verb(verb string) *rest.Request { return o.Interface.Verb(verb).MaxRetries(0) }
func (o once) Get() *rest.Request             { return o.Interface.Get().MaxRetries(0) }
func (o once) Post() *rest.Request            { return o.Interface.Post().MaxRetries(0) }
func (o once) Put() *rest.Request             { return o.Interface.Put().MaxRetries(0) }
func (o once) Delete() *rest.Request          { return o.Interface.Delete().MaxRetries(0) }

var errNoAPIServer = errors.New("that is no API server")

// jsonOnly takes a success that is not told in JSON for an error: it is a proxy's
// page. The client would take it for success where it does not look inside, and an
// address that is still held for free.
type jsonOnly struct{ next http.RoundTripper }

func (j jsonOnly) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := j.next.RoundTrip(req)
	if err != nil || resp.StatusCode >= http.StatusMultipleChoices {
		return resp, err
	}
	contentType, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if contentType != "application/json" {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("answered with %q instead of JSON: %w", contentType, errNoAPIServer)
	}
	return resp, nil
}
