// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/crd-ipam/crd-ipam/pkg/ledger"
)

// ownKubeconfig, in confDir, is the plugin's own kubeconfig where it has one: of
// all that is looked for, it comes first.
const ownKubeconfig = "nv-ipam.kubeconfig"

// kubeletKubeconfigs are where distributions keep the kubelet's kubeconfig. The
// first that exists is used. The server that it names is reachable from the host,
// without kube-proxy, and the kubelet keeps its credentials fresh.
var kubeletKubeconfigs = []string{
	"/etc/kubernetes/kubelet.conf",                          // kubeadm, kind
	"/var/lib/kubelet/kubeconfig",                           // OpenShift, GKE, EKS, AKS, kops
	"/var/lib/rancher/k3s/agent/kubelet.kubeconfig",         // K3s
	"/var/lib/rancher/rke2/agent/kubelet.kubeconfig",        // RKE2
	"/var/snap/microk8s/current/credentials/kubelet.config", // MicroK8s
	"/etc/kubernetes/kubeconfig-kubelet",                    // Talos
	"/var/lib/k0s/kubelet.conf",                             // k0s
	"/etc/kubernetes/kubelet/kubeconfig",                    // Bottlerocket
	"/var/lib/kubelet/kubeconfig-real",                      // Gardener
}

// What makes a user a kubelet, and what the role and the admission policy are
// called that say what one may do.
const (
	nodeUserPrefix = "system:node:"
	nodeRole       = "crd-ipam-node"
)

// credentials are what the plugin shows to the API server.
type credentials struct {
	config *rest.Config
	// file is the kubeconfig that they come from.
	file string
	// user is whom the API server will take the plugin for, and node the node in
	// that name. Both are empty where only the API server knows: with an exec
	// credential, or a token that is no JWT.
	user, node string
	// expires is zero where that is not known.
	expires time.Time
}

// credentialsError says that there are no credentials to use: no fault of the
// request, but somebody has to do something about it.
type credentialsError struct{ error }

// findCredentials reads the kubeconfig that the settings name, and only that;
// where they name none, the first one that exists. root stands before the
// kubelet's paths: empty but in tests.
func findCredentials(s Settings, root string) (*credentials, error) {
	if s.Kubeconfig != "" {
		loaded, err := loadKubeconfig(s.Kubeconfig)
		if err != nil {
			return nil, credentialsError{fmt.Errorf("ipam.kubeconfig: %w", err)}
		}
		return newCredentials(s.Kubeconfig, loaded)
	}
	tried := []string{filepath.Join(s.ConfDir, ownKubeconfig)}
	for _, path := range kubeletKubeconfigs {
		tried = append(tried, filepath.Join(root, path))
	}
	for _, path := range tried {
		loaded, err := loadKubeconfig(path)
		switch {
		case err == nil:
			return newCredentials(path, loaded)
		// Whoever put a file there meant it to be used: to go on to the next one
		// would hide that it is broken, and may speak to another cluster.
		case !errors.Is(err, fs.ErrNotExist):
			return nil, credentialsError{err}
		}
	}
	return nil, credentialsError{fmt.Errorf("no credentials to claim addresses with: none of %s exists; set ipam.kubeconfig, in the network configuration or in %s, to a kubeconfig file on this node, such as its kubelet's",
		strings.Join(tried, ", "), filepath.Join(s.ConfDir, confFile))}
}

func loadKubeconfig(path string) (*clientcmdapi.Config, error) {
	loaded, err := clientcmd.LoadFromFile(path)
	if pathErr := (*fs.PathError)(nil); err == nil || errors.As(err, &pathErr) {
		return loaded, err
	}
	return nil, fmt.Errorf("%s is not a kubeconfig: %w", path, err)
}

// newCredentials completes what a kubeconfig says. It never falls back to a
// server or to credentials that are not in there.
func newCredentials(path string, loaded *clientcmdapi.Config) (*credentials, error) {
	err := clientcmd.ResolveLocalPaths(loaded)
	c := &credentials{file: path}
	if err == nil {
		c.config, err = clientcmd.NewDefaultClientConfig(*loaded, nil).ClientConfig()
	}
	if clientcmd.IsEmptyConfig(err) {
		err = errors.New("there is no current context with a cluster and a user") // instead of advice for kubectl
	}
	if err == nil {
		err = c.identify()
	}
	if err != nil {
		return nil, credentialsError{fmt.Errorf("kubeconfig %s: %w", path, err)}
	}
	return c, nil
}

// identify finds out who the credentials are for without asking anybody. The API
// server looks at the certificate first.
func (c *credentials) identify() error {
	if err := c.readPairOnce(); err != nil {
		return err
	}
	if data := c.config.CertData; len(data) > 0 {
		cert, err := firstCertificate(data)
		if err != nil {
			return fmt.Errorf("client certificate %s: %w", c.config.CertFile, err)
		}
		c.user, c.expires = cert.Subject.CommonName, cert.NotAfter
		c.node, _ = strings.CutPrefix(c.user, nodeUserPrefix)
		if c.node == c.user {
			c.node = ""
		}
		return nil
	}
	token := []byte(c.config.BearerToken)
	if file := c.config.BearerTokenFile; file != "" { // which wins over an inline one
		var err error
		if token, err = os.ReadFile(file); err != nil {
			return err
		}
	}
	c.identifyToken(token)
	return nil
}

