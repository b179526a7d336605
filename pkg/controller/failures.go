// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"regexp"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// failures counts the ADDs that failed. The plugin tells nobody but its runtime, so that an
// ADD costs nothing for it; the kubelet makes an event of what the runtime says. No event is
// kept, only how often each has happened.
//
// A kubelet drops events of a pod that fails often, so there were at least as many failures as
// are counted.
type failures struct {
	exists func(v1alpha1.PoolReference) bool // whether there is such a pool
	total  *prometheus.CounterVec
	// counted is how often each event that exists has happened, as far as it was counted; nil
	// before the first list. Only the reflector's goroutine uses it.
	counted map[types.UID]int64
}

// failedSandbox selects the kubelet's events of pods whose sandbox could not be set up.
var failedSandbox = fields.OneTermEqualSelector("reason", "FailedCreatePodSandBox").String()

// run counts until ctx ends.
func (f *failures) run(ctx context.Context, client kubernetes.Interface) {
	events := client.CoreV1().Events(metav1.NamespaceAll)
	source := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.FieldSelector = failedSandbox
			return events.List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.FieldSelector = failedSandbox
			return events.Watch(ctx, options)
		},
	}
	cache.NewReflectorWithOptions(source, &corev1.Event{}, f, cache.ReflectorOptions{Name: "failed ADDs"}).RunWithContext(ctx)
}

// The methods of cache.ReflectorStore.

// Add counts a new event.
func (f *failures) Add(obj any) error {
	f.count(obj.(*corev1.Event))
	return nil
}

// Update counts what has happened again.
func (f *failures) Update(obj any) error { return f.Add(obj) }

// Delete forgets an event that is over.
func (f *failures) Delete(obj any) error {
	delete(f.counted, obj.(*corev1.Event).UID)
	return nil
}

// Replace counts what a watch has missed. What happened before the first list is not counted:
// the controller that led before has.
func (f *failures) Replace(events []any, _ string) error {
	before := f.counted
	f.counted = make(map[types.UID]int64, len(events))
	for _, obj := range events {
		e := obj.(*corev1.Event)
		if before == nil {
			f.counted[e.UID] = times(e)
			continue
		}
		f.counted[e.UID] = before[e.UID]
		f.count(e)
	}
	return nil
}

// Resync has nothing to do.
func (*failures) Resync() error { return nil }

// count counts what is new of an event.
func (f *failures) count(e *corev1.Event) {
	n := times(e)
	more := n - f.counted[e.UID]
	f.counted[e.UID] = n
	if reason := failureReason(e.Message); reason != "" && more > 0 {
		ref := f.poolIn(e.Message)
		f.total.WithLabelValues(string(ref.Kind), ref.Name, reason).Add(float64(more))
	}
}

// times is how often an event has happened.
func times(e *corev1.Event) int64 {
	n := max(e.Count, 1)
	if e.Series != nil {
		n = max(n, e.Series.Count)
	}
	return int64(n)
}

// namedPool is how the plugin names a pool.
var namedPool = regexp.MustCompile(`pool "([^"]+)", poolType "([a-z]+)"`)

// poolIn returns the pool that a message names, if it exists: anybody may write events, and
// there are no more series than pools.
func (f *failures) poolIn(message string) (ref v1alpha1.PoolReference) {
	if m := namedPool.FindStringSubmatch(message); m != nil {
		for _, kind := range pool.Kinds() {
			named := v1alpha1.PoolReference{Kind: kind, Name: m[1]}
			if pool.Type(kind) == m[2] && f.exists(named) {
				return named
			}
		}
	}
	return ref
}

// Why ADDs fail, as docs/metrics.md explains it.
const (
	failedExhausted   = "exhausted"
	failedInUse       = "in_use"
	failedNoPool      = "no_pool"
	failedNoBlock     = "no_block"
	failedNotAllowed  = "not_allowed"
	failedClaim       = "ipam_claim"
	failedRefused     = "refused"
	failedUnavailable = "unavailable"
	failedLost        = "record_lost"
	failedOther       = "other"
)

// failureReasons are the plugin's words, and what they say. The first that a message contains
// is used. TestFailedADDs has the plugin say each of them.
var failureReasons = []struct{ words, reason string }{
	{"requested IP is already reserved in the pool", failedInUse},
	{"IPAMClaim ", failedClaim},
	{"no free addresses in the pool", failedExhausted},
	{"allocations were lost", failedLost},
	{" not found: there is no ", failedNoPool},
	{" has no block for node ", failedNoBlock},
	{" does not select node ", failedNoBlock},
	{" gives no addresses ", failedNotAllowed},
	{" gives only addresses that are asked for ", failedNotAllowed},
	{" has no matching Pool", failedNotAllowed},
	{"requested IP ", failedNotAllowed}, // an index, or an address that no interface can have
	{" allocate_default_gateway feature", failedNotAllowed},
	{", with the credentials of ", failedRefused}, // by the API server, in its words
	{"no credentials: none of ", failedRefused},
	{"ipam.kubeconfig: ", failedRefused},
	{ledger.ErrUnavailable.Error(), failedUnavailable},
	{`poolType "`, failedOther},
}

// failureReason is why the ADD failed that a message is about, "" if it was not one of this
// project's plugin.
func failureReason(message string) string {
	for _, f := range failureReasons {
		if strings.Contains(message, f.words) {
			return f.reason
		}
	}
	return ""
}
