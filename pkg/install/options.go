// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/claim"
	"github.com/crd-ipam/crd-ipam/pkg/cni"
)

// Options are the flags that say what is put where on a host.
type Options struct {
	// Node is the name of the host's Node object, Namespace that of the pools.
	Node, Namespace string
	// DataDir is the directory that the plugin keeps its hint in.
	DataDir string
	// CallTimeout is that of nv-ipam's plugin, in seconds.
	CallTimeout int
	// LossGrace is the plugin's: see claim.Claimer.
	LossGrace time.Duration
	// ReleaseCooldown is the plugin's: see claim.Claimer.
	ReleaseCooldown time.Duration

	source        string
	skipBinary    bool
	skipConf      bool
	binDir        string
	confDir       string
	hostRoot      string
	logFile       string
	logLevel      string
	forcePoolName bool
	kubeconfig    string
	daemonSocket  string

	tokenAccount  string
	tokenServer   string
	tokenLifetime time.Duration
}

// AddFlags adds the flags, which are nv-ipam's where it has such.
func (o *Options) AddFlags(fs *flag.FlagSet) {
	fs.StringVar(&o.Node, "node-name", os.Getenv("NODE_NAME"), "name of this host's Node object; default is $NODE_NAME")
	fs.StringVar(&o.Namespace, "ippools-namespace", "kube-system", "namespace of the pools and of their allocations")
	fs.StringVar(&o.source, "cni-nv-ipam-bin-file", "/nv-ipam", "the plugin's binary, to be copied to the host")
	fs.BoolVar(&o.skipBinary, "cni-skip-nv-ipam-binary-copy", false, "do not copy the plugin's binary: the host has it")
	fs.BoolVar(&o.skipConf, "cni-skip-nv-ipam-config-creation", false, "do not write nv-ipam.conf")
	fs.StringVar(&o.binDir, "cni-bin-dir", "/opt/cni/bin", "directory of the host's CNI plugins")
	fs.StringVar(&o.confDir, "cni-conf-dir", "/etc/cni/net.d/nv-ipam.d", "directory of nv-ipam.conf")
	fs.StringVar(&o.DataDir, "cni-data-dir", cni.DefaultDataDir, "directory that the plugin keeps its hint in")
	fs.StringVar(&o.hostRoot, "host-root", "", "where the host's root directory is mounted, with the host's network: the plugin's STATUS is asked there, and this program is ready only if that is good; --cni-bin-dir and --cni-conf-dir have to be the host's own paths then. Empty asks for nothing")
	fs.StringVar(&o.logFile, "cni-log-file", "/var/log/nv-ipam-cni.log", "the plugin's log file")
	fs.StringVar(&o.logLevel, "cni-log-level", "info", "the plugin's log level: verbose, debug, info, warning, error or panic")
	fs.BoolVar(&o.forcePoolName, "cni-force-pool-name", false, "make the plugin refuse a network that names no pool, instead of taking the network's name")
	fs.StringVar(&o.kubeconfig, "cni-kubeconfig", "", "path on the host of the plugin's kubeconfig; empty lets the plugin find the kubelet's credentials")
	fs.StringVar(&o.daemonSocket, "cni-daemon-socket", "unix:///var/lib/cni/nv-ipam/daemon.sock", "written to nv-ipam.conf for nv-ipam's own plugin, until that is replaced and after a rollback; the plugin has no daemon")
	fs.IntVar(&o.CallTimeout, "cni-daemon-call-timeout", 5, "nv-ipam's call timeout, in seconds: written to nv-ipam.conf as above, and what a call may take that is under way during the migration")
	fs.DurationVar(&o.LossGrace, "loss-grace", claim.DefaultLossGrace, "how long the plugin gives out no address after it has found that the API server has lost allocations of this node, so that the other nodes write theirs again first; must be the same on all nodes and, as --loss-grace of ipam-controller, in the controller")
	fs.DurationVar(&o.ReleaseCooldown, "released-ip-cooldown", 0, "how long an address rests after its release before another pod gets it, from 0s to 24h in whole seconds, for pools without spec.releaseCooldown")
	fs.StringVar(&o.tokenAccount, "token-service-account", "", "crd-ipam-plugin or NAMESPACE/crd-ipam-plugin: the service account whose token, bound to this node, is kept for the plugin; for clusters where the kubelet's credentials cannot be used")
	fs.StringVar(&o.tokenServer, "token-server", "", "https://host:port of the API server in the plugin's kubeconfig; default is that of the pod's environment")
	fs.DurationVar(&o.tokenLifetime, "token-lifetime", 24*time.Hour, "lifetime of that token, 10m to 24h; it is renewed at between 50 % and 80 % of it")
}

