// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/klog/v2"
)

// Names of what Credentials writes to the configuration directory.
const (
	kubeconfigName = "nv-ipam.kubeconfig"
	tokenName      = "nv-ipam.token"
)

// Credentials are a token of a service account, and a kubeconfig that names its
// file, for a plugin that cannot use the kubelet's.
//
// The token is bound to the node, not to a pod: it lives on when the installer's
// pod goes, and dies with the Node object. It is renewed when between a half and
// four fifths of its life are over, so that the nodes of a cluster do not all ask
// at once, and an installer that is away for a while does no harm.
type Credentials struct {
	Kube kubernetes.Interface
	// Namespace and ServiceAccount whose token it is.
	Namespace, ServiceAccount string
	// Node that the token is bound to.
	Node string
	// Server that the plugin is to talk to, as https://host:port, and the
	// certificates (PEM) of who signed its certificate.
	Server string
	CA     []byte
	// Lifetime that is asked for. The server may grant another one.
	Lifetime time.Duration
	// Host whose configuration directory the files go to.
	Host *Host

	mu sync.Mutex // one ensure at a time
}

// kubeconfigPath is the path of the kubeconfig.
func (c *Credentials) kubeconfigPath() string { return filepath.Join(c.Host.ConfDir, kubeconfigName) }

// files are the paths of what ensure writes.
func (c *Credentials) files() []string { return []string{c.kubeconfigPath(), c.tokenPath()} }

func (c *Credentials) tokenPath() string { return filepath.Join(c.Host.ConfDir, tokenName) }

// lookInterval is how often is looked whether the files and the Node are as they
// were: a Node that was made anew makes the token worthless.
const lookInterval = 10 * time.Minute

