// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/generated/clientset/versioned"
	"github.com/crd-ipam/crd-ipam/generated/clientset/versioned/scheme"
	"github.com/crd-ipam/crd-ipam/generated/informers/externalversions"
)

// name is the field manager of conditions and the source of events; nv-ipam's
// controller goes by the same.
const name = "ipam-controller"

// reclaimWorkers examine allocations in parallel: an examination that ends in a
// reclaim waits for three calls.
const reclaimWorkers = 4

// Clients are the ways to the API server that the controller needs.
type Clients struct {
	IPAM     versioned.Interface
	Kube     kubernetes.Interface
	Metadata metadata.Interface // pods: nothing but their metadata is cached
}

// Options are what an operator can set.
type Options struct {
	// Namespace of the pools and of their allocations.
	Namespace string
	// ReclaimGrace is how long an allocation must look leaked before it is freed,
	// if its node is gone or out of service, or its pod has a later sandbox.
	ReclaimGrace time.Duration
	// ReclaimGraceReadyNode is the same for all others: their nodes are there, and
	// may still run down a pod that was deleted by force. It should be longer than
	// such a pod's terminationGracePeriodSeconds, and must be longer than the
	// cluster takes to notice that a node is unreachable (by default 55 s:
	// node-monitor-grace-period and one period). 0 stands for ten times
	// ReclaimGrace.
	ReclaimGraceReadyNode time.Duration
	// Settle is how long changes of nodes and allocations are collected before
	// a pool is reconciled, so that 5,000 nodes which join at once are a few
	// writes, not 5,000. 0 stands for 200 ms.
	Settle time.Duration
	// Resync is how often everything is examined again. 0 stands for 5 min.
	Resync time.Duration
	// Usage is how often at most a pool's status is written only because another
	// number of its addresses is used. 0 stands for 1 min.
	Usage time.Duration
	// LossGrace is how long the nodes have time to write their allocations again after the
	// record was lost, before a new pool has blocks. 0 stands for 3 min.
	LossGrace time.Duration
	// Metrics is where the controller's metrics are registered, nil for nowhere.
	Metrics prometheus.Registerer
}

// Controller keeps pools and allocations in order. Run it once.
type Controller struct {
	opts    Options
	clients Clients

	kube informers.SharedInformerFactory
	ipam externalversions.SharedInformerFactory
	meta metadatainformer.SharedInformerFactory

	kinds       map[v1alpha1.PoolKind]poolKind
	nodes       cache.Indexer
	pods        cache.Indexer
	allocations cache.Indexer

	recorder record.EventRecorder
	pools    workqueue.TypedRateLimitingInterface[v1alpha1.PoolReference]
	// examinations are allocations, by their keys in the cache.
	examinations workqueue.TypedRateLimitingInterface[string]
	// unplaced are nodes with pods of which it is to be asked whether they are there.
	unplaced workqueue.TypedRateLimitingInterface[string]

	reported     map[v1alpha1.PoolReference]report    // by the one worker of pools
	pruned       map[v1alpha1.PoolKind]bool           // likewise
	counted      map[v1alpha1.PoolReference]time.Time // used was last written; likewise
	countless    map[v1alpha1.PoolKind]bool           // the CRD has no used; likewise
	observations observations
	places       places
	placesLimit  flowcontrol.RateLimiter
	former       formerBlocks
	summaries    sync.Map // v1alpha1.PoolReference to summary
	metrics      *metrics
	// misfitting are the pools that keep something only as long as it is held.
	misfitting sync.Map
	synced     atomic.Bool
}

// New returns a controller that has not started anything yet.
func New(clients Clients, opts Options) *Controller {
	if opts.Settle == 0 {
		opts.Settle = 200 * time.Millisecond
	}
	if opts.ReclaimGraceReadyNode == 0 {
		opts.ReclaimGraceReadyNode = 10 * opts.ReclaimGrace
	}
	if opts.Resync == 0 {
		opts.Resync = 5 * time.Minute
	}
	if opts.LossGrace == 0 {
		opts.LossGrace = 3 * time.Minute
	}
	if opts.Usage == 0 {
		opts.Usage = time.Minute
	}
	c := &Controller{
		opts:    opts,
		clients: clients,
		kube:    informers.NewSharedInformerFactoryWithOptions(clients.Kube, 0, informers.WithTransform(thin)),
		ipam: externalversions.NewSharedInformerFactoryWithOptions(clients.IPAM, opts.Resync,
			externalversions.WithNamespace(opts.Namespace), externalversions.WithTransform(thin)),
		meta:     metadatainformer.NewSharedInformerFactoryWithOptions(clients.Metadata, 0, metadatainformer.WithTransform(thin)),
		reported: map[v1alpha1.PoolReference]report{},
		pruned:   map[v1alpha1.PoolKind]bool{},

		counted:     map[v1alpha1.PoolReference]time.Time{},
		countless:   map[v1alpha1.PoolKind]bool{},
		placesLimit: flowcontrol.NewTokenBucketRateLimiter(placesPerSecond, placesPerSecond),
		metrics:     newMetrics(),
	}
	c.kinds = poolKinds(clients.IPAM.NvIpamV1alpha1(), c.ipam.NvIpam().V1alpha1(), opts.Namespace)
	if opts.Metrics != nil {
		opts.Metrics.MustRegister(append(c.metrics.all, c)...)
	}
	return c
}

