// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
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
	"github.com/crd-ipam/crd-ipam/pkg/cni"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/install"
	"github.com/crd-ipam/crd-ipam/pkg/migrate"
)

// installer is one host.
type installer struct {
	*options
	log  *slog.Logger
	host *install.Host
	// credentials are nil where the plugin uses the kubelet's.
	credentials *install.Credentials
	// reason says why pods cannot get addresses on this node; it is empty if they can.
	reason atomic.Pointer[string]
	// asked is when the plugin's STATUS was good last.
	asked time.Time
}

func run(ctx context.Context, o *options, log *slog.Logger) error {
	i := &installer{options: o, log: log, host: o.host()}
	i.reason.Store(new("not finished yet"))
	switch {
	case o.uninstall:
		return i.andStay(ctx, "not uninstalled", i.remove)
	case o.dryRun:
		return i.andStay(ctx, "no plan of the migration", func() error { return i.plan(ctx) })
	case o.restoreOnly:
		return i.look(ctx)
	case o.migrate == migrateOnly:
		return i.andStay(ctx, "not migrated", func() error { return i.claim(ctx) })
	}
	if o.tokenAccount != "" {
		var err error
		if i.credentials, err = o.credentials(i.host); err != nil {
			return err
		}
		i.host.Beside = i.credentials.Files()
		if o.cniKubeconfig == "" && i.host.Settings != nil {
			i.host.Settings.Kubeconfig = i.credentials.Kubeconfig()
		}
	}
	if o.once {
		return i.setUp(ctx)
	}
	return i.keep(ctx)
}

// host says where things are put.
func (o *options) host() *install.Host {
	h := &install.Host{Source: o.source, BinDir: o.binDir, ConfDir: o.confDir, DataDir: o.dataDir, Root: o.hostRoot}
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

// andStay does something once. With --stay it tries again until that succeeds, and is
// ready from then on until ctx ends. what says what is so until then.
func (i *installer) andStay(ctx context.Context, what string, f func() error) error {
	if !i.stay {
		return f()
	}
	stop, err := i.serveProbes()
	if err != nil {
		return err
	}
	defer stop()
	if err := i.until(ctx, what, f); err == nil {
		i.ready()
	}
	<-ctx.Done()
	return nil
}

func (i *installer) migrator() (*migrate.Migrator, error) {
	if i.nodeName == "" {
		return nil, errors.New("there is a store of nv-ipam to migrate, which needs --node-name")
	}
	config, err := clientConfig(i.kubeconfig)
	if err != nil {
		return nil, err
	}
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	claimer, err := i.claimer(config)
	if err != nil {
		return nil, err
	}
	reporter := &migrate.Reporter{Pools: claimer.Client, Events: kube.CoreV1().Events(i.namespace), Namespace: i.namespace, Node: i.nodeName}
	return &migrate.Migrator{
		Claimer:   claimer,
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

// keep installs, and keeps things as they were installed until ctx ends.
func (i *installer) keep(ctx context.Context) error {
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
		i.askPlugin(ctx)
		pause := i.interval
		if *i.reason.Load() != "" {
			pause = min(pause, statusRetry)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait.Jitter(pause, 0.2)):
		}
		drift, err := i.drift()
		if err == nil && len(drift) == 0 {
			continue
		}
		i.log.Warn("what was installed is not as it was: repairing", "drift", drift, "error", err)
		i.notReady(fmt.Sprintf("what was installed is being repaired: %s", strings.Join(drift, "; ")))
		if err := i.untilSetUp(ctx); err != nil {
			return nil
		}
	}
}

const (
	// statusInterval is how often the plugin is asked whether all is well, if it was:
	// one read of the API server by each node.
	statusInterval = 5 * time.Minute
	statusRetry    = 10 * time.Second
)

// askPlugin asks the plugin for its STATUS: only that says whether pods get addresses.
func (i *installer) askPlugin(ctx context.Context) {
	if i.hostRoot == "" {
		i.ready()
		return
	}
	if time.Since(i.asked) < statusInterval {
		return
	}
	if err := i.host.Status(ctx); err != nil {
		i.notReady(err.Error())
		return
	}
	i.asked = time.Now()
	i.ready()
}

func (i *installer) ready() {
	if before := i.reason.Swap(new(string)); before != nil && *before != "" {
		i.log.Info("ready")
	}
}

// notReady notes why, for the probe, and says it once in the log.
func (i *installer) notReady(reason string) {
	i.asked = time.Time{}
	if before := i.reason.Swap(&reason); before == nil || *before != reason {
		i.log.Warn("not ready", "reason", reason)
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

func (i *installer) untilSetUp(ctx context.Context) error {
	return i.until(ctx, "not installed", func() error { return i.setUp(ctx) })
}

// until tries again until it succeeds or ctx ends. what says what is so until then.
func (i *installer) until(ctx context.Context, what string, f func() error) error {
	backoff := wait.Backoff{Duration: time.Second, Factor: 2, Jitter: 0.5, Steps: 10, Cap: time.Minute}
	for {
		err := f()
		if err == nil {
			return nil
		}
		pause := backoff.Step()
		i.log.Error(what, "error", err, "retryAfter", pause)
		i.notReady(what + ": " + err.Error())
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
		reason := i.reason.Load()
		switch {
		case *reason != "":
			http.Error(w, *reason, http.StatusServiceUnavailable)
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

// askProbe asks the ipam-node that runs beside this one, and returns the exit code.
func (o *options) askProbe() int {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	answer, err := program.Get(ctx, o.probes, "/"+o.probe)
	if err != nil {
		fmt.Println(cmp.Or(answer, err.Error()))
		return 1
	}
	fmt.Println(answer)
	return 0
}