// run keeps the credentials good until ctx ends.
func (c *Credentials) run(ctx context.Context) {
	fresh := wait.Backoff{Duration: time.Second, Factor: 2, Jitter: 0.5, Steps: 10, Cap: time.Minute}
	backoff := fresh
	for {
		due, err := c.ensure(ctx)
		pause := wait.Jitter(lookInterval/2, 1)
		switch {
		case err != nil && ctx.Err() == nil:
			pause = backoff.Step()
			klog.FromContext(ctx).Error(err, "Token cannot be renewed", "retryAfter", pause, "stillGood", c.good(time.Now()))
		case err == nil:
			backoff = fresh
			pause = min(pause, max(time.Until(due), time.Second))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// good reports whether the plugin has a token that has not expired.
func (c *Credentials) good(now time.Time) bool {
	t, err := c.read()
	return err == nil && now.Before(t.expires())
}

// ensure writes the kubeconfig, and a new token where there is none that is good
// for long enough. It returns when the token is to be renewed.
func (c *Credentials) ensure(ctx context.Context) (due time.Time, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	node, err := c.Kube.CoreV1().Nodes().Get(ctx, c.Node, metav1.GetOptions{})
	if err != nil {
		return due, fmt.Errorf("reading node %s: %w", c.Node, err)
	}
	t, err := c.read()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		klog.FromContext(ctx).Info("Token that is there is replaced", "reason", err.Error())
	}
	if err != nil || !c.fits(t, node.UID) || !time.Now().Before(t.due()) {
		if t, err = c.renew(ctx, node.UID); err != nil {
			return due, err
		}
	}
	return t.due(), c.writeKubeconfig() // never without its token
}

func (c *Credentials) renew(ctx context.Context, node types.UID) (*token, error) {
	seconds := int64(c.Lifetime / time.Second)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &seconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{Kind: "Node", APIVersion: "v1", Name: c.Node, UID: node},
	}}
	answer, err := c.Kube.CoreV1().ServiceAccounts(c.Namespace).CreateToken(ctx, c.ServiceAccount, request, metav1.CreateOptions{})
	if apierrors.IsBadRequest(err) && strings.Contains(err.Error(), "ServiceAccountTokenNodeBinding") {
		return nil, fmt.Errorf("this API server does not bind tokens to nodes, which Kubernetes does from 1.31 on, and a token that is not bound would be good for every node: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("requesting a token of service account %s/%s: %w", c.Namespace, c.ServiceAccount, err)
	}
	t, err := parseToken(answer.Status.Token)
	switch {
	case err != nil:
		return nil, fmt.Errorf("the API server's token: %w", err)
	case !c.fits(t, node):
		return nil, fmt.Errorf("the API server's token is one of %s for node %q and not bound as requested", t.Subject, t.Kubernetes.Node.Name)
	}
	if err := c.Host.note(c.tokenPath(), ""); err != nil {
		return nil, err
	}
	if err := WriteFile(c.tokenPath(), []byte(t.text), secretMode); err != nil {
		return nil, fmt.Errorf("writing the token: %w", err)
	}
	klog.FromContext(ctx).Info("Renewed the token", "serviceAccount", c.Namespace+"/"+c.ServiceAccount, "node", c.Node, "expires", t.expires(), "due", t.due())
	return t, nil
}

// fits reports whether a token is of the service account and bound to the node.
func (c *Credentials) fits(t *token, node types.UID) bool {
	return t.Subject == "system:serviceaccount:"+c.Namespace+":"+c.ServiceAccount &&
		t.Kubernetes.Node.Name == c.Node && t.Kubernetes.Node.UID == node
}

// drift says what is not as ensure leaves it, as far as can be seen from here.
func (c *Credentials) drift() ([]string, error) {
	data, err := c.kubeconfig()
	if err != nil {
		return nil, err
	}
	drift, err := differs(c.kubeconfigPath(), dataSum(data), secretMode, fileSum)
	if err == nil && !c.good(time.Now()) {
		drift = append(drift, c.tokenPath()+" has no token that is good")
	}
	return drift, err
}

func (c *Credentials) kubeconfig() ([]byte, error) {
	const name = "crd-ipam"
	config := clientcmdapi.NewConfig()
	config.Clusters[name] = &clientcmdapi.Cluster{Server: c.Server, CertificateAuthorityData: c.CA}
	// Relative to the kubeconfig: the directory may have another path on the host
	// than in the installer's container.
	config.AuthInfos[name] = &clientcmdapi.AuthInfo{TokenFile: tokenName}
	config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	config.CurrentContext = name
	return clientcmd.Write(*config)
}

func (c *Credentials) writeKubeconfig() error {
	data, err := c.kubeconfig()
	if err != nil {
		return err
	}
	if drift, err := differs(c.kubeconfigPath(), dataSum(data), secretMode, fileSum); err == nil && len(drift) == 0 {
		return nil
	}
	if err := c.Host.note(c.kubeconfigPath(), dataSum(data)); err != nil {
		return err
	}
	return WriteFile(c.kubeconfigPath(), data, secretMode)
}

func (c *Credentials) read() (*token, error) {
	text, err := readRegular(c.tokenPath())
	if err != nil {
		return nil, err
	}
	return parseToken(strings.TrimSpace(string(text)))
}

// token is what is read of a service account's token. Its signature is for the
// API server to check.
type token struct {
	text string

	Subject    string `json:"sub"`
	IssuedAt   int64  `json:"iat"`
	Expires    int64  `json:"exp"`
	Kubernetes struct {
		Node struct {
			Name string    `json:"name"`
			UID  types.UID `json:"uid"`
		} `json:"node"`
	} `json:"kubernetes.io"`
}

func parseToken(text string) (*token, error) {
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		return nil, errors.New("is not a JSON web token")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	t := &token{text: text}
	if err := json.Unmarshal(payload, t); err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	if t.Expires <= t.IssuedAt {
		return nil, errors.New("has no lifetime")
	}
	return t, nil
}

func (t *token) expires() time.Time { return time.Unix(t.Expires, 0) }

// due is when the token is to be renewed. The jitter comes from the token itself,
// so that it is the same after a restart.
func (t *token) due() time.Time {
	sum := fnv.New64a()
	_, _ = sum.Write([]byte(t.text)) // never fails
	jitter := rand.New(rand.NewPCG(sum.Sum64(), 0))
	life := t.Expires - t.IssuedAt
	early, late := life*5/10, life*8/10
	return time.Unix(t.IssuedAt+early+jitter.Int64N(late-early+1), 0)
}
