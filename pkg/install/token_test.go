// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/clientcmd"
)

// issuer is an API server's side of a TokenRequest.
type issuer struct {
	*fake.Clientset

	mu       sync.Mutex
	requests []time.Time
	fail     error
	bindTo   types.UID // in place of what is asked for
	lifetime time.Duration
}

func newIssuer() *issuer {
	i := &issuer{Clientset: fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "uid-1"}})}
	i.PrependReactor("create", "serviceaccounts", func(action clienttesting.Action) (bool, runtime.Object, error) {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.requests = append(i.requests, time.Now())
		if i.fail != nil {
			return true, nil, i.fail
		}
		spec := action.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenRequest).Spec
		if len(spec.Audiences) > 0 || spec.ExpirationSeconds == nil || spec.BoundObjectRef == nil || spec.BoundObjectRef.Kind != "Node" {
			return true, nil, apierrors.NewForbidden(corev1.Resource("serviceaccounts/token"), "plugin", errors.New("not as the admission policy demands"))
		}
		node := spec.BoundObjectRef.UID
		if i.bindTo != "" {
			node = i.bindTo
		}
		life := time.Duration(*spec.ExpirationSeconds) * time.Second
		if i.lifetime > 0 {
			life = i.lifetime
		}
		payload, _ := json.Marshal(map[string]any{
			"sub": "system:serviceaccount:ns:plugin", "iat": time.Now().Unix(), "exp": time.Now().Add(life).Unix(),
			"kubernetes.io": map[string]any{"node": map[string]any{"name": spec.BoundObjectRef.Name, "uid": node}},
		})
		text := "e30." + base64.RawURLEncoding.EncodeToString(payload) + ".c2ln"
		return true, &authenticationv1.TokenRequest{Status: authenticationv1.TokenRequestStatus{Token: text}}, nil
	})
	return i
}

// set changes what the issuer does from now on.
func (i *issuer) set(f func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	f()
}

func credentials(t *testing.T, i *issuer) *Credentials {
	t.Helper()
	dir := t.TempDir()
	return &Credentials{
		Kube: i, Namespace: "ns", ServiceAccount: "plugin", Node: "n", Server: "https://192.0.2.1:6443", CA: []byte("PEM"), Lifetime: 10 * time.Hour,
		Host: &Host{ConfDir: filepath.Join(dir, "conf"), DataDir: filepath.Join(dir, "data")},
	}
}

func ensure(t *testing.T, c *Credentials) time.Time {
	t.Helper()
	due, err := c.ensure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return due
}

func TestEnsureKeepsAGoodToken(t *testing.T) {
	i := newIssuer()
	c := credentials(t, i)
	due := ensure(t, c)
	before := read(t, c.tokenPath())
	if again := ensure(t, c); !again.Equal(due) {
		t.Errorf("due at %v, then at %v", due, again)
	}
	if read(t, c.tokenPath()) != before || len(i.requests) != 1 {
		t.Errorf("%d requests for a token that is good", len(i.requests))
	}
	for name, change := range map[string]func(){
		"of another service account": func() { c.ServiceAccount = "other" },
		"of another node":            func() { c.Node = "m" },
		"no token":                   func() { write(t, c.tokenPath(), "rubbish", 0o600) },
		"of a Node that was made anew": func() {
			_ = i.Tracker().Update(corev1.SchemeGroupVersion.WithResource("nodes"), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "uid-2"}}, "")
		},
	} {
		n := len(i.requests)
		node, account := c.Node, c.ServiceAccount
		change()
		_, _ = c.ensure(t.Context())
		if name != "of another node" && len(i.requests) != n+1 { // which does not exist
			t.Errorf("%s: it was kept", name)
		}
		c.Node, c.ServiceAccount = node, account
		ensure(t, c)
	}
}

