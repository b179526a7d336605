// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/crd-ipam/crd-ipam/cmd/internal/program"
	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/claim"
	"github.com/crd-ipam/crd-ipam/pkg/cni"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/install"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/migrate"
)

// installer is one host.
type installer struct {
	*options
	log  *slog.Logger
	host *install.Host
	// credentials are nil where the plugin uses the kubelet's.
	credentials *install.Credentials
	installed   atomic.Bool
}

func run(ctx context.Context, o *options, log *slog.Logger) error {
	i := &installer{options: o, log: log, host: o.host()}
	switch {
	case o.uninstall:
		return i.remove()
	case o.dryRun:
		return i.plan(ctx)
	case o.restoreOnly:
		return i.look(ctx)
	case o.migrate == migrateOnly:
		return i.claim(ctx)
	}
	if o.tokenAccount != "" {
		var err error
		if i.credentials, err = o.credentials(i.host); err != nil {
			return err
		}
		if o.cniKubeconfig == "" && i.host.Settings != nil {
			i.host.Settings.Kubeconfig = i.credentials.Kubeconfig()
		}
	}
	if o.once {
		return i.setUp(ctx)
	}
	return i.stay(ctx)
}

// host says where things are put.
func (o *options) host() *install.Host {
	h := &install.Host{Source: o.source, BinDir: o.binDir, ConfDir: o.confDir, DataDir: o.dataDir}
	if o.skipBinary {
		h.Source = ""
	}
	if !o.skipConf {
		h.Settings = &install.Settings{
			Settings: cni.Settings{
				LogFile: o.logFile, LogLevel: o.logLevel, PoolsNamespace: o.namespace, NodeName: o.nodeName,
				ForcePoolName: &o.forcePoolName, Kubeconfig: o.cniKubeconfig, DataDir: o.dataDir,
			},
			DaemonSocket: o.daemonSocket, DaemonCallTimeoutSeconds: o.daemonTimeout,
		}
	}
	return h
}

// setUp makes the host as it should be, and takes over what nv-ipam has given
// where that has not been done yet.
func (i *installer) setUp(ctx context.Context) error {
	if i.credentials != nil { // which the plugin will need
		if _, err := i.credentials.Ensure(ctx); err != nil && !i.credentials.Good(time.Now()) {
			return err
		}
	}
	m, err := i.due()
	if err != nil {
		return err
	}
	if m == nil {
		// A migration that was killed at its very end, or that nobody wants to go on
		// with, must not keep addresses from pods.
		err = errors.Join(hint.Open(i.dataDir, "", i.namespace, i.log).ResumeADDs(), i.host.Install(ctx))
	} else {
		err = i.migrateAndInstall(ctx, m)
	}
	if err != nil {
		return err
	}
	i.installed.Store(true)
	i.log.Info("installed", "binary", i.host.Binary(), "conf", i.host.Conf(), "version", version)
	return nil
}

// due returns the migration that has to be done around the switch, or nil. It is
// also due where somebody has put nv-ipam's plugin back: that may be giving
// addresses this very moment.
func (i *installer) due() (*migrate.Migrator, error) {
	if i.migrate == migrateNever || !exists(i.storeFile) {
		return nil, nil
	}
	m, err := i.migrator()
	if err != nil {
		return nil, err
	}
	needed, err := m.Needed()
	if err != nil {
		return nil, err
	}
	foreign, err := i.host.Foreign()
	if err != nil {
		return nil, err
	}
	if !needed && !foreign {
		return nil, i.repeatConflicts()
	}
	return m, nil
}

func (i *installer) migrateAndInstall(ctx context.Context, m *migrate.Migrator) error {
	i.log.Info("migrating from nv-ipam", "store", i.storeFile, "node", i.nodeName, "namespace", i.namespace)
	journal, err := m.Run(ctx, i.host.Install)
	if journal != nil {
		i.log.Info("migration: "+journal.String(), "finished", err == nil, "journal", i.storeFile+migrate.JournalSuffix)
	}
	if err != nil {
		return fmt.Errorf("migrating from nv-ipam: %w", err)
	}
	if i.migrate == migrateForce {
		i.migrate = migrateAuto // that was it
	}
	return nil
}

// repeatConflicts says again what a person has to solve.
func (i *installer) repeatConflicts() error {
	journal, err := migrate.ReadJournal(i.storeFile)
	if err != nil || journal == nil {
		return err
	}
	for _, o := range journal.Conflicts() {
		i.log.Error("address was given twice when this node was migrated; --migrate=force tries again",
			"address", o.Address, "pool", o.Pool.Name, "pod", o.Pod.Namespace+"/"+o.Pod.Name, "detail", o.Detail)
	}
	return nil
}

// claim is the migration without the switch.
func (i *installer) claim(ctx context.Context) error {
	if !exists(i.storeFile) {
		i.log.Info("nothing to migrate: there is no store", "store", i.storeFile)
		return nil
	}
	m, err := i.migrator()
	if err != nil {
		return err
	}
	journal, err := m.Claim(ctx)
	if journal != nil {
		i.log.Info("migration without a switch: " + journal.String())
	}
	return err
}

