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
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/crd-ipam/crd-ipam/cmd/internal/program"
	"github.com/crd-ipam/crd-ipam/pkg/claim"
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
	once, uninstall, dryRun, restoreOnly bool
	stay                                 bool

	nodeName   string
	namespace  string
	kubeconfig string
	probes     string
	probe      string
	hostRoot   string
	log        program.Log
	accepted   program.Accepted
	interval   time.Duration

	recordInterval time.Duration

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

	cooldown time.Duration
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
	if o.probe != "" {
		os.Exit(o.askProbe())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	log := o.log.SetUp()
	o.say(log)
	err = run(ctx, o, log)
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
	fs.BoolVar(&o.stay, "stay", false, "with --uninstall, --migrate-dry-run or --migrate=only: do not exit, and be ready once it is done; for a DaemonSet that does it on each node")
	fs.StringVar(&o.nodeName, "node-name", os.Getenv("NODE_NAME"), "name of this host's Node object; default is $NODE_NAME")
	fs.StringVar(&o.namespace, "ippools-namespace", "kube-system", "namespace of the pools and of their allocations")
	fs.StringVar(&o.kubeconfig, "kubeconfig", "", "path of a kubeconfig for this program; default is $KUBECONFIG, then the pod's service account")
	fs.StringVar(&o.probes, "health-probe-bind-address", ":8081", "address that /healthz and /readyz are served on, or unix:PATH of a socket; empty or 0 serves nothing")
	fs.StringVar(&o.probe, "probe", "", "healthz or readyz: ask the ipam-node that serves --health-probe-bind-address, print its answer, and exit with 1 if that is bad; for an exec probe, whose output Kubernetes shows")
	fs.DurationVar(&o.interval, "check-interval", time.Minute, "how often to check that the installed files are unchanged")
	fs.DurationVar(&o.recordInterval, "record-check-interval", 2*time.Minute, "how often to check that the API server still has the allocations of this node, and to write again those that it has lost; at most 2m, 0 never")
	fs.BoolVar(&o.restoreOnly, "restore-only", false, "write again the allocations of this node that the API server has lost, and exit")
	o.hostFlags(fs)
	o.migrationFlags(fs)
	o.tokenFlags(fs)
	o.log.Flags(fs, &o.accepted)
	o.acceptedFlags(fs)
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

// acceptedFlags are those of nv-ipam's ipam-node that have no effect here: there is
// no daemon that serves the plugin, and the controller looks for leaked addresses.
func (o *options) acceptedFlags(fs *flag.FlagSet) {
	anything := func(string) error { return nil }
	o.accepted.Flag(fs, "bind-address", anything)
	o.accepted.Flag(fs, "metrics-bind-address", anything)
	o.accepted.Flag(fs, "stale-ip-check-interval", func(value string) error {
		interval, err := time.ParseDuration(value)
		if err == nil && interval < 0 {
			err = errors.New("must not be negative")
		}
		return err
	})
	o.accepted.Flag(fs, "stale-ip-check-count-before-release", func(value string) error {
		_, err := strconv.ParseUint(value, 10, 31)
		return err
	})
	fs.DurationVar(&o.cooldown, "released-ip-cooldown", 0, "how long an address that was released is not given again; accepted, and not honoured by this version")
}

// say says which flags have no effect.
func (o *options) say(log *slog.Logger) {
	o.accepted.Say(log)
	if o.cooldown > 0 {
		log.Warn("--released-ip-cooldown is not honoured by this version: an address that was released may be given again at once", "cooldown", o.cooldown)
	}
}

func (o *options) hostFlags(fs *flag.FlagSet) {
	fs.StringVar(&o.source, "cni-nv-ipam-bin-file", "/nv-ipam", "the plugin's binary, to be copied to the host")
	fs.BoolVar(&o.skipBinary, "cni-skip-nv-ipam-binary-copy", false, "do not copy the plugin's binary: the host has it")
	fs.BoolVar(&o.skipConf, "cni-skip-nv-ipam-config-creation", false, "do not write nv-ipam.conf")
	fs.StringVar(&o.binDir, "cni-bin-dir", "/opt/cni/bin", "directory of the host's CNI plugins")
	fs.StringVar(&o.confDir, "cni-conf-dir", "/etc/cni/net.d/nv-ipam.d", "directory of nv-ipam.conf")
	fs.StringVar(&o.dataDir, "cni-data-dir", "/var/lib/cni/nv-ipam", "directory that the plugin keeps its hint in")
	fs.StringVar(&o.hostRoot, "host-root", "", "where the host's root directory is mounted, with the host's network: the plugin's STATUS is asked there, and this program is ready only if that is good; --cni-bin-dir and --cni-conf-dir have to be the host's own paths then. Empty asks for nothing")
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
	fs.StringVar(&o.tokenAccount, "token-service-account", "", "crd-ipam-plugin or NAMESPACE/crd-ipam-plugin: the service account whose token, bound to this node, is kept for the plugin; for clusters where the kubelet's credentials cannot be used")
	fs.StringVar(&o.tokenServer, "token-server", "", "https://host:port of the API server in the plugin's kubeconfig; default is that of the pod's environment")
	fs.DurationVar(&o.tokenLifetime, "token-lifetime", 24*time.Hour, "lifetime of that token, 10m to 24h; it is renewed at between 50 % and 80 % of it")
}

func (o *options) check(args []string) error {
	switch {
	case len(args) > 0:
		return fmt.Errorf("unexpected arguments: %q", args)
	case o.cooldown < 0:
		return fmt.Errorf("--released-ip-cooldown must not be negative: %v", o.cooldown)
	case !slices.Contains([]string{migrateAuto, migrateForce, migrateNever, migrateOnly}, o.migrate):
		return fmt.Errorf("--migrate must be auto, force, only or never, not %q", o.migrate)
	case !slices.Contains([]string{"", "healthz", "readyz"}, o.probe):
		return fmt.Errorf("--probe must be healthz or readyz, not %q", o.probe)
	case o.hostRoot != "" && !filepath.IsAbs(o.hostRoot):
		return fmt.Errorf("--host-root must be an absolute path, not %q", o.hostRoot)
	case o.namespace == "":
		return errors.New("--ippools-namespace must not be empty")
	case o.interval <= 0:
		return fmt.Errorf("--check-interval must be positive: %v", o.interval)
	case o.settle < 0:
		return fmt.Errorf("--migrate-settle must not be negative: %v", o.settle)
	case o.daemonTimeout < 0:
		return fmt.Errorf("--cni-daemon-call-timeout must not be negative: %d", o.daemonTimeout)
	case o.tokenAccount != "" && o.nodeName == "":
		return errors.New("--token-service-account needs --node-name")
	case o.tokenServer != "" && !strings.HasPrefix(o.tokenServer, "https://"):
		return fmt.Errorf("--token-server must be https://host:port, not %q", o.tokenServer)
	}
	o.settle = cmp.Or(o.settle, time.Duration(o.daemonTimeout+1)*time.Second)
	return errors.Join(o.log.Check(), o.checkMode(), o.checkRecord(), o.checkToken())
}

// checkMode refuses more than one thing to do.
func (o *options) checkMode() error {
	modes := 0
	for _, mode := range []bool{o.once, o.uninstall, o.dryRun, o.restoreOnly} {
		if mode {
			modes++
		}
	}
	switch {
	case modes > 1:
		return errors.New("--once, --uninstall, --migrate-dry-run and --restore-only exclude each other")
	case o.stay && !o.uninstall && !o.dryRun && o.migrate != migrateOnly:
		return errors.New("--stay is for --uninstall, --migrate-dry-run and --migrate=only: without these this program stays anyway")
	}
	return nil
}

// checkRecord refuses an interval after which a node finds a loss too late.
func (o *options) checkRecord() error {
	switch {
	case o.recordInterval < 0 || o.recordInterval > maxRecordInterval:
		return fmt.Errorf("--record-check-interval must be between 0 and %v, not %v: pods wait for %v after a loss, and by then all nodes have to have looked", maxRecordInterval, o.recordInterval, claim.LossGrace)
	case o.restoreOnly && o.nodeName == "":
		return errors.New("--restore-only needs --node-name")
	}
	return nil
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
func (o *options) checkToken() error {
	if o.tokenLifetime < minTokenLifetime || o.tokenLifetime > maxTokenLifetime {
		return fmt.Errorf("--token-lifetime must be between %v and %v, not %v: it is renewed long before its end, and whoever steals it has it for as long", minTokenLifetime, maxTokenLifetime, o.tokenLifetime)
	}
	if o.tokenAccount == "" {
		return nil
	}
	namespace, name, ok := strings.Cut(o.tokenAccount, "/")
	if !ok {
		namespace, name = o.namespace, o.tokenAccount
	}
	if name != tokenAccount || namespace == "" || strings.Contains(name, "/") {
		return fmt.Errorf("--token-service-account must be %s or NAMESPACE/%s, not %q: the admission policies crd-ipam-node and crd-ipam-plugin-token keep only that account to its own node", tokenAccount, tokenAccount, o.tokenAccount)
	}
	return nil
}
