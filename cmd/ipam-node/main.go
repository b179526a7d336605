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
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/crd-ipam/crd-ipam/cmd/internal/program"
	"github.com/crd-ipam/crd-ipam/pkg/install"
	"github.com/crd-ipam/crd-ipam/pkg/migrate"
)

var version = "dev" // set by the linker

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
	case o.probe != "":
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

func run(ctx context.Context, o *options, log *slog.Logger) error {
	host := o.install.NewHost()
	m := &migrate.Node{
		Options: &o.migrate, Namespace: o.install.Namespace, Name: o.install.Node, DataDir: o.install.DataDir,
		Connect: o.clientConfig, Foreign: host.Foreign, Log: log,
	}
	i := &install.Installer{
		Host: host, Around: m.Around, Beside: func(ctx context.Context) { o.keepRecord(ctx, log) }, Interval: o.interval, Log: log,
		Serve: func(probes http.Handler) (func(), error) {
			return program.Serve(o.probes, probes, program.DefaultLimits)
		},
	}
	switch {
	case o.uninstall:
		return o.doOnce(ctx, i, "not uninstalled", i.Remove)
	case o.migrate.DryRun:
		return o.doOnce(ctx, i, "no plan of the migration", func() error { return m.Plan(ctx, os.Stdout) })
	case o.restoreOnly:
		return o.look(ctx, log)
	case o.migrate.Only():
		return o.doOnce(ctx, i, "not migrated", func() error { return m.Claim(ctx) })
	}
	if o.install.Tokens() {
		config, err := o.clientConfig()
		if err != nil {
			return err
		}
		if i.Credentials, err = o.install.NewCredentials(config, host); err != nil {
			return err
		}
	}
	log.Info("starting", "version", version, "node", o.install.Node)
	if o.once {
		return i.SetUp(ctx)
	}
	return i.Keep(ctx)
}

// doOnce does f once; with --stay until that succeeds, and then it stays.
func (o *options) doOnce(ctx context.Context, i *install.Installer, until string, f func() error) error {
	if o.stay {
		return i.Stay(ctx, until, f)
	}
	return f()
}

func (o *options) clientConfig() (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, err
	}
	config.UserAgent = "ipam-node/" + version
	config.QPS = -1 // a node has some hundred addresses at most
	config.Timeout = 10 * time.Second
	return config, nil
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
