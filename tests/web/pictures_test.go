// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

var write = flag.Bool("write", false, "write the pictures of the page into docs/images")

const (
	nodes      = 250 // of the pool of the full map, with 256 addresses each
	perNode    = 256
	largest    = 150 << 10 // bytes of a picture
	pictureTop = 1100      // pixels of its height at most
)

// TestPictures takes the pictures of the documents, of a cluster with more than 20,000
// addresses, and logs what the server needs for it.
func TestPictures(t *testing.T) {
	if !*write {
		t.Skip("go test ./web -run TestPictures -args -write takes the pictures of the documents")
	}
	own, err := testenv.Start(testenv.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := own.Stop(); err != nil {
			t.Error(err)
		}
	})
	s := newLargeScene(t, own)
	p := browse(t, serve(t, named(t, own, "gpu-cluster-1")), 1280, 800)
	p.says(t, "#live", "live")
	p.says(t, "main", "rail1", "storage", "mgmt-v6", " 61 of ")
	p.picture(t, "web-pools", 1280)

	p.open(t, s.link("IPPool", "fabric"))
	p.says(t, ".legend", "in use")
	eval[chromedp.Void](t, p, "document.querySelector('.map canvas').focus()")
	for range 17 {
		p.press(t, kb.ArrowRight)
	}
	p.picture(t, "web-map", 1280)

	p.open(t, s.link("IPPool", "rail1")+"/@10.1.0.5")
	p.says(t, "#details", "kubectl ipam release")
	p.picture(t, "web-block", 1280)

	p.open(t, s.link("CIDRPool", "mgmt-v6")+"/fd00:10:0:4::-fd00:10:0:4:ffff:ffff:ffff:ffff")
	p.says(t, ".legend", "in use")
	p.picture(t, "web-ipv6", 1280)

	p.open(t, "#/leaks")
	p.says(t, "main", "look leaked")
	p.picture(t, "web-leaks", 1280)

	dark(t, p)
	p.open(t, s.link("IPPool", "storage"))
	p.says(t, ".legend", "in use")
	eval[chromedp.Void](t, p, "document.querySelector('.map canvas').focus()")
	p.press(t, kb.ArrowDown, kb.ArrowDown, kb.ArrowRight, kb.ArrowRight)
	p.picture(t, "web-dark", 1280)

	n := browse(t, serve(t, named(t, own, "gpu-cluster-1")), 390, 844)
	n.says(t, "#live", "live")
	n.says(t, "main", "rail1", "storage", "mgmt-v6", " 61 of ")
	n.open(t, s.link("IPPool", "rail1")+"/@10.1.0.5")
	n.says(t, "#details", "kubectl ipam release")
	n.picture(t, "web-narrow", 390)
}

