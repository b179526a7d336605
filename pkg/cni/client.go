// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"os"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/generated/clientset/versioned/scheme"
	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
)

// newClient empties the environment of this process (forgetEnvironment), and returns a client of
// the API server, which rejects answers of anything else.
//
// Only the kubeconfig says how to reach the server. The environment is the container
// runtime's: its proxy is for pulling images, and the authorities that it trusts are not
// meant for the API server.
func newClient(config *rest.Config) (clientv1alpha1.NvIpamV1alpha1Interface, error) {
	before := forgetEnvironment()
	if exec := config.ExecProvider; exec != nil { // the program may need the environment
		exec.Env = append(before, exec.Env...)
	}
	if config.Proxy == nil { // no proxy-url
		config.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil }
	}
	return clientFor(config)
}

// clientFor is newClient where the environment says nothing.
func clientFor(config *rest.Config) (clientv1alpha1.NvIpamV1alpha1Interface, error) {
	config.QPS = -1 // a process makes few requests
	// One after the other: HTTP/2 has nothing to offer, and would go on using a connection that has
	// died, after a request that got no answer.
	config.NextProtos = []string{"http/1.1"}
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return jsonOnly{next} })
	config.APIPath, config.GroupVersion = "/apis", &schema.GroupVersion{Group: v1alpha1.GroupName, Version: v1alpha1.GroupVersion.Version}
	config.NegotiatedSerializer = scheme.Codecs.WithoutConversion()
	c, err := rest.RESTClientFor(config)
	return clientv1alpha1.New(once{c}), err
}

// forgetEnvironment removes the environment and returns it: the libraries read
// HTTPS_PROXY, SSL_CERT_FILE, GODEBUG, KUBE_FEATURE_* and, in later versions, others.
// PATH stays, to find a credential program.
func forgetEnvironment() (before []clientcmdapi.ExecEnvVar) {
	for _, entry := range os.Environ() {
		name, value, _ := strings.Cut(entry, "=")
		before = append(before, clientcmdapi.ExecEnvVar{Name: name, Value: value})
		if name != "PATH" {
			_ = os.Unsetenv(name) // not Clearenv: after that Go still uses the old GODEBUG
		}
	}
	return before
}

// once sends each request once. The client's own retries ignore the time of a CNI call,
// and hide what the API server has answered. Each request tells the server how long the
// client waits, so that the server answers before that. A list sets its own time.
type once struct{ rest.Interface }

func (o once) Verb(verb string) *rest.Request { return bounded(o.Interface.Verb(verb)) }
func (o once) Get() *rest.Request             { return bounded(o.Interface.Get()) }
func (o once) Post() *rest.Request            { return bounded(o.Interface.Post()) }
func (o once) Put() *rest.Request             { return bounded(o.Interface.Put()) }
func (o once) Delete() *rest.Request          { return bounded(o.Interface.Delete()) }
func (o once) Patch(t types.PatchType) *rest.Request {
	return bounded(o.Interface.Patch(t))
}

func bounded(r *rest.Request) *rest.Request { return r.MaxRetries(0).Timeout(ledger.RequestTime) }

var errNoAPIServer = errors.New("the response did not come from a Kubernetes API server")

// jsonOnly returns an error for a success that is not JSON: it is the page of a proxy.
// The client does not read the answer of a delete, and would believe that an address
// was released.
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