// readPairOnce reads certificate and key with one read where they are in one
// file, as in the kubelet's kubelet-client-current.pem. The kubelet replaces it
// while this runs, and a certificate does not go with the key of the next one.
func (c *credentials) readPairOnce() error {
	t := &c.config.TLSClientConfig
	if t.CertFile == "" || len(t.CertData) > 0 {
		return nil
	}
	data, err := os.ReadFile(t.CertFile)
	if err != nil {
		return err
	}
	t.CertData = data
	if t.KeyFile == t.CertFile && len(t.KeyData) == 0 {
		t.KeyData = data
	}
	return nil
}

func firstCertificate(data []byte) (*x509.Certificate, error) {
	for block, tail := pem.Decode(data); block != nil; block, tail = pem.Decode(tail) {
		if block.Type == "CERTIFICATE" {
			return x509.ParseCertificate(block.Bytes)
		}
	}
	return nil, errors.New("there is no certificate in it")
}

// identifyToken reads the claims of a service account's token. Nothing is
// verified: that is up to the API server, which refuses the plugin if it claims
// addresses for another node than its own.
func (c *credentials) identifyToken(token []byte) {
	parts := bytes.Split(bytes.TrimSpace(token), []byte("."))
	if len(parts) != 3 {
		return
	}
	payload, err := base64.RawURLEncoding.DecodeString(string(parts[1]))
	if err != nil {
		return
	}
	var claims struct {
		Subject    string  `json:"sub"`
		Expires    float64 `json:"exp"` // seconds
		Kubernetes struct {
			Node struct {
				Name string `json:"name"`
			} `json:"node"`
		} `json:"kubernetes.io"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		return
	}
	c.user, c.node = claims.Subject, claims.Kubernetes.Node.Name
	if claims.Expires > 0 {
		c.expires = time.Unix(int64(claims.Expires), 0)
	}
}

// nodeName returns the name of this node's Node object. The credentials know
// best: under another name the API server would refuse every claim.
func (c *credentials) nodeName(configured string, log *slog.Logger) (string, error) {
	switch {
	case c.node != "" && configured != "" && configured != c.node:
		log.Warn("ipam.nodeName is not the node that the credentials are for; going by the credentials",
			"configured", configured, "node", c.node, "kubeconfig", c.file)
		return c.node, nil
	case c.node != "":
		return c.node, nil
	case configured != "":
		return configured, nil
	}
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("the credentials of %s name no node, ipam.nodeName is not set and there is no hostname: %w", c.file, err)
	}
	return strings.ToLower(host), nil
}

// explain adds to an error that is about who asks, or about what the API server
// makes of it, what a person needs to do something about it: as whom was asked, with
// which file, and what may be wrong.
func (c *credentials) explain(err error) error {
	advice := adviceOnRefusal(err)
	var badServer *tls.CertificateVerificationError
	var alert *net.OpError
	var request *url.Error
	rejected := apierrors.IsUnauthorized(err) || errors.As(err, &alert) && alert.Op == "remote error"
	switch {
	case errors.As(err, &badServer):
		advice = "the certificate authority in there is not that of " + c.config.Host
	case c.expired() && (rejected || closedAtOnce(err)):
		advice = "they have expired at " + c.expires.UTC().Format(time.RFC3339) + ", and whoever renews them has not"
	case rejected && advice == "":
		advice = adviceOnToken
	case advice != "":
	case errors.Is(err, ledger.ErrUnavailable):
		return fmt.Errorf("%w (server %s, from %s: %s)", err, c.server(), c.file, adviceOnServer(err))
	case errors.As(err, &request): // whose own words have to do
		return fmt.Errorf("%w (server %s, from %s)", err, c.server(), c.file)
	default:
		return err
	}
	user := "a user that only the API server knows"
	if c.user != "" {
		user = c.user
	}
	return fmt.Errorf("%w (asked as %s, with the credentials of %s: %s)", err, user, c.file, advice)
}

func (c *credentials) expired() bool { return !c.expires.IsZero() && c.expires.Before(time.Now()) }

// closedAtOnce reports whether the server has closed the connection before the first
// request. So it looks, now and then, where it rejects a certificate: with TLS 1.3 the
// client has finished by then, and the alert that says why may come too late.
func closedAtOnce(err error) bool {
	return err != nil && strings.Contains(err.Error(), "http2: client conn could not be established")
}

// server says where requests go: a proxy that refuses a connection gives only a
// status text, which reads as if it were the API server's.
func (c *credentials) server() string {
	if c.config.Proxy == nil {
		return c.config.Host
	}
	req, err := http.NewRequest(http.MethodGet, c.config.Host, nil)
	if err != nil {
		return c.config.Host
	}
	if proxy, err := c.config.Proxy(req); err == nil && proxy != nil {
		return c.config.Host + " through the kubeconfig's proxy-url " + proxy.Redacted()
	}
	return c.config.Host
}

// adviceOnServer says what to look at where the API server does not answer as it
// should.
func adviceOnServer(err error) string {
	var dns *net.DNSError
	var timeout net.Error
	switch {
	case errors.As(err, &dns):
		return "this host cannot resolve that name; see its /etc/resolv.conf"
	case utilnet.IsConnectionRefused(err):
		return "nothing listens there; is the API server running?"
	case apierrors.IsTooManyRequests(err):
		return "it throttles this node; see its flow schemas and priority levels, and manifests/components/priority-and-fairness"
	case apierrors.IsNotFound(err):
		return "either something else answers there, or the CRDs of nv-ipam.nvidia.com are not installed"
	case apierrors.IsUnexpectedServerError(err):
		return adviceOnProxy + ", or it is starting"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "it does not answer in time; is it overloaded, or does a firewall between this host and it drop packets?"
	}
	return "it answers, but cannot serve; see its own log"
}
