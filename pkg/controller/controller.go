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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/generated/clientset/versioned/scheme"
	"github.com/crd-ipam/crd-ipam/generated/informers/externalversions"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// name is the field manager of conditions and the source of events; nv-ipam's
// controller goes by the same.
const name = "ipam-controller"

// reclaimWorkers examine allocations in parallel: an examination that ends in a
// reclaim waits for three calls.
const reclaimWorkers = 4

// poolWorkers reconcile pools in parallel: most of the time each waits for a write of an
// object that may be half a megabyte.
const poolWorkers = 4

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

	// What the parts share. caches and queues are filled by assemble.
	caches       caches
	queues       queues
	memories     memories
	observations observations
	metrics      *metrics
	state        state

	// The parts, made by assemble. Each has only what it needs.
	blocks *blockReconciler
	leaks  *leakReconciler

	reservations *reservationReconciler
	claims       *claimReconciler
	locator      *locator
	triggers     *triggers
}

// state is what a replica does. A replica that stands by does neither.
type state struct {
	leading atomic.Bool // Run was called
	synced  atomic.Bool // and the caches have what exists
}

// queues are the work to do.
type queues struct {
	pools       workqueue.TypedRateLimitingInterface[v1alpha1.PoolReference] // to reconcile
	allocations workqueue.TypedRateLimitingInterface[string]                 // to examine, by their keys in the cache
	nodes       workqueue.TypedRateLimitingInterface[string]                 // to locate pods on
	// reservations to reconcile, by their names
	reservations workqueue.TypedRateLimitingInterface[string]
	claims       workqueue.TypedRateLimitingInterface[types.NamespacedName] // IPAMClaims whose status to write
}

func newQueues(m *metrics) queues {
	return queues{
		pools:       newQueue[v1alpha1.PoolReference](queuePools, m),
		allocations: newQueue[string](queueAllocations, m),
		nodes:       newQueue[string](queueNodes, m),

		reservations: newQueue[string](queueReservations, m),
		claims:       newQueue[types.NamespacedName](queueClaims, m),
	}
}

func (q *queues) shutDown() {
	q.pools.ShutDown()
	q.allocations.ShutDown()
	q.nodes.ShutDown()
	q.reservations.ShutDown()
	q.claims.ShutDown()
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
		meta:    metadatainformer.NewSharedInformerFactoryWithOptions(clients.Metadata, 0, metadatainformer.WithTransform(thin)),
		metrics: newMetrics(),
	}
	if opts.Metrics != nil {
		opts.Metrics.MustRegister(append(c.metrics.all, &counts{&c.state, &c.caches, &c.memories, &c.observations})...)
	}
	return c
}

// Ready reports whether the controller has seen the cluster and is at work. A replica
// that waits for the lease (standby) is ready as well.
func (c *Controller) Ready(standby bool) bool {
	return c.state.synced.Load() || standby && !c.state.leading.Load()
}