func (i *installer) plan(ctx context.Context) error {
	if !exists(i.storeFile) {
		fmt.Printf("nothing to migrate: there is no %s\n", i.storeFile)
		return nil
	}
	m, err := i.migrator()
	if err != nil {
		return err
	}
	plan, err := m.Plan(ctx)
	if err != nil {
		return err
	}
	if err := plan.WriteTable(os.Stdout); err != nil {
		return err
	}
	fmt.Println("would be:", plan)
	return nil
}

func (i *installer) remove() error {
	left, err := i.host.Uninstall()
	for _, path := range left {
		i.log.Warn("not removed: somebody has changed it since it was installed", "path", path)
	}
	if err == nil {
		i.log.Info("uninstalled; what the plugin knows of pods' addresses stays", "dir", i.dataDir)
	}
	return err
}

func (i *installer) migrator() (*migrate.Migrator, error) {
	if i.nodeName == "" {
		return nil, errors.New("there is a store of nv-ipam to migrate, which needs --node-name")
	}
	config, err := clientConfig(i.kubeconfig)
	if err != nil {
		return nil, err
	}
	client, err := clientv1alpha1.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	reporter := &migrate.Reporter{Pools: client, Events: kube.CoreV1().Events(i.namespace), Namespace: i.namespace, Node: i.nodeName}
	site, err := ledger.SiteOf(config, i.nodeName)
	if err != nil {
		return nil, err
	}
	return &migrate.Migrator{
		Claimer: &claim.Claimer{
			Ledger: ledger.Ledger{Client: client, Namespace: i.namespace, Node: i.nodeName},
			Hint:   hint.Open(i.dataDir, site, i.namespace, i.log), Log: i.log,
		},
		StoreFile: i.storeFile,
		Force:     i.migrate == migrateForce,
		Settle:    i.settle,
		Report:    reporter.Conflict,
	}, nil
}

func (o *options) credentials(host *install.Host) (*install.Credentials, error) {
	config, err := clientConfig(o.kubeconfig)
	if err != nil {
		return nil, err
	}
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	if err := rest.LoadTLSFiles(config); err != nil {
		return nil, fmt.Errorf("reading the cluster's CA: %w", err)
	}
	namespace, name, ok := strings.Cut(o.tokenAccount, "/")
	if !ok {
		namespace, name = o.namespace, o.tokenAccount
	}
	server := o.tokenServer
	if at := os.Getenv("KUBERNETES_SERVICE_HOST"); server == "" && at != "" {
		server = "https://" + net.JoinHostPort(at, os.Getenv("KUBERNETES_SERVICE_PORT"))
	}
	if server == "" {
		return nil, errors.New("--token-service-account needs --token-server outside of a cluster")
	}
	return &install.Credentials{
		Kube: kube, Namespace: namespace, ServiceAccount: name, Node: o.nodeName,
		Server: server, CA: config.CAData, Lifetime: o.tokenLifetime, Host: host,
	}, nil
}

func clientConfig(kubeconfig string) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, err
	}
	config.UserAgent = "ipam-node/" + version
	config.QPS = -1 // a node has some hundred addresses at most
	config.Timeout = 10 * time.Second
	return config, nil
}

// stay installs, and keeps things as they were installed until ctx ends.
func (i *installer) stay(ctx context.Context) error {
	stop, err := i.serveProbes()
	if err != nil {
		return err
	}
	defer stop()
	i.log.Info("starting", "version", version, "node", i.nodeName)
	if err := i.untilSetUp(ctx); err != nil {
		return nil // told to stop
	}
	var renewing sync.WaitGroup
	defer renewing.Wait()
	renewing.Go(func() { i.keepRecord(ctx) })
	if i.credentials != nil {
		renewing.Go(func() { i.credentials.Run(ctx) })
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait.Jitter(i.interval, 0.2)):
		}
		drift, err := i.drift()
		if err == nil && len(drift) == 0 {
			continue
		}
		i.installed.Store(false)
		i.log.Warn("what was installed is not as it was: repairing", "drift", drift, "error", err)
		if err := i.untilSetUp(ctx); err != nil {
			return nil
		}
	}
}

// drift says what is not as it was installed, without a request.
func (i *installer) drift() ([]string, error) {
	drift, err := i.host.Drift()
	if i.credentials == nil || err != nil {
		return drift, err
	}
	more, err := i.credentials.Drift()
	return append(drift, more...), err
}

// untilSetUp tries again until it succeeds or ctx ends.
func (i *installer) untilSetUp(ctx context.Context) error {
	backoff := wait.Backoff{Duration: time.Second, Factor: 2, Jitter: 0.5, Steps: 10, Cap: time.Minute}
	for {
		err := i.setUp(ctx)
		if err == nil {
			return nil
		}
		pause := backoff.Step()
		i.log.Error("not installed", "error", err, "retryAfter", pause)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// serveProbes answers the kubelet until stop is called.
func (i *installer) serveProbes() (stop func(), err error) {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		switch {
		case !i.installed.Load():
			http.Error(w, "not installed yet", http.StatusServiceUnavailable)
		case i.credentials != nil && !i.credentials.Good(time.Now()):
			http.Error(w, "the plugin's token has expired", http.StatusServiceUnavailable)
		default:
			fmt.Fprintln(w, "ok")
		}
	})
	return program.Serve(i.probes, mux, program.DefaultLimits)
}

func exists(path string) bool {
	_, err := os.Stat(filepath.Clean(path))
	return !errors.Is(err, fs.ErrNotExist)
}
