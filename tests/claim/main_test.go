// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package claim tests the claim protocol against a real API server, in process,
// so that requests can be counted, held up and lost.
package claim

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/claim"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

var env *testenv.Env

func TestMain(m *testing.M) {
	// A history takes some seconds; -rapid.checks=N asks for more of them.
	for name, value := range map[string]string{"rapid.checks": "12", "rapid.steps": "50"} {
		if err := flag.Set(name, value); err != nil {
			panic(err)
		}
	}
	os.Exit(testenv.Run(m, &env, testenv.Options{}))
}

// wire is a node's connection to the API server: it counts what passes and can
// lose it.
type wire struct {
	next http.RoundTripper

	mu       sync.Mutex
	requests []string // "POST ipallocations", "GET ippools/pool1", ...
	// answers says what the server made of them: "POST ipallocations 201 Created".
	answers []string
	// lose, where it is set, says what becomes of a request.
	lose func(req *http.Request) loss
	// answer, where it is set and returns something, answers in the server's place.
	answer func(req *http.Request) *page
}

type loss int

const (
	nothing  loss = iota
	request       // the server never sees it
	response      // the server carries it out, the client never learns
	half          // the server carries it out, the client reads half of the answer

	killedBefore // the process dies before it sends the request
	killedAfter  // the process dies before it reads the answer
)

var errLost = &netError{"connection lost by the test"}

type netError struct{ text string }

func (e *netError) Error() string { return e.text }
func (*netError) Timeout() bool   { return false }
func (*netError) Temporary() bool { return true }

func (w *wire) RoundTrip(req *http.Request) (*http.Response, error) {
	_, what, _ := strings.Cut(req.URL.Path, "/namespaces/")
	_, what, _ = strings.Cut(what, "/")
	w.mu.Lock()
	w.requests = append(w.requests, req.Method+" "+what)
	lost := nothing
	if w.lose != nil {
		lost = w.lose(req)
	}
	var answer *page
	if w.answer != nil {
		answer = w.answer(req)
	}
	w.mu.Unlock()
	if answer != nil {
		return answer.response(req), nil
	}
	switch lost {
	case request:
		return nil, errLost
	case killedBefore:
		kill()
	}
	resp, err := w.next.RoundTrip(req)
	w.answered(req.Method+" "+what, resp, err)
	if lost == killedAfter {
		kill()
	}
	if err == nil && lost == response {
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		return nil, errLost
	}
	if err == nil && lost == half {
		resp.Body = &halfBody{resp.Body, resp.ContentLength / 2}
	}
	return resp, err
}

// answered notes an answer. A request that the server was too busy for is repeated, and is no
// request of the protocol: it does not count.
func (w *wire) answered(request string, resp *http.Response, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	answer := fmt.Sprint(err)
	if err == nil {
		answer = resp.Status
	}
	w.answers = append(w.answers, request+" "+answer)
	if err == nil && (resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode >= http.StatusInternalServerError) {
		if i := slices.Index(w.requests, request); i >= 0 {
			w.requests = slices.Delete(w.requests, i, i+1)
		}
	}
}

// halfBody is an answer in the middle of which the connection breaks.
type halfBody struct {
	io.ReadCloser

	left int64
}

func (b *halfBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// take returns the requests since the last call.
func (w *wire) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.requests
	w.requests = nil
	return out
}

// lastAnswers returns the last answers of the server.
func (w *wire) lastAnswers(n int) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.answers[max(0, len(w.answers)-n):])
}

func (w *wire) setLose(f func(req *http.Request) loss) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lose = f
}

func (w *wire) setAnswer(f func(req *http.Request) *page) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer = f
}

// loseFirst loses the first request with a method.
func loseFirst(method string, what loss) func(*http.Request) loss {
	done := false
	return func(req *http.Request) loss {
		if req.Method != method || done {
			return nothing
		}
		done = true
		return what
	}
}

// down is an API server that cannot be reached.
func down(*http.Request) loss { return request }

// node is one node with its plugin.
type node struct {
	*claim.Claimer
	wire *wire
	dir  string
}

func newNode(t *testing.T, namespace, name string) *node {
	t.Helper()
	w := &wire{}
	config := rest.CopyConfig(env.Config)
	config.QPS = -1
	config.Wrap(func(rt http.RoundTripper) http.RoundTripper { w.next = rt; return w })
	dir := t.TempDir()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})) // it says which candidate collided
	return &node{wire: w, dir: dir, Claimer: &claim.Claimer{
		Ledger: ledger.Ledger{Client: rig.Client(t, config), Namespace: namespace, Node: name},
		Hint:   hint.Open(dir, "cluster", namespace, log), Log: log,
	}}
}

// restart is another process of the plugin on the same node.
func (n *node) restart() {
	n.Claimer = &claim.Claimer{Ledger: n.Ledger, Hint: n.hint(), Log: n.Log}
}

// hint opens the node's hint, as each process does.
func (n *node) hint() *hint.Hint { return hint.Open(n.dir, "cluster", n.Ledger.Namespace, n.Log) }

// path is the path of a file of the node's hint.
func (n *node) path(parts ...string) string {
	return filepath.Join(append([]string{n.dir, n.Ledger.Namespace + "@cluster"}, parts...)...)
}

// loseHint is a node whose disk was wiped.
func (n *node) loseHint(t *testing.T) {
	t.Helper()
	if err := os.RemoveAll(n.dir); err != nil {
		t.Fatal(err)
	}
}

// pod returns the attachment of a pod's first interface.
func pod(name string) hint.Attachment {
	return hint.Attachment{ContainerID: "sandbox-of-" + name, Interface: "net1"}
}