// Run works until ctx ends, and returns when all that it started has stopped. An
// error means that it could not start.
func (c *Controller) Run(ctx context.Context) error {
	c.state.leading.Store(true)
	ctx, cancel := context.WithCancel(ctx)
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: c.clients.Kube.CoreV1().Events(c.opts.Namespace)})
	recorder := boundedRecorder{broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: name})}

	defer c.ipam.Shutdown()
	defer c.meta.Shutdown()
	defer c.kube.Shutdown()
	handled, err := c.assemble(recorder)
	defer c.queues.shutDown()
	defer cancel() // first: the others wait for it
	if err != nil {
		return err
	}
	c.kube.StartWithContext(ctx)
	c.meta.Start(ctx.Done())
	c.ipam.StartWithContext(ctx)
	if !cache.WaitFor(ctx, "", handled...) {
		return nil
	}
	c.state.synced.Store(true)
	c.triggers.reconcileGonePools()
	defer c.state.synced.Store(false)
	klog.FromContext(ctx).Info("Controller started", "namespace", c.opts.Namespace, "reclaimGrace", c.opts.ReclaimGrace.String(), "reclaimGraceReadyNode", c.opts.ReclaimGraceReadyNode.String())

	var workers sync.WaitGroup
	for range poolWorkers {
		workers.Go(func() { work(ctx, c.queues.pools, c.blocks.reconcile, c.metrics.of(queuePools)) })
	}
	workers.Go(func() { work(ctx, c.queues.reservations, c.reservations.reconcile, c.metrics.of(queueReservations)) })
	workers.Go(func() { work(ctx, c.queues.claims, c.claims.reconcile, c.metrics.of(queueClaims)) })
	workers.Go(func() { work(ctx, c.queues.nodes, c.locator.locate, c.metrics.of(queueNodes)) })
	for range reclaimWorkers {
		workers.Go(func() { work(ctx, c.queues.allocations, c.leaks.examine, c.metrics.of(queueAllocations)) })
	}
	failures := &failures{total: c.metrics.failed, exists: func(ref v1alpha1.PoolReference) bool { return c.caches.pool(ref) != nil }}
	workers.Go(func() { failures.run(ctx, c.clients.Kube) })
	<-ctx.Done()
	c.queues.shutDown()
	workers.Wait()
	klog.FromContext(ctx).Info("Controller stopped")
	return nil
}

// assemble makes the queues and the parts, and connects them with the informers. It
// returns what is done when all that exists has been seen.
func (c *Controller) assemble(recorder record.EventRecorder) ([]cache.DoneChecker, error) {
	c.queues = newQueues(c.metrics)
	places := &places{}
	client := c.clients.IPAM.NvIpamV1alpha1()
	allocations := client.IPAllocations(c.opts.Namespace)
	evidence := &evidence{&c.caches, places}
	claims := ledger.IPAMClaims{Client: client.RESTClient()}
	confirmation := &confirmation{c.clients.Kube, c.clients.Metadata, client, claims, c.caches.inDomain, c.caches.keeps, c.caches.pool}
	c.blocks = &blockReconciler{
		caches: &c.caches, memories: &c.memories,
		status: &statusWriter{
			pools: ledger.Pools{Client: client.RESTClient(), Namespace: c.opts.Namespace}, usage: c.opts.Usage, resync: c.opts.Resync,
			later: c.queues.pools.AddAfter, await: c.caches.await,
		},
		events:    &poolEvents{recorder, max(flapping, 2*c.opts.Resync)},
		lossGrace: c.opts.LossGrace, later: c.queues.pools.AddAfter,
	}
	c.leaks = &leakReconciler{
		caches: &c.caches, evidence: evidence, confirmation: confirmation, observations: &c.observations,
		allocations: allocations, recorder: recorder, metrics: c.metrics,
		grace: c.opts.ReclaimGrace, graceReadyNode: c.opts.ReclaimGraceReadyNode,
		later: c.queues.allocations.AddAfter, locate: c.queues.nodes.Add,
	}
	c.reservations = &reservationReconciler{
		caches: &c.caches, allocations: allocations, reservations: client.IPReservations(c.opts.Namespace),
		lossGrace: c.opts.LossGrace, later: c.queues.reservations.AddAfter,
	}
	c.claims = &claimReconciler{caches: &c.caches, claims: claims}
	c.triggers = &triggers{
		caches: &c.caches, queues: &c.queues, memories: &c.memories, places: places,
		settle: c.opts.Settle, usage: c.opts.Usage,
	}
	c.locator = &locator{
		caches: &c.caches, evidence: evidence, confirmation: confirmation, places: places,
		pods: c.clients.Metadata.Resource(podsResource), limit: flowcontrol.NewTokenBucketRateLimiter(placesPerSecond, placesPerSecond),
		interval: c.opts.Resync, later: c.queues.nodes.AddAfter,
		placed: func(a *v1alpha1.IPAllocation) { c.triggers.examine(byPod, podKey(a)) },
	}
	return c.watch()
}

var podsResource = corev1.SchemeGroupVersion.WithResource("pods")