// Check returns an error that names the flag and the value that cannot be.
func (o *Options) Check() error {
	switch {
	case o.hostRoot != "" && !filepath.IsAbs(o.hostRoot):
		return fmt.Errorf("--host-root must be an absolute path, not %q", o.hostRoot)
	case o.Namespace == "":
		return errors.New("--ippools-namespace must not be empty")
	case o.LossGrace <= 0:
		return fmt.Errorf("--loss-grace must be positive: %v", o.LossGrace)
	case o.ReleaseCooldown < 0 || o.ReleaseCooldown > v1alpha1.MaxCooldown || o.ReleaseCooldown%time.Second != 0:
		return fmt.Errorf("--released-ip-cooldown must be from 0s to %v in whole seconds, not %v", v1alpha1.MaxCooldown, o.ReleaseCooldown)
	case o.CallTimeout < 0:
		return fmt.Errorf("--cni-daemon-call-timeout must not be negative: %d", o.CallTimeout)
	case o.tokenAccount != "" && o.Node == "":
		return errors.New("--token-service-account needs --node-name")
	case o.tokenServer != "" && !strings.HasPrefix(o.tokenServer, "https://"):
		return fmt.Errorf("--token-server must be https://host:port, not %q", o.tokenServer)
	}
	return o.checkToken()
}

// NewHost returns the host, and what is to be put there.
func (o *Options) NewHost() *Host {
	h := &Host{Source: o.source, BinDir: o.binDir, ConfDir: o.confDir, DataDir: o.DataDir, FormerDataDirs: []string{cni.DefaultDataDir}, Root: o.hostRoot}
	if o.skipBinary {
		h.Source = ""
	}
	if !o.skipConf {
		h.Settings = &Settings{
			Settings: cni.Settings{
				LogFile: o.logFile, LogLevel: o.logLevel, PoolsNamespace: o.Namespace, NodeName: o.Node,
				ForcePoolName: &o.forcePoolName, Kubeconfig: o.kubeconfig, DataDir: o.DataDir,
			},
			DaemonSocket: o.daemonSocket, DaemonCallTimeoutSeconds: o.CallTimeout,
		}
		if o.LossGrace != claim.DefaultLossGrace {
			h.Settings.LossGrace = o.LossGrace.String()
		}
		if o.ReleaseCooldown > 0 {
			h.Settings.ReleaseCooldown = o.ReleaseCooldown.String()
		}
	}
	return h
}

// Tokens reports whether the plugin is to have a token of a service account.
func (o *Options) Tokens() bool { return o.tokenAccount != "" }

// NewCredentials returns the credentials that are kept for the plugin on a host, and has
// the host's configuration name them.
func (o *Options) NewCredentials(config *rest.Config, host *Host) (*Credentials, error) {
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	if err := rest.LoadTLSFiles(config); err != nil {
		return nil, fmt.Errorf("reading the cluster's CA: %w", err)
	}
	server := o.tokenServer
	if at := os.Getenv("KUBERNETES_SERVICE_HOST"); server == "" && at != "" {
		server = "https://" + net.JoinHostPort(at, os.Getenv("KUBERNETES_SERVICE_PORT"))
	}
	if server == "" {
		return nil, errors.New("--token-service-account needs --token-server outside of a cluster")
	}
	namespace, name := o.account()
	c := &Credentials{
		Kube: kube, Namespace: namespace, ServiceAccount: name, Node: o.Node,
		Server: server, CA: config.CAData, Lifetime: o.tokenLifetime, Host: host,
	}
	host.Beside = c.files()
	if host.Settings != nil {
		host.Settings.Kubeconfig = cmp.Or(o.kubeconfig, c.kubeconfigPath())
	}
	return c, nil
}

// The only service account that the manifests' role and policies know, and what a
// token of it may live for.
const (
	tokenAccount     = "crd-ipam-plugin"
	minTokenLifetime = 10 * time.Minute
	maxTokenLifetime = 24 * time.Hour // as the policy crd-ipam-plugin-token
)

// checkToken refuses what the admission policies do not know: the writes of any other
// account would not be confined to its node, and its tokens could be had by any node.
func (o *Options) checkToken() error {
	if o.tokenLifetime < minTokenLifetime || o.tokenLifetime > maxTokenLifetime {
		return fmt.Errorf("--token-lifetime must be between %v and %v, not %v: it is renewed long before its end, and whoever steals it has it for as long", minTokenLifetime, maxTokenLifetime, o.tokenLifetime)
	}
	if o.tokenAccount == "" {
		return nil
	}
	namespace, name := o.account()
	if name != tokenAccount || namespace == "" || strings.Contains(name, "/") {
		return fmt.Errorf("--token-service-account must be %s or NAMESPACE/%s, not %q: the admission policies crd-ipam-node and crd-ipam-plugin-token keep only that account to its own node", tokenAccount, tokenAccount, o.tokenAccount)
	}
	return nil
}

// account returns namespace and name of the token's service account.
func (o *Options) account() (namespace, name string) {
	namespace, name, ok := strings.Cut(o.tokenAccount, "/")
	if !ok {
		return o.Namespace, o.tokenAccount
	}
	return namespace, name
}