func ippool(names ...string) []v1alpha1.PoolReference {
	var refs []v1alpha1.PoolReference
	for _, n := range names {
		refs = append(refs, v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: n})
	}
	return refs
}

// add claims for a pod; requested addresses may follow.
func (n *node) add(ctx context.Context, name string, pools []v1alpha1.PoolReference, requested ...string) ([]string, error) {
	req := claim.Request{
		Attachment: pod(name), Pools: pools, Network: "net",
		Pod: v1alpha1.PodReference{Namespace: "default", Name: name},
	}
	for _, s := range requested {
		req.Want.Addresses = append(req.Want.Addresses, netip.MustParseAddr(s))
	}
	claims, err := n.Allocate(ctx, req)
	var out []string
	for _, c := range claims {
		out = append(out, c.Address.String())
	}
	return out, err
}

// addAs claims for a container of a pod, as each sandbox of it does.
func (n *node) addAs(ctx context.Context, container, podName string, pools ...string) (addrs []string, err error) {
	claims, err := n.Allocate(ctx, claim.Request{
		Attachment: pod(container), Pools: ippool(pools...), Network: "net",
		Pod: v1alpha1.PodReference{Namespace: "default", Name: podName, UID: types.UID("uid-of-" + podName)},
	})
	for _, c := range claims {
		addrs = append(addrs, c.Address.String())
	}
	return addrs, err
}

// mustAdd is add for where it has to succeed; it returns the first address.
func (n *node) mustAdd(t *testing.T, name string, pools []v1alpha1.PoolReference, requested ...string) string {
	t.Helper()
	got, err := n.add(t.Context(), name, pools, requested...)
	if err != nil {
		t.Fatalf("ADD of %s: %v", name, err)
	}
	return got[0]
}

func (n *node) mustDel(t *testing.T, name string) {
	t.Helper()
	if err := n.Release(t.Context(), pod(name)); err != nil {
		t.Fatalf("DEL of %s: %v", name, err)
	}
}

// cluster is a namespace with a pool in which each node has a block.
type cluster struct {
	ns     string
	client clientv1alpha1.NvIpamV1alpha1Interface
}

// newCluster makes pool "p": 10.0.0.0/24, blocks of size, no gateway.
func newCluster(t *testing.T, size int, nodes ...string) *cluster {
	t.Helper()
	c := emptyCluster(t)
	c.pool(t, "p", "10.0.0.0/24", size, nodes...)
	return c
}

func emptyCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{ns: env.Namespace(t), client: rig.Client(t, env.Config)}
	rig.Addresses(t, c.client, c.ns) // a server that has just started has its client ask twice
	return c
}

func (c *cluster) pool(t *testing.T, name, subnet string, size int, nodes ...string) {
	t.Helper()
	rig.IPPool(t, c.client, c.ns, name, v1alpha1.IPPoolSpec{Subnet: subnet, PerNodeBlockSize: size}, nodes...)
}

// hold makes an allocation behind everybody's back.
func (c *cluster) hold(t *testing.T, poolName, addr, nodeName, podName string) {
	t.Helper()
	c.holdLabelled(t, poolName, addr, nodeName, podName, v1alpha1.WindowLabel(netip.MustParseAddr(addr)))
}

// holdUnlabelled makes one that names no window.
func (c *cluster) holdUnlabelled(t *testing.T, poolName, addr string) {
	t.Helper()
	c.holdLabelled(t, poolName, addr, "other", "of-"+addr, "")
}

func (c *cluster) holdLabelled(t *testing.T, poolName, addr, nodeName, podName, window string) {
	t.Helper()
	a := netip.MustParseAddr(addr)
	_, err := c.client.IPAllocations(c.ns).Create(t.Context(), &v1alpha1.IPAllocation{
		ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.AllocationName(poolName, a), Labels: map[string]string{
			v1alpha1.LabelPool: poolName, v1alpha1.LabelNode: nodeName,
			v1alpha1.LabelContainer: v1alpha1.ContainerLabel(pod(podName).ContainerID), v1alpha1.LabelWindow: window,
		}},
		Spec: v1alpha1.IPAllocationSpec{
			PoolRef: v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: poolName}, Address: addr, NodeName: nodeName,
			PodRef: v1alpha1.PodReference{Namespace: "default", Name: podName}, ContainerID: pod(podName).ContainerID, InterfaceName: "net1",
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// free deletes an allocation behind everybody's back.
func (c *cluster) free(t *testing.T, poolName, addr string) {
	t.Helper()
	if err := c.client.IPAllocations(c.ns).Delete(t.Context(), v1alpha1.AllocationName(poolName, netip.MustParseAddr(addr)), metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// wantHeld checks what the API server has, all of it.
func (c *cluster) wantHeld(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for _, a := range rig.Addresses(t, c.client, c.ns) {
		got = append(got, a.String())
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("held are %v, want %v", got, want)
	}
}

func wantRequests(t *testing.T, n *node, want ...string) {
	t.Helper()
	if got := n.wire.take(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("requests %q\nwant     %q\nthe answers of the server end with %q", got, want, n.wire.lastAnswers(10))
	}
}

func asInUse(err error) *ledger.InUseError {
	var inUse *ledger.InUseError
	errors.As(err, &inUse)
	return inUse
}

func isRequestError(err error) bool {
	var request *pool.RequestError
	return errors.As(err, &request)
}

// lutimes sets the time of a symbolic link itself.
func lutimes(t *testing.T, path string, at time.Time) {
	t.Helper()
	tv := unix.NsecToTimeval(at.UnixNano())
	if err := unix.Lutimes(path, []unix.Timeval{tv, tv}); err != nil {
		t.Fatal(err)
	}
}
