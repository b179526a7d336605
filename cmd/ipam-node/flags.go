// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"github.com/crd-ipam/crd-ipam/cmd/internal/program"
	"github.com/crd-ipam/crd-ipam/pkg/install"
	"github.com/crd-ipam/crd-ipam/pkg/migrate"
)

type options struct {
	install install.Options
	migrate migrate.Options

	once, uninstall, restoreOnly, stay bool

	kubeconfig     string
	probes         string
	probe          string
	interval       time.Duration
	recordInterval time.Duration
	log            program.Log
	accepted       program.Accepted
}

// parse reads the command line; nil options ask for the version.
func parse(args []string) (*options, error) {
	o := &options{}
	fs := flag.NewFlagSet("ipam-node", flag.ContinueOnError)
	fs.BoolVar(&o.once, "once", false, "install, migrate where there is something to migrate, and exit")
	fs.BoolVar(&o.uninstall, "uninstall", false, "remove what was installed, and exit; what somebody else has changed since stays, and so do the plugin's data")
	fs.BoolVar(&o.stay, "stay", false, "with --uninstall, --migrate-dry-run or --migrate=only: do not exit, and be ready once it is done; for a DaemonSet that does it on each node")
	fs.StringVar(&o.kubeconfig, "kubeconfig", "", "path of a kubeconfig for this program; default is $KUBECONFIG, then the pod's service account")
	fs.StringVar(&o.probes, "health-probe-bind-address", ":8081", "address that /healthz and /readyz are served on, or unix:PATH of a socket; empty or 0 serves nothing")
	fs.StringVar(&o.probe, "probe", "", "healthz or readyz: ask the ipam-node that serves --health-probe-bind-address, print its answer, and exit with 1 if that is bad; for an exec probe, whose output Kubernetes shows")
	fs.DurationVar(&o.interval, "check-interval", time.Minute, "how often to check that the installed files are unchanged")
	fs.DurationVar(&o.recordInterval, "record-check-interval", 2*time.Minute, "how often to check that the API server still has the allocations of this node, and to write again those that it has lost; at most two thirds of --loss-grace, 0 never")
	fs.BoolVar(&o.restoreOnly, "restore-only", false, "write again the allocations of this node that the API server has lost, and exit")
	o.install.AddFlags(fs)
	o.migrate.AddFlags(fs)
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
}

// say says which flags have no effect.
func (o *options) say(log *slog.Logger) {
	o.accepted.Say(log)
}

func (o *options) check(args []string) error {
	once := 0
	for _, mode := range []bool{o.once, o.uninstall, o.migrate.DryRun, o.restoreOnly} {
		if mode {
			once++
		}
	}
	switch {
	case len(args) > 0:
		return fmt.Errorf("unexpected arguments: %q", args)
	case once > 1:
		return errors.New("--once, --uninstall, --migrate-dry-run and --restore-only exclude each other")
	case o.stay && !o.uninstall && !o.migrate.DryRun && !o.migrate.Only():
		return errors.New("--stay is for --uninstall, --migrate-dry-run and --migrate=only: without these this program stays anyway")
	case !slices.Contains([]string{"", "healthz", "readyz"}, o.probe):
		return fmt.Errorf("--probe must be healthz or readyz, not %q", o.probe)
	case o.interval <= 0:
		return fmt.Errorf("--check-interval must be positive: %v", o.interval)
	}
	return errors.Join(o.checkRecord(), o.install.Check(), o.migrate.Check(o.install.CallTimeout), o.log.Check())
}

// checkRecord refuses an interval after which a node finds a loss too late. Jitter and the
// look's own time have the third that is left.
func (o *options) checkRecord() error {
	longest := o.install.LossGrace * 2 / 3
	switch {
	case o.recordInterval < 0 || o.recordInterval > longest:
		return fmt.Errorf("--record-check-interval must be between 0 and %v, not %v: pods wait for %v after a loss (--loss-grace), and by then all nodes have to have looked",
			longest, o.recordInterval, o.install.LossGrace)
	case o.restoreOnly && o.install.Node == "":
		return errors.New("--restore-only needs --node-name")
	}
	return nil
}
