// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// ipam-controller assigns blocks of the pools to the nodes, and reclaims leaked
// addresses. It accepts the flags of nv-ipam's controller.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/klog/v2"

	"github.com/crd-ipam/crd-ipam/cmd/internal/program"
	"github.com/crd-ipam/crd-ipam/pkg/controller"
)

var version = "dev" // set by the linker

type options struct {
	controller.Options
	elect          bool
	electNamespace string
	kubeconfig     string
	probes         string
	metrics        string
	log            program.Log
	accepted       program.Accepted
}

func main() {
	o, err := parse(os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		os.Exit(2) // flag has said why
	case o == nil:
		fmt.Println("ipam-controller", version)
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err = run(ctx, o)
	stop()
	if err != nil {
		klog.ErrorS(err, "Stopped")
		os.Exit(1)
	}
}

// parse reads the command line; nil options ask for the version.
func parse(args []string) (*options, error) {
	o := &options{}
	fs := flag.NewFlagSet("ipam-controller", flag.ContinueOnError)
	fs.StringVar(&o.Namespace, "ippools-namespace", "kube-system", "namespace of the pools and of their allocations")
	fs.DurationVar(&o.ReclaimGrace, "reclaim-grace", time.Minute, "how long an address must look leaked before it is reclaimed, if its node is gone or out of service, or its pod has a later sandbox")
	fs.DurationVar(&o.ReclaimGraceReadyNode, "reclaim-grace-ready-node", 0, "the same if its node is ready and may still be stopping a pod that was deleted by force; should be longer than the terminationGracePeriodSeconds of such pods, and must be longer than the cluster takes to notice that a node is unreachable; 0 means ten times --reclaim-grace")
	fs.DurationVar(&o.LossGrace, "loss-grace", 3*time.Minute, "how long a new pool waits for its blocks while nodes write allocations again that the API server has lost; must be that of ipam-node")
	fs.BoolVar(&o.elect, "leader-elect", false, "work only while holding a lease; needed for more than one replica")
	fs.StringVar(&o.electNamespace, "leader-elect-namespace", "kube-system", "namespace of the lease")
	fs.StringVar(&o.kubeconfig, "kubeconfig", "", "path of a kubeconfig; the default is $KUBECONFIG, then the pod's service account")
	fs.StringVar(&o.probes, "health-probe-bind-address", ":8081", "address to serve /healthz and /readyz on; empty or 0: none")
	fs.StringVar(&o.metrics, "metrics-bind-address", ":8080", "address to serve /metrics on; empty or 0: none")
	o.accepted.Switch(fs, "webhook") // pools are validated by their CRDs and by admission policies
	o.log.Flags(fs, &o.accepted)
	showVersion := fs.Bool("version", false, "print the version and exit")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if *showVersion {
		return nil, nil
	}
	err := o.check(fs.Args())
	if err != nil {
		fmt.Fprintln(fs.Output(), err)
		return nil, err
	}
	o.accepted.Say(o.log.SetUp())
	return o, nil
}

func (o *options) check(args []string) error {
	switch {
	case len(args) > 0:
		return fmt.Errorf("unexpected arguments: %q", args)
	case o.ReclaimGrace < 0:
		return fmt.Errorf("--reclaim-grace must not be negative: %v", o.ReclaimGrace)
	case o.ReclaimGraceReadyNode < 0:
		return fmt.Errorf("--reclaim-grace-ready-node must not be negative: %v", o.ReclaimGraceReadyNode)
	case o.LossGrace <= 0:
		return fmt.Errorf("--loss-grace must be positive: %v", o.LossGrace)
	case o.Namespace == "":
		return errors.New("--ippools-namespace must not be empty")
	}
	return o.log.Check()
}

func run(ctx context.Context, o *options) error {
	registry := controller.NewRegistry(version)
	clients, err := controller.Connect(o.kubeconfig, "ipam-controller/"+version, registry.Count)
	if err != nil {
		return err
	}
	o.Metrics = registry
	c := controller.New(clients, o.Options)
	stopProbes, err := program.Serve(o.probes, program.Probes(func() bool { return c.Ready(o.elect) }), program.DefaultLimits)
	if err != nil {
		return err
	}
	defer stopProbes()
	stopMetrics, err := program.Serve(o.metrics, registry.Handler(), program.DefaultLimits)
	if err != nil {
		return err
	}
	defer stopMetrics()
	klog.InfoS("Starting", "version", version)
	if !o.elect {
		return c.Run(ctx)
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	return controller.Lead(ctx, clients.Kube, o.electNamespace, host+"_"+string(uuid.NewUUID()), c.Run)
}