// picture writes what the window would show if it were high enough.
func (p *page) picture(t *testing.T, name string, width int64) {
	t.Helper()
	p.do(t, chromedp.EmulateViewport(width, 200))
	eval[chromedp.Void](t, p, "scrollTo(0, 0)")
	height := min(eval[int64](t, p, "document.documentElement.scrollHeight"), pictureTop)
	p.do(t, chromedp.EmulateViewport(width, height))
	eval[bool](t, p, "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))", chromedp.EvalAwaitPromise)
	data, err := chromedp.Run(p.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		t.Fatal(err)
	}
	if len(data) > largest {
		t.Errorf("%s has %d bytes", name, len(data))
	}
	if err := os.WriteFile(filepath.Join(rig.Root(t), "docs", "images", name+".png"), data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// named is a kubeconfig whose context has a name.
func named(t *testing.T, of *testenv.Env, name string) string {
	t.Helper()
	config, err := clientcmd.LoadFromFile(of.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.Contexts[name], config.CurrentContext = config.Contexts[config.CurrentContext], name
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// newLargeScene is a cluster with rails, a large pool of blocks, one without blocks, and one
// of IPv6.
func newLargeScene(t *testing.T, on *testenv.Env) *scene {
	t.Helper()
	const namespace = "nvidia-network-operator"
	s := &scene{Cluster: &rig.Cluster{Env: on, NS: namespace, Kube: rig.Kube(t, on.Config), IPAM: rig.Client(t, on.Config)}}
	for _, ns := range []string{namespace, "ml"} {
		if _, err := s.Kube.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	workers := []string{"worker-1", "worker-2", "worker-3", "worker-4", "worker-5", "worker-6"}
	for _, name := range workers {
		s.Node(t, name, nil)
	}
	pod := func(name, node string) v1alpha1.PodReference { return rig.Pod(t, s.Kube, "ml", name, node) }
	gone := func(name string) v1alpha1.PodReference {
		return v1alpha1.PodReference{Namespace: "ml", Name: name, UID: rig.GoneUID}
	}
	good := func(pools ...string) {
		for _, p := range pools {
			s.condition(t, p, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonBlocksAssigned, "")
		}
	}

	rails := []string{"rail1", "rail2", "rail3"}
	for i, rail := range rails {
		rig.IPPool(t, s.IPAM, namespace, rail, v1alpha1.IPPoolSpec{
			Subnet: fmt.Sprintf("10.%d.0.0/24", i+1), PerNodeBlockSize: 32, Gateway: fmt.Sprintf("10.%d.0.1", i+1),
			Exclusions: []v1alpha1.ExcludeRange{{StartIP: fmt.Sprintf("10.%d.0.28", i+1), EndIP: fmt.Sprintf("10.%d.0.32", i+1)}},
		}, workers...)
	}
	for w, node := range workers {
		for n := range 4 + 4*w%13 {
			ref := pod(fmt.Sprintf("train-%d-%d", w, n), node)
			for i, rail := range rails {
				if i == 0 || n%(i+1) == 0 {
					s.claim(t, rail, fmt.Sprintf("10.%d.0.%d", i+1, w*32+2+n+n/3), node, ref)
				}
			}
		}
	}
	s.reserve(t, "rail1", "10.1.0.20")
	s.claim(t, "rail1", "10.1.0.5", "worker-1", gone("train-old-2"))
	s.unreachable(t, "worker-6")
	s.claim(t, "rail1", "10.1.0.190", "worker-6", gone("train-old-5"))
	s.claim(t, "rail2", "10.2.0.190", "worker-6", gone("train-old-5"))
	static := gone("kube-router")
	static.UID = rig.StaticUID
	s.claim(t, "rail3", "10.3.0.95", "worker-3", static)

	s.large(t)
	rig.CIDRPool(t, s.IPAM, namespace, "mgmt-v6", v1alpha1.CIDRPoolSpec{CIDR: "fd00:10::/48", PerNodeNetworkPrefix: 64}, workers...)
	for w, node := range workers {
		for n := range 6 + 9*w { // in a few runs
			addr := netip.AddrFrom16([16]byte{0xfd, 0, 0, 0x10, 7: byte(w), 13: byte(1 + n%5), 15: byte(2 + n + n/4)})
			s.claimPrefix(t, "mgmt-v6", addr.String(), node, pod(fmt.Sprintf("mgmt-%d-%d", w, n), node))
		}
	}
	good(rails...)
	s.condition(t, "rail2", v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonNoFreeRanges, "1 node has no block: worker-7")
	s.condition(t, "rail3", v1alpha1.ConditionOverlapping, metav1.ConditionTrue, "Overlapping", "10.3.0.0/24 overlaps with IPPool storage-old (10.3.0.0/16) of another domain")
	return s
}

// large makes the pools fabric, with blocks for 250 nodes, and storage, which has none.
func (s *scene) large(t *testing.T) {
	t.Helper()
	var names []string
	for i := range nodes {
		names = append(names, fmt.Sprintf("gpu-%03d", i+1))
	}
	rig.IPPool(t, s.IPAM, s.NS, "fabric", v1alpha1.IPPoolSpec{Subnet: "10.64.0.0/16", PerNodeBlockSize: perNode, Gateway: "10.64.0.1"}, names...)
	s.condition(t, "fabric", v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonBlocksAssigned, "")
	rig.IPPool(t, s.IPAM, s.NS, "storage", v1alpha1.IPPoolSpec{
		Subnet: "10.4.0.0/16", Exclusions: []v1alpha1.ExcludeRange{{StartIP: "10.4.240.0", EndIP: "10.4.255.255"}},
	})
	s.condition(t, "storage", v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonNoBlocks, "")

	random := rand.New(rand.NewPCG(1, 2))
	type held struct {
		addr netip.Addr
		node string
		leak bool
	}
	var fabric, storage []held
	next := netip.MustParseAddr("10.64.0.1")
	for _, node := range names {
		use := 0.1 + 0.85*random.Float64()
		for range perNode {
			if random.Float64() < use*(0.6+0.4*random.Float64()) && next != netip.MustParseAddr("10.64.0.1") {
				fabric = append(fabric, held{next, node, random.IntN(9000) == 0})
			}
			next = next.Next()
		}
	}
	for run := range 700 {
		first := netip.AddrFrom4([4]byte{10, 4, byte(random.IntN(200)), byte(16 * random.IntN(16))})
		for n := range 16 {
			if n > 0 && random.IntN(4) > 0 {
				storage = append(storage, held{first.Next(), names[run%nodes], false})
			}
			first = first.Next()
		}
	}
	lives := map[string]v1alpha1.PodReference{}
	for _, node := range names {
		lives[node] = rig.Pod(t, s.Kube, "ml", "job-"+node, node)
	}
	for pool, all := range map[string][]held{"fabric": fabric, "storage": storage} {
		slices.SortFunc(all, func(a, b held) int { return a.addr.Compare(b.addr) })
		all = slices.CompactFunc(all, func(a, b held) bool { return a.addr == b.addr })
		first := all[0]
		s.claim(t, pool, first.addr.String(), first.node, lives[first.node])
		s.Env.Copy(t, s.NS, pool+"."+first.addr.String(), len(all)-1, func(i int, metadata, spec map[string]any) {
			h := all[i+1]
			pod := lives[h.node]
			if h.leak {
				pod = v1alpha1.PodReference{Namespace: "ml", Name: fmt.Sprint("job-gone-", i), UID: rig.GoneUID}
			}
			metadata["name"], metadata["uid"] = pool+"."+h.addr.String(), fmt.Sprintf("22222222-2a5c-4f0e-8a53-%012d", i)
			spec["address"], spec["nodeName"], spec["podRef"], spec["containerID"], spec["interfaceName"] = h.addr.String(), h.node, pod, "sandbox-"+pod.Name, fmt.Sprint("n", i)
		})
	}
}
