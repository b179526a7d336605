// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// authority signs all certificates of one cluster.
type authority struct {
	cert    *x509.Certificate
	key     crypto.Signer
	certPEM []byte
}

func newAuthority() (*authority, error) {
	template := newTemplate(pkix.Name{CommonName: "crd-ipam-cluster"})
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &authority{cert: cert, key: key, certPEM: encode("CERTIFICATE", der)}, err
}

func newTemplate(subject pkix.Name) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62)) // never fails
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      subject,
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(1, 0, 0),
	}
}

// issue returns a certificate for clients and servers alike, with its key.
func (a *authority) issue(user string, groups []string, ips ...net.IP) (certPEM, keyPEM []byte, err error) {
	template := newTemplate(pkix.Name{CommonName: user, Organization: groups})
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	template.IPAddresses = ips
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	return encode("CERTIFICATE", der), encode("EC PRIVATE KEY", keyDER), err
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// kubeconfig writes a kubeconfig file with a new certificate in it.
func (a *authority) kubeconfig(path, user string, groups ...string) error {
	cert, key, err := a.issue(user, groups)
	if err != nil {
		return err
	}
	return a.writeKubeconfig(path, &clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key})
}

func (a *authority) writeKubeconfig(path string, user *clientcmdapi.AuthInfo) error {
	return clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"crd-ipam": {Server: serverURL, CertificateAuthorityData: a.certPEM}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"user": user},
		Contexts:       map[string]*clientcmdapi.Context{"crd-ipam": {Cluster: "crd-ipam", AuthInfo: "user"}},
		CurrentContext: "crd-ipam",
	}, path)
}

// kubeletCredentials writes what kubeadm gives a kubelet: kubelet.conf, and the
// certificate with its key in one file that it refers to. root is the node's.
func (a *authority) kubeletCredentials(root, node string) error {
	const pair = "/var/lib/kubelet/pki/kubelet-client-current.pem"
	cert, key, err := a.issue("system:node:"+node, []string{"system:nodes"})
	if err != nil {
		return err
	}
	if err := write(filepath.Join(root, pair), string(cert)+string(key)); err != nil {
		return err
	}
	return a.writeKubeconfig(filepath.Join(root, "etc/kubernetes/kubelet.conf"),
		&clientcmdapi.AuthInfo{ClientCertificate: pair, ClientKey: pair})
}

// write writes a file that only root may read, and the directories above it.
func write(path, content string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(content), 0o600)
}