// watch fills the caches, and has the triggers called with each event. It returns what
// is done when all that exists has been seen.
func (c *Controller) watch() ([]cache.DoneChecker, error) {
	nodes, pods, allocations := c.kube.Core().V1().Nodes().Informer(), c.meta.ForResource(podsResource).Informer(), c.ipam.NvIpam().V1alpha1().IPAllocations().Informer()
	if err := allocations.AddIndexers(allocationIndexers); err != nil {
		return nil, err
	}
	c.caches.namespace = c.opts.Namespace
	c.caches.nodes.Indexer, c.caches.pods.Indexer, c.caches.allocations.Indexer = nodes.GetIndexer(), pods.GetIndexer(), allocations.GetIndexer()
	c.caches.pools = map[v1alpha1.PoolKind]index[metav1.Object]{}
	handlers := map[cache.SharedIndexInformer]cache.ResourceEventHandler{
		allocations: c.triggers.onAllocation(), nodes: c.triggers.onNode(), pods: c.triggers.onPod(),
	}
	for _, kind := range pool.Kinds() {
		pools, err := c.ipam.ForResource(pool.Resource(kind))
		if err != nil {
			return nil, err
		}
		if err := pools.Informer().AddIndexers(poolIndexers); err != nil {
			return nil, err
		}
		c.caches.pools[kind] = index[metav1.Object]{pools.Informer().GetIndexer()}
		handlers[pools.Informer()] = c.triggers.onPool(kind)
	}
	if err := c.watchReservations(); err != nil {
		return nil, err
	}
	var handled []cache.DoneChecker
	for informer, handler := range handlers {
		registration, err := informer.AddEventHandler(handler)
		if err != nil {
			return nil, err
		}
		handled = append(handled, registration.HasSyncedChecker())
	}
	return handled, nil
}

// watchReservations does not say when all have been seen: nv-ipam's CRDs have none, and those
// of an earlier version neither.
func (c *Controller) watchReservations() error {
	informer := c.ipam.NvIpam().V1alpha1().IPReservations().Informer()
	c.caches.reservations.Indexer, c.caches.reservationsSynced = informer.GetIndexer(), informer.HasSynced
	told := false
	err := informer.SetWatchErrorHandlerWithContext(func(ctx context.Context, r *cache.Reflector, err error) {
		if !apierrors.IsNotFound(err) {
			cache.DefaultWatchErrorHandler(ctx, r, err)
		} else if !told {
			told = true // one goroutine calls it
			klog.FromContext(ctx).Info("There is no CRD of IPReservations, so none are kept until it is applied")
		}
	})
	if err != nil {
		return err
	}
	_, err = informer.AddEventHandler(c.triggers.onReservation())
	return err
}

func newQueue[T comparable](name string, m workqueue.MetricsProvider) workqueue.TypedRateLimitingInterface[T] {
	return workqueue.NewTypedRateLimitingQueueWithConfig(workqueue.DefaultTypedControllerRateLimiter[T](),
		workqueue.TypedRateLimitingQueueConfig[T]{Name: name, MetricsProvider: m})
}

// work handles the items of queue one after the other until ctx ends or the
// queue is shut down. An item that failed comes back later, and later each time.
func work[T comparable](ctx context.Context, queue workqueue.TypedRateLimitingInterface[T], handle func(context.Context, T) error, failed failed) {
	for ctx.Err() == nil {
		item, shutdown := queue.Get()
		if shutdown {
			return
		}
		err := handle(ctx, item)
		again := func() {
			failed.retries.Inc()
			queue.AddRateLimited(item)
		}
		switch {
		case err == nil:
			queue.Forget(item)
		case ctx.Err() != nil: // not this item's fault
		case apierrors.IsConflict(err), apierrors.IsNotFound(err): // the cache is behind
			klog.FromContext(ctx).V(2).Info("Object has changed or gone meanwhile, will retry", "item", item, "err", err)
			again()
		default:
			failed.errors.Inc()
			klog.FromContext(ctx).Error(err, "Failed, will retry", "item", item)
			again()
		}
		queue.Done(item)
	}
}