func TestKubeconfig(t *testing.T) {
	c := credentials(t, newIssuer())
	ensure(t, c)
	config, err := clientcmd.BuildConfigFromFlags("", c.kubeconfigPath())
	if err != nil {
		t.Fatal(err)
	}
	if config.Host != c.Server || string(config.CAData) != "PEM" || config.BearerTokenFile != c.tokenPath() {
		t.Errorf("host %s, CA %q, token file %s", config.Host, config.CAData, config.BearerTokenFile)
	}
	for _, path := range []string{c.kubeconfigPath(), c.tokenPath()} {
		if drift, err := differs(path, dataSum([]byte(read(t, path))), 0o600, fileSum); err != nil || len(drift) > 0 {
			t.Errorf("%q, %v", drift, err)
		}
	}
	// Somebody changes it, and it is repaired; without a token there is none.
	write(t, c.kubeconfigPath(), "changed", 0o644)
	ensure(t, c)
	if _, err := clientcmd.LoadFromFile(c.kubeconfigPath()); err != nil {
		t.Errorf("not repaired: %v", err)
	}
	if left, err := c.Host.uninstall(); err != nil || len(left) > 0 || len(files(t, filepath.Dir(c.Host.ConfDir))) > 0 {
		t.Errorf("uninstall leaves %q, %q, %v", left, files(t, filepath.Dir(c.Host.ConfDir)), err)
	}
}

func TestEnsureRefuses(t *testing.T) {
	i := newIssuer()
	c := credentials(t, i)
	i.bindTo = "another"
	if _, err := c.ensure(t.Context()); err == nil || c.good(time.Now()) {
		t.Errorf("a token that is bound to another node: %v", err)
	}
	i.bindTo, i.fail = "", apierrors.NewBadRequest(`cannot bind token to a Node object as the "ServiceAccountTokenNodeBinding" feature-gate is disabled`)
	if _, err := c.ensure(t.Context()); err == nil || !apierrors.IsBadRequest(err) || c.good(time.Now()) {
		t.Errorf("a server that binds no tokens to nodes: %v", err)
	}
}

// In a bubble of fake time, a day and more of renewals.
func TestRunRenewsInTime(t *testing.T) {
	dir := credentials(t, newIssuer()).Host // made outside of the bubble
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer()
		c := &Credentials{Kube: i, Namespace: "ns", ServiceAccount: "plugin", Node: "n", Server: "https://x", Lifetime: 10 * time.Hour, Host: dir}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { c.run(ctx); close(done) }()
		for range 7 * 24 * 12 { // a week
			time.Sleep(5 * time.Minute) // of fake time
			if !c.good(time.Now()) {
				t.Fatalf("no good token at %v", time.Now())
			}
		}
		cancel()
		<-done
		jittered := map[time.Duration]bool{}
		for n := range i.requests[1:] {
			after := i.requests[n+1].Sub(i.requests[n])
			jittered[after] = true
			if after < 5*time.Hour || after > 8*time.Hour+time.Second {
				t.Errorf("renewed after %v of 10h", after)
			}
		}
		if len(i.requests) < 20 || len(jittered) < 3 {
			t.Errorf("%d requests with %d different pauses", len(i.requests), len(jittered))
		}
	})
}

func TestRunBacksOff(t *testing.T) {
	dir := credentials(t, newIssuer()).Host
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer()
		i.fail = errors.New("not today")
		c := &Credentials{Kube: i, Namespace: "ns", ServiceAccount: "plugin", Node: "n", Server: "https://x", Lifetime: 10 * time.Hour, Host: dir}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { c.run(ctx); close(done) }()
		time.Sleep(time.Hour) // of fake time
		synctest.Wait()
		if n := len(i.requests); n < 40 || n > 90 {
			t.Errorf("%d requests in an hour, want one every 60 to 90 s after some quick ones", n)
		}
		i.set(func() { i.fail = nil })
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if !c.good(time.Now()) {
			t.Error("no token, though the server gives one")
		}
		cancel()
		<-done
	})
}
