// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// ipam-node puts the CNI plugin nv-ipam and its configuration on a host, takes
// over what NVIDIA's nv-ipam has given there before, and stays to repair what
// somebody else changes. No ADD needs it. It accepts the flags of nv-ipam's
// ipam-node.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"k8s.io/klog/v2"
)

var version = "dev" // set by the linker

// What --migrate may be.
const (
	migrateAuto  = "auto"
	migrateForce = "force"
	migrateNever = "never"
	migrateOnly  = "only"
)

type options struct {
	once, uninstall, dryRun bool

	nodeName   string
	namespace  string
	kubeconfig string
	probes     string
	verbosity  int
	logFormat  string
	interval   time.Duration

	source        string
	skipBinary    bool
	skipConf      bool
	binDir        string
	confDir       string
	dataDir       string
	logFile       string
	logLevel      string
	forcePoolName bool
	cniKubeconfig string
	daemonSocket  string
	daemonTimeout int

	storeFile string
	migrate   string
	settle    time.Duration

	tokenAccount  string
	tokenServer   string
	tokenLifetime time.Duration
}

func main() {
	o, err := parse(os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		os.Exit(2) // parse has said why
	case o == nil:
		fmt.Println("ipam-node", version)
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err = run(ctx, o, o.setUpLog())
	stop()
	if err != nil {
		klog.ErrorS(err, "Stopped")
		os.Exit(1)
	}
}

// parse reads the command line; nil options ask for the version.
func parse(args []string) (*options, error) {
	o := &options{}
	fs := flag.NewFlagSet("ipam-node", flag.ContinueOnError)
	fs.BoolVar(&o.once, "once", false, "install, migrate where there is something to migrate, and exit")
	fs.BoolVar(&o.uninstall, "uninstall", false, "remove what was installed, and exit; what somebody else has changed since stays, and so do the plugin's data")
	fs.StringVar(&o.nodeName, "node-name", os.Getenv("NODE_NAME"), "name of this host's Node object; default is $NODE_NAME")
	fs.StringVar(&o.namespace, "ippools-namespace", "kube-system", "namespace of the pools and of their allocations")
	fs.StringVar(&o.kubeconfig, "kubeconfig", "", "path of a kubeconfig for this program; default is $KUBECONFIG, then the pod's service account")
	fs.StringVar(&o.probes, "health-probe-bind-address", ":8081", "address that /healthz and /readyz are served on; empty or 0 serves nothing")
	fs.IntVar(&o.verbosity, "v", 0, "verbosity of the log")
	fs.StringVar(&o.logFormat, "logging-format", "text", "text or json")
	fs.DurationVar(&o.interval, "check-interval", time.Minute, "how often is looked whether the files on the host are as they were installed")
	o.hostFlags(fs)
	o.migrationFlags(fs)
	o.tokenFlags(fs)
	fs.String("bind-address", "unix:///var/lib/cni/nv-ipam/daemon.sock", "accepted for compatibility; there is no daemon that serves the plugin")
	fs.String("metrics-bind-address", ":8080", "accepted for compatibility; there are no metrics")
	showVersion := fs.Bool("version", false, "print the version and exit")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if *showVersion {
		return nil, nil
	}
	if err := o.check(fs.Args()); err != nil {
		fmt.Fprintln(fs.Output(), err)
		return nil, err
	}
	return o, nil
}

func (o *options) hostFlags(fs *flag.FlagSet) {
	fs.StringVar(&o.source, "cni-nv-ipam-bin-file", "/nv-ipam", "the plugin's binary, to be copied to the host")
	fs.BoolVar(&o.skipBinary, "cni-skip-nv-ipam-binary-copy", false, "do not copy the plugin's binary: the host has it")
	fs.BoolVar(&o.skipConf, "cni-skip-nv-ipam-config-creation", false, "do not write nv-ipam.conf")
	fs.StringVar(&o.binDir, "cni-bin-dir", "/opt/cni/bin", "directory of the host's CNI plugins")
	fs.StringVar(&o.confDir, "cni-conf-dir", "/etc/cni/net.d/nv-ipam.d", "directory of nv-ipam.conf")
	fs.StringVar(&o.dataDir, "cni-data-dir", "/var/lib/cni/nv-ipam", "directory that the plugin keeps its hint in")
	fs.StringVar(&o.logFile, "cni-log-file", "/var/log/nv-ipam-cni.log", "the plugin's log file")
	fs.StringVar(&o.logLevel, "cni-log-level", "info", "the plugin's log level: verbose, debug, info, warning, error or panic")
	fs.BoolVar(&o.forcePoolName, "cni-force-pool-name", false, "make the plugin refuse a network that names no pool, instead of taking the network's name")
	fs.StringVar(&o.cniKubeconfig, "cni-kubeconfig", "", "path on the host of the plugin's kubeconfig; empty lets the plugin find the kubelet's credentials")
	fs.StringVar(&o.daemonSocket, "cni-daemon-socket", "unix:///var/lib/cni/nv-ipam/daemon.sock", "written to nv-ipam.conf for nv-ipam's own plugin, until that is replaced and after a rollback; the plugin has no daemon")
	fs.IntVar(&o.daemonTimeout, "cni-daemon-call-timeout", 5, "nv-ipam's call timeout, in seconds: written to nv-ipam.conf as above, and what a call may take that is under way during the migration")
}

func (o *options) migrationFlags(fs *flag.FlagSet) {
	fs.StringVar(&o.storeFile, "store-file", "/var/lib/cni/nv-ipam/store", "nv-ipam's node store, which is migrated and never changed")
	fs.StringVar(&o.migrate, "migrate", migrateAuto, "auto: what has not been migrated yet; force: also where it is done, so that conflicts are tried again; only: claim what the store has and exit, nv-ipam goes on serving; never")
	fs.BoolVar(&o.dryRun, "migrate-dry-run", false, "print what the migration would do, change nothing, and exit")
	fs.DurationVar(&o.settle, "migrate-settle", 0, "for how long nv-ipam's store must not have changed after the plugin was replaced; 0 is --cni-daemon-call-timeout and a second")
}

func (o *options) tokenFlags(fs *flag.FlagSet) {
	fs.StringVar(&o.tokenAccount, "token-service-account", "", "NAME or NAMESPACE/NAME of a service account whose token, bound to this node, is kept for the plugin; for clusters where the kubelet's credentials cannot be used")
	fs.StringVar(&o.tokenServer, "token-server", "", "https://host:port of the API server in the plugin's kubeconfig; default is that of the pod's environment")
	fs.DurationVar(&o.tokenLifetime, "token-lifetime", 24*time.Hour, "lifetime of that token, at least 10m; it is renewed at between 50 % and 80 % of it")
}

func (o *options) check(args []string) error {
	once := 0
	for _, mode := range []bool{o.once, o.uninstall, o.dryRun} {
		if mode {
			once++
		}
	}
	switch {
	case len(args) > 0:
		return fmt.Errorf("unexpected arguments: %q", args)
	case once > 1:
		return errors.New("--once, --uninstall and --migrate-dry-run exclude each other")
	case o.logFormat != "text" && o.logFormat != "json":
		return fmt.Errorf("--logging-format must be text or json, not %q", o.logFormat)
	case !slices.Contains([]string{migrateAuto, migrateForce, migrateNever, migrateOnly}, o.migrate):
		return fmt.Errorf("--migrate must be auto, force, only or never, not %q", o.migrate)
	case o.namespace == "":
		return errors.New("--ippools-namespace must not be empty")
	case o.interval <= 0:
		return fmt.Errorf("--check-interval must be positive: %v", o.interval)
	case o.settle < 0 || o.daemonTimeout < 0:
		return errors.New("--migrate-settle and --cni-daemon-call-timeout must not be negative")
	case o.tokenAccount != "" && o.nodeName == "":
		return errors.New("--token-service-account needs --node-name")
	case o.tokenLifetime < 10*time.Minute:
		return fmt.Errorf("--token-lifetime must be at least 10m: %v", o.tokenLifetime)
	case o.tokenServer != "" && !strings.HasPrefix(o.tokenServer, "https://"):
		return fmt.Errorf("--token-server must be https://host:port, not %q", o.tokenServer)
	}
	o.settle = cmp.Or(o.settle, time.Duration(o.daemonTimeout+1)*time.Second)
	return nil
}

// setUpLog sends klog's output, client-go's too, through slog: levels above 0
// are negative there.
func (o *options) setUpLog() *slog.Logger {
	var level klog.Level
	_ = level.Set(fmt.Sprint(o.verbosity)) // sets klog's own; a number is never an error
	handling := &slog.HandlerOptions{Level: slog.Level(-o.verbosity)}
	var handler slog.Handler = slog.NewTextHandler(os.Stderr, handling)
	if o.logFormat == "json" {
		handler = slog.NewJSONHandler(os.Stderr, handling)
	}
	log := slog.New(handler)
	klog.SetSlogLogger(log)
	return log
}