// Synced reports whether the controller has seen the cluster and is at work.
func (c *Controller) Synced() bool { return c.synced.Load() }

// Run works until ctx ends, and returns when all that it started has stopped. An
// error means that it could not start.
func (c *Controller) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: c.clients.Kube.CoreV1().Events(c.opts.Namespace)})
	c.recorder = boundedRecorder{broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: name})}

	c.pools = newQueue[v1alpha1.PoolReference](queuePools, c.metrics)
	c.examinations = newQueue[string](queueAllocations, c.metrics)
	c.unplaced = newQueue[string](queueNodes, c.metrics)
	defer c.ipam.Shutdown()
	defer c.meta.Shutdown()
	defer c.kube.Shutdown()
	defer c.pools.ShutDown()
	defer c.examinations.ShutDown()
	defer c.unplaced.ShutDown()
	defer cancel() // first: the others wait for it
	handled, err := c.watch()
	if err != nil {
		return err
	}
	c.kube.StartWithContext(ctx)
	c.meta.Start(ctx.Done())
	c.ipam.StartWithContext(ctx)
	if !cache.WaitFor(ctx, "", handled...) {
		return nil
	}
	c.synced.Store(true)
	defer c.synced.Store(false)
	klog.FromContext(ctx).Info("Controller started", "namespace", c.opts.Namespace, "reclaimGrace", c.opts.ReclaimGrace.String(), "reclaimGraceReadyNode", c.opts.ReclaimGraceReadyNode.String())

	var workers sync.WaitGroup
	workers.Go(func() { work(ctx, c.pools, c.reconcilePool, c.metrics.errors.WithLabelValues(queuePools)) })
	workers.Go(func() { work(ctx, c.unplaced, c.locate, c.metrics.errors.WithLabelValues(queueNodes)) })
	for range reclaimWorkers {
		workers.Go(func() {
			work(ctx, c.examinations, c.examine, c.metrics.errors.WithLabelValues(queueAllocations))
		})
	}
	<-ctx.Done()
	c.pools.ShutDown()
	c.examinations.ShutDown()
	c.unplaced.ShutDown()
	workers.Wait()
	klog.FromContext(ctx).Info("Controller stopped")
	return nil
}

func newQueue[T comparable](name string, m workqueue.MetricsProvider) workqueue.TypedRateLimitingInterface[T] {
	return workqueue.NewTypedRateLimitingQueueWithConfig(workqueue.DefaultTypedControllerRateLimiter[T](),
		workqueue.TypedRateLimitingQueueConfig[T]{Name: name, MetricsProvider: m})
}

// work handles the items of queue one after the other until ctx ends or the
// queue is shut down. An item that failed comes back later, and later each time.
func work[T comparable](ctx context.Context, queue workqueue.TypedRateLimitingInterface[T], handle func(context.Context, T) error, errors prometheus.Counter) {
	for ctx.Err() == nil {
		item, shutdown := queue.Get()
		if shutdown {
			return
		}
		err := handle(ctx, item)
		switch {
		case err == nil:
			queue.Forget(item)
		case ctx.Err() != nil: // not this item's fault
		case apierrors.IsConflict(err), apierrors.IsNotFound(err): // the cache is behind
			klog.FromContext(ctx).V(2).Info("Object has changed or gone meanwhile, will retry", "item", item, "err", err)
			queue.AddRateLimited(item)
		default:
			errors.Inc()
			klog.FromContext(ctx).Error(err, "Failed, will retry", "item", item)
			queue.AddRateLimited(item)
		}
		queue.Done(item)
	}
}
