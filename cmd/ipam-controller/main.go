// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// ipam-controller gives nodes their blocks of the pools, and takes back the
// addresses that no pod holds any more. It accepts the flags of nv-ipam's
// controller.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/transport"
	"k8s.io/klog/v2"

	"github.com/crd-ipam/crd-ipam/cmd/internal/program"
	"github.com/crd-ipam/crd-ipam/generated/clientset/versioned"
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
	fs.DurationVar(&o.ReclaimGrace, "reclaim-grace", time.Minute, "how long an address must look leaked before it is taken back, if its node is gone or out of service, or its pod has a later sandbox")
	fs.DurationVar(&o.ReclaimGraceReadyNode, "reclaim-grace-ready-node", 0, "the same if its node is ready and may still be stopping a pod that was deleted by force; longer than the terminationGracePeriodSeconds of such pods, and than the cluster takes to notice that a node is unreachable; 0 stands for ten times --reclaim-grace")
	fs.BoolVar(&o.elect, "leader-elect", false, "lead only while holding a lease; needed for more than one replica")
	fs.StringVar(&o.electNamespace, "leader-elect-namespace", "kube-system", "namespace of the lease")
	fs.StringVar(&o.kubeconfig, "kubeconfig", "", "path of a kubeconfig; default is $KUBECONFIG, then the pod's service account")
	fs.StringVar(&o.probes, "health-probe-bind-address", ":8081", "address that /healthz and /readyz are served on; empty or 0 serves nothing")
	fs.StringVar(&o.metrics, "metrics-bind-address", ":8080", "address that /metrics is served on; empty or 0 serves nothing")
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
	case o.Namespace == "":
		return errors.New("--ippools-namespace must not be empty")
	}
	return o.log.Check()
}

func run(ctx context.Context, o *options) error {
	var leading atomic.Bool
	m := newMetrics(leading.Load)
	clients, err := connect(o.kubeconfig, m.count)
	if err != nil {
		return err
	}
	o.Metrics = m
	c := controller.New(clients, o.Options)
	work := func(ctx context.Context) error {
		leading.Store(true)
		return c.Run(ctx)
	}
	ready := func() bool { return c.Synced() || o.elect && !leading.Load() } // or standing by
	stopProbes, err := program.Serve(o.probes, probes(ready), program.DefaultLimits)
	if err != nil {
		return err
	}
	defer stopProbes()
	stopMetrics, err := program.Serve(o.metrics, m.handler(), program.DefaultLimits)
	if err != nil {
		return err
	}
	defer stopMetrics()
	klog.InfoS("Starting", "version", version)
	if !o.elect {
		return work(ctx)
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	return controller.Lead(ctx, clients.Kube, o.electNamespace, host+"_"+string(uuid.NewUUID()), work)
}

// connect returns clients whose requests go through wrap.
func connect(kubeconfig string, wrap transport.WrapperFunc) (c controller.Clients, err error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return c, err
	}
	config.UserAgent = "ipam-controller/" + version
	// A handful of workers with one request each cannot do harm; where the server
	// is busy, it says so (API priority and fairness).
	config.QPS = -1
	config.Wrap(wrap)
	protobuf := rest.CopyConfig(config) // what custom resources do not speak
	protobuf.AcceptContentTypes, protobuf.ContentType = "application/vnd.kubernetes.protobuf,application/json", "application/vnd.kubernetes.protobuf"
	if c.IPAM, err = versioned.NewForConfig(config); err != nil {
		return c, err
	}
	if c.Metadata, err = metadata.NewForConfig(config); err != nil {
		return c, err
	}
	c.Kube, err = kubernetes.NewForConfig(protobuf)
	return c, err
}
