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

// ownKubeconfig is the file name, in confDir, of the plugin's own kubeconfig. If it
// exists it is used instead of the kubelet's.
const ownKubeconfig = "nv-ipam.kubeconfig"

// kubeletKubeconfigs are the paths at which distributions keep the kubelet's kubeconfig.
// The first that exists is used. Its server can be reached from the host without
// kube-proxy, and the kubelet renews its credentials.
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

// nodeUserPrefix begins the user name of a kubelet. nodeRole is the name of the
// ClusterRole and of the admission policy that say what a node may do.
const (
	nodeUserPrefix = "system:node:"
	nodeRole       = "crd-ipam-node"
)

// credentials are those with which the plugin asks the API server.
type credentials struct {
	config *rest.Config
	// file is the kubeconfig that they come from.
	file string
	// user is the user name that the credentials prove, and node the node that they
	// name. Both are empty if only the API server knows: with an exec credential
	// plugin, or a token that is not a JWT.
	user, node string
	// expires is zero if it is not known.
	expires time.Time
	// host is this host's name, if the node's name was taken from it.
	host string
}

// credentialsError: there are no usable credentials. The request is not at fault, but
// somebody has to repair them.
type credentialsError struct{ error }

// findCredentials reads the kubeconfig that the settings name. If they name none, it
// reads the first that exists. root is a prefix of the kubelet's paths, for tests.
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
		case isKubeletConfiguration(err):
		// The file was put there to be used. Trying the next one would hide that it is
		// broken, and that one may belong to another cluster.
		case !errors.Is(err, fs.ErrNotExist):
			return nil, credentialsError{err}
		}
	}
	return nil, credentialsError{fmt.Errorf("no credentials: none of %s exists; set ipam.kubeconfig, in the network configuration or in %s, to a kubeconfig file on this node, such as its kubelet's",
		strings.Join(tried, ", "), filepath.Join(s.ConfDir, confFile))}
}

func loadKubeconfig(path string) (*clientcmdapi.Config, error) {
	loaded, err := clientcmd.LoadFromFile(path)
	if pathErr := (*fs.PathError)(nil); err == nil || errors.As(err, &pathErr) {
		return loaded, err
	}
	return nil, fmt.Errorf("%s is not a kubeconfig: %w", path, err)
}

// isKubeletConfiguration reports whether a file that is no kubeconfig is the kubelet's --config:
// OpenShift has that where kubeadm has the kubeconfig.
func isKubeletConfiguration(err error) bool {
	return strings.Contains(err.Error(), `no kind "KubeletConfiguration" is registered`)
}

// newCredentials returns the credentials of a kubeconfig. It never uses a server or
// credentials that the file does not name.
func newCredentials(path string, loaded *clientcmdapi.Config) (*credentials, error) {
	err := clientcmd.ResolveLocalPaths(loaded)
	c := &credentials{file: path}
	if err == nil {
		c.config, err = clientcmd.NewDefaultClientConfig(*loaded, nil).ClientConfig()
	}
	if clientcmd.IsEmptyConfig(err) {
		err = errors.New("there is no current context with a cluster and a user") // the library's own error is advice for kubectl
	}
	if err == nil {
		err = c.identify()
	}
	if err != nil {
		return nil, credentialsError{fmt.Errorf("kubeconfig %s: %w", path, err)}
	}
	return c, nil
}

// identify finds out whose the credentials are, without a request. The API server looks
// at the certificate first, so this does, too.
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
	if file := c.config.BearerTokenFile; file != "" { // it takes precedence over an inline token
		var err error
		if token, err = os.ReadFile(file); err != nil {
			return err
		}
	}
	c.identifyToken(token)
	return nil
}

// readPairOnce reads certificate and key with one read if they are in one file, as in
// the kubelet's kubelet-client-current.pem. The kubelet may replace the file between two
// reads, and then the key would not fit the certificate.
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
	return nil, errors.New("the file contains no certificate")
}

// identifyToken reads the claims of a service account's token. It does not verify them:
// the API server does, and refuses claims in the name of another node.
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

// nodeName returns the name of this node's Node object. If the credentials name one, that
// is used: the API server would refuse claims under another name.
func (c *credentials) nodeName(configured string, log *slog.Logger) (string, error) {
	switch {
	case c.node != "" && configured != "" && configured != c.node:
		log.Warn("ipam.nodeName is not the node that the credentials name; using the name in the credentials",
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
	c.host = strings.ToLower(host)
	return c.host, nil
}

// explain adds to an error of the API server, or of the connection to it, what a person
// needs to repair it: the user that asked, the file with its credentials, and what may
// be wrong.
func (c *credentials) explain(err error) error {
	if err == nil {
		return nil
	}
	if c.host != "" && strings.Contains(err.Error(), "node "+c.host) {
		err = fmt.Errorf("%w; the node's name is that of this host, since the credentials of %s name no node and ipam.nodeName is not set", err, c.file)
	}
	advice := adviceOnRefusal(err)
	var badServer *tls.CertificateVerificationError
	var alert *net.OpError
	var request *url.Error
	rejected := apierrors.IsUnauthorized(err) ||
		errors.As(err, &alert) && alert.Op == "remote error" && !strings.Contains(err.Error(), "no application protocol") // it has no HTTP/1.1
	switch {
	case errors.As(err, &badServer):
		advice = c.adviceOnServerCertificate(badServer.Err)
	case strings.Contains(err.Error(), execFailed):
		advice = "the credential program in that file has failed; run it on this host to see why"
	// With TLS 1.3 the client has finished its handshake when the server looks at its certificate,
	// and the alert with the reason may be lost when the connection is closed.
	case c.expired() && (rejected || ledger.Closed(err)):
		advice = "they expired at " + c.expires.UTC().Format(time.RFC3339) + " and have not been renewed"
	case rejected && advice == "":
		advice = adviceOnToken
	case advice != "":
	case errors.Is(err, ledger.ErrUnavailable):
		return fmt.Errorf("%w (server %s, from %s: %s)", err, c.server(), c.file, adviceOnServer(err))
	case apierrors.IsUnexpectedServerError(err):
		return fmt.Errorf("%w (server %s, from %s: it does not answer as an API server; its address there has to begin with https://)", err, c.server(), c.file)
	case errors.As(err, &request): // no advice for it
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

// execFailed begins client-go's error of a credential program (users[].user.exec).
const execFailed = "getting credentials: "

// adviceOnServerCertificate says what may be wrong if the server's certificate is refused.
func (c *credentials) adviceOnServerCertificate(err error) string {
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &name):
		return "the server's address or tls-server-name in that file is not in the certificate of " + c.config.Host
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "the certificate of " + c.config.Host + " has expired, or the clock of this host is wrong"
	case len(c.config.CAData) == 0 && c.config.CAFile == "":
		return "that file has no certificate authority, and none of this host has signed for " + c.config.Host
	}
	return "the certificate authority in that file is not that of " + c.config.Host
}

func (c *credentials) expired() bool { return !c.expires.IsZero() && c.expires.Before(time.Now()) }

// server says where requests go, with the proxy if there is one: the error of a proxy
// that refuses a connection reads as if it came from the API server.
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

// adviceOnServer says what to check if the API server does not answer as it should.
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
