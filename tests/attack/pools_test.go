// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package attack

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/controller"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// maxText is how long the message of a condition or an event may be: the
// controller's own bound, and what it says of the rest.
const maxText = 8192 + 64

// pools is a user who may do everything with the pools of the namespace, where
// there is one of somebody else.
type pools struct {
	*cluster
	mallory clientv1alpha1.NvIpamV1alpha1Interface
	probes  int
}

var theirBlocks = []string{"one 10.0.0.1 10.0.0.10", "two 10.0.0.11 10.0.0.20"}

// TestHostilePoolAuthor writes whatever the server takes. The controller goes on:
// others' pools stay Ready with their blocks, new ones are served, and what is said
// of the bad ones is bounded.
func TestHostilePoolAuthor(t *testing.T) {
	c := newCluster(t, "one", "two")
	s := &pools{cluster: c, mallory: rig.Client(t, c.author(t, c.NS, v1alpha1.GroupVersion.Group, "ippools", "cidrpools"))}
	c.Pool(t, "theirs", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 10, Gateway: "10.0.0.1"})
	c.Claim(t, c.node(t, "one"), allocation("theirs", "10.0.0.2", "one", rig.Pod(t, c.Kube, c.tenant, "pod", "one")))
	c.run(t, controller.Options{ReclaimGrace: time.Second, ReclaimGraceReadyNode: time.Second})
	c.wantReady(t, "theirs", theirBlocks...)
	for _, tc := range []struct {
		name string
		try  func(*testing.T)
	}{
		{"bad exclusions", s.badExclusions},
		{"long names", s.longNames},
		{"all of the address space", s.wholeSpace},
		{"huge blocks", s.hugeBlocks},
		{"nothing but exclusions", s.nothingLeft},
		{"garbage selectors", s.selectors},
		{"huge lists", s.hugeLists},
		{"a gateway on a held address", s.gatewayOnHeld},
		{"others' subnets", s.othersSubnets},
		{"edits without end", s.flapping},
		{"status and metadata", s.statusAndMetadata},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.try(t)
			s.goesOn(t)
		})
	}
}

// create stores a pool, or reports false where it is refused.
func (s *pools) create(t *testing.T, name string, spec v1alpha1.IPPoolSpec) bool {
	t.Helper()
	_, err := s.mallory.IPPools(s.NS).Create(t.Context(), &v1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{})
	return stored(t, name, err)
}

func (s *pools) createCIDR(t *testing.T, name string, spec v1alpha1.CIDRPoolSpec) bool {
	t.Helper()
	_, err := s.mallory.CIDRPools(s.NS).Create(t.Context(), &v1alpha1.CIDRPool{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{})
	return stored(t, name, err)
}

func stored(t *testing.T, name string, err error) bool {
	t.Helper()
	switch {
	case err == nil:
		return true
	case apierrors.IsInvalid(err), apierrors.IsForbidden(err), apierrors.IsRequestEntityTooLargeError(err):
		t.Logf("%.60s is refused: %.200s", name, err)
	case strings.Contains(err.Error(), "request is too large"), strings.Contains(err.Error(), "trying to send message larger than max"): // etcd's words
		t.Logf("%.60s is too large", name)
	default:
		t.Errorf("%.60s: %.500s", name, err)
	}
	return false
}

// goesOn waits until every pool has been looked at and one more is served, and checks
// that the others' is as it was and that every text is bounded. Then it removes all
// but the others'.
func (s *pools) goesOn(t *testing.T) {
	t.Helper()
	s.probes++
	probe := fmt.Sprint("probe-", s.probes)
	s.Pool(t, probe, v1alpha1.IPPoolSpec{Subnet: "172.31.0.0/24", PerNodeBlockSize: 10})
	s.wantReady(t, probe, "one 172.31.0.1 172.31.0.10", "two 172.31.0.11 172.31.0.20")
	s.wantReady(t, "theirs", theirBlocks...)
	ctx := t.Context()
	var all []metav1.ObjectMeta
	rig.Until(t, func() string {
		ip, err := s.IPAM.IPPools(s.NS).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err.Error()
		}
		cidr, err := s.IPAM.CIDRPools(s.NS).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err.Error()
		}
		all = nil
		for _, p := range ip.Items {
			if all = append(all, p.ObjectMeta); !looked(t, p.ObjectMeta, p.Status.PoolStatus) {
				return "pool " + p.Name + " has not been looked at"
			}
		}
		for _, p := range cidr.Items {
			if all = append(all, p.ObjectMeta); !looked(t, p.ObjectMeta, p.Status.PoolStatus) {
				return "pool " + p.Name + " has not been looked at"
			}
		}
		return ""
	})
	s.boundedEvents(t)
	for _, m := range all {
		if m.Name == "theirs" {
			continue
		}
		s.deletePool(t, m.Name)
	}
}

// looked reports whether the controller has said what it finds of a pool as it is.
func looked(t *testing.T, m metav1.ObjectMeta, status v1alpha1.PoolStatus) bool {
	t.Helper()
	for _, c := range status.Conditions {
		if len(c.Message) > maxText {
			t.Errorf("%.60s: condition %s has %d bytes", m.Name, c.Type, len(c.Message))
		}
	}
	if len(status.Conditions) > 6 {
		t.Errorf("%.60s has %d conditions", m.Name, len(status.Conditions))
	}
	ready := meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionReady)
	return ready != nil && ready.ObservedGeneration == m.Generation
}

func (s *pools) boundedEvents(t *testing.T) {
	t.Helper()
	list, err := s.Kube.CoreV1().Events(s.NS).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list.Items {
		if len(e.Message) > 1024+64 {
			t.Errorf("event %s has %d bytes", e.Reason, len(e.Message))
		}
	}
}

func (s *pools) badExclusions(t *testing.T) {
	var bad, reversed []v1alpha1.ExcludeRange
	for i := range 1500 {
		outside := fmt.Sprintf("10.99.%d.%d", i/250, i%250)
		bad = append(bad, v1alpha1.ExcludeRange{StartIP: outside, EndIP: outside})
		reversed = append(reversed, v1alpha1.ExcludeRange{StartIP: "10.1.0.9", EndIP: "10.1.0.8"})
	}
	s.create(t, "bad", v1alpha1.IPPoolSpec{Subnet: "10.1.0.0/24", PerNodeBlockSize: 10, Exclusions: bad})
	s.create(t, "reversed", v1alpha1.IPPoolSpec{Subnet: "10.1.0.0/24", PerNodeBlockSize: 10, Exclusions: reversed})
	s.createCIDR(t, "cidr-bad", v1alpha1.CIDRPoolSpec{CIDR: "10.1.0.0/16", PerNodeNetworkPrefix: 24, Exclusions: bad})
}

// What a 213 character name leaves no room for is refused, and so are names that are
// not what the plugin takes.
func (s *pools) longNames(t *testing.T) {
	part := strings.Repeat("n", 63)
	longest := strings.Join([]string{part, part, part, part}, ".")[:253]
	spec := v1alpha1.IPPoolSpec{Subnet: "10.1.0.0/24", PerNodeBlockSize: 10}
	for length, want := range map[int]bool{253: false, 214: false, 213: true} {
		if got := s.create(t, longest[:length], spec); got != want {
			t.Errorf("a name of %d characters is stored: %t", length, got)
		}
		if got := s.createCIDR(t, longest[:length], v1alpha1.CIDRPoolSpec{CIDR: "10.2.0.0/16", PerNodeNetworkPrefix: 24}); got != want {
			t.Errorf("a CIDRPool's name of %d characters is stored: %t", length, got)
		}
	}
	s.create(t, "10.0.0.1", spec)
	s.create(t, "theirs.10.0.0.3", spec) // reads like an allocation
}

func (s *pools) wholeSpace(t *testing.T) {
	for i, subnet := range []string{"0.0.0.0/0", "::/0", "1.2.3.4/0", "2001:db8::/0", "128.0.0.0/1", "0.0.0.0/1", "::/1", "8000::/1", "224.0.0.0/4", "255.255.255.255/32", "0.0.0.0/32", "::/128", "::ffff:0.0.0.0/96", "::ffff:10.0.0.0/104"} {
		for _, size := range []int{1, 1 << 30, math.MaxInt64} {
			s.create(t, fmt.Sprintf("all-%d-%d", i, size%1000), v1alpha1.IPPoolSpec{Subnet: subnet, PerNodeBlockSize: size})
		}
		for _, bits := range []int32{1, 32, 64, 128} {
			s.createCIDR(t, fmt.Sprintf("all-cidr-%d-%d", i, bits), v1alpha1.CIDRPoolSpec{CIDR: subnet, PerNodeNetworkPrefix: bits})
		}
	}
}

func (s *pools) hugeBlocks(t *testing.T) {
	for i, size := range []int{math.MaxInt64, math.MaxInt32, 1 << 24, 0, -1, math.MinInt64} {
		s.create(t, fmt.Sprint("six-", i), v1alpha1.IPPoolSpec{Subnet: "fd00::/8", PerNodeBlockSize: size, Gateway: "fd00::1"})
		s.create(t, fmt.Sprint("four-", i), v1alpha1.IPPoolSpec{Subnet: "11.0.0.0/8", PerNodeBlockSize: size})
		index := int32(size % math.MaxInt32)
		s.createCIDR(t, fmt.Sprint("cidr-", i), v1alpha1.CIDRPoolSpec{CIDR: "fd00::/8", PerNodeNetworkPrefix: 9, GatewayIndex: &index})
	}
	s.createCIDR(t, "many", v1alpha1.CIDRPoolSpec{CIDR: "fd00::/8", PerNodeNetworkPrefix: 128})
	s.createCIDR(t, "negative", v1alpha1.CIDRPoolSpec{CIDR: "fd00::/8", PerNodeNetworkPrefix: math.MinInt32})
}

// nothingLeft makes pools of billions of blocks, all of them excluded. The controller finds
// that in one step for each exclusion, not in one for each block.
func (s *pools) nothingLeft(t *testing.T) {
	s.create(t, "four", v1alpha1.IPPoolSpec{Subnet: "11.0.0.0/8", PerNodeBlockSize: 1, Exclusions: []v1alpha1.ExcludeRange{{StartIP: "11.0.0.0", EndIP: "11.255.255.255"}}})
	s.create(t, "six", v1alpha1.IPPoolSpec{Subnet: "fd00::/8", PerNodeBlockSize: 1, Exclusions: []v1alpha1.ExcludeRange{{StartIP: "fd00::", EndIP: "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}}})
	s.create(t, "per-node", v1alpha1.IPPoolSpec{Subnet: "fd00::/8", PerNodeBlockSize: math.MaxInt32, PerNodeExclusions: []v1alpha1.ExcludeIndexRange{{StartIndex: 0, EndIndex: math.MaxInt32 - 1}}})
	s.create(t, "per-node-1", v1alpha1.IPPoolSpec{Subnet: "11.0.0.0/8", PerNodeBlockSize: 1, PerNodeExclusions: []v1alpha1.ExcludeIndexRange{{StartIndex: 0, EndIndex: 0}}})
	s.createCIDR(t, "cidr-four", v1alpha1.CIDRPoolSpec{CIDR: "11.0.0.0/8", PerNodeNetworkPrefix: 32, Exclusions: []v1alpha1.ExcludeRange{{StartIP: "11.0.0.0", EndIP: "11.255.255.255"}}})
	s.createCIDR(t, "cidr-six", v1alpha1.CIDRPoolSpec{CIDR: "fd00::/8", PerNodeNetworkPrefix: 128, PerNodeExclusions: []v1alpha1.ExcludeIndexRange{{StartIndex: 0, EndIndex: 0}}})
	s.createCIDR(t, "cidr-31", v1alpha1.CIDRPoolSpec{CIDR: "11.0.0.0/8", PerNodeNetworkPrefix: 31, PerNodeExclusions: []v1alpha1.ExcludeIndexRange{{StartIndex: 0, EndIndex: 1}}})
	s.createCIDR(t, "halves", v1alpha1.CIDRPoolSpec{
		CIDR: "11.0.0.0/8", PerNodeNetworkPrefix: 31, PerNodeExclusions: []v1alpha1.ExcludeIndexRange{{StartIndex: 0, EndIndex: 0}},
		Exclusions: []v1alpha1.ExcludeRange{{StartIP: "11.0.0.1", EndIP: "11.255.255.254"}},
	})
}

func (s *pools) selectors(t *testing.T) {
	long := strings.Repeat("x", 10000)
	term := func(key, op string, values ...string) corev1.NodeSelectorTerm {
		return corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: key, Operator: corev1.NodeSelectorOperator(op), Values: values}}}
	}
	field := func(key, op string, values ...string) corev1.NodeSelectorTerm {
		return corev1.NodeSelectorTerm{MatchFields: term(key, op, values...).MatchExpressions}
	}
	var many []string
	for i := range 10000 {
		many = append(many, fmt.Sprint("value-", i))
	}
	for i, terms := range [][]corev1.NodeSelectorTerm{
		nil, {{}}, {term("", "In", "a")}, {term("a b", "In", "a")}, {term("a", "Like", "a")}, {term("a", "Gt", "x")}, {term("a", "Gt", "1", "2")}, {term("a", "In")},
		{term("a", "Exists", "x")}, {term(long, "Exists")}, {term("a", "In", long)}, {term("a", "In", "\x00", "é", "%s%n")}, {term("a", "NotIn", many...)},
		{field("metadata.name", "In", "one", "two")}, {field("spec.unschedulable", "In", "true")}, {field("metadata.name", "Exists")}, slices.Repeat([]corev1.NodeSelectorTerm{term("a", "Like", long[:100])}, 2000),
	} {
		s.create(t, fmt.Sprint("selector-", i), v1alpha1.IPPoolSpec{Subnet: "10.1.0.0/16", PerNodeBlockSize: 10, NodeSelector: &corev1.NodeSelector{NodeSelectorTerms: terms}})
	}
}

func (s *pools) hugeLists(t *testing.T) {
	var exclusions []v1alpha1.ExcludeRange
	var routes []v1alpha1.Route
	var static []v1alpha1.CIDRPoolStaticAllocation
	for i := range 3000 {
		a := netip.AddrFrom4([4]byte{11, 0, byte(i / 100), byte(2 * (i % 100))})
		exclusions = append(exclusions, v1alpha1.ExcludeRange{StartIP: a.String(), EndIP: a.String()})
		routes = append(routes, v1alpha1.Route{Dst: a.String() + "/32"})
		static = append(static, v1alpha1.CIDRPoolStaticAllocation{NodeName: fmt.Sprint("node-", i), Prefix: a.String() + "/32"})
	}
	s.create(t, "exclusions", v1alpha1.IPPoolSpec{Subnet: "11.0.0.0/8", PerNodeBlockSize: 2, Exclusions: exclusions})
	s.create(t, "routes", v1alpha1.IPPoolSpec{Subnet: "11.0.0.0/8", PerNodeBlockSize: 2, Gateway: "11.0.0.1", Routes: routes})
	s.createCIDR(t, "static", v1alpha1.CIDRPoolSpec{CIDR: "11.0.0.0/8", PerNodeNetworkPrefix: 32, StaticAllocations: static})
	s.createCIDR(t, "some-static", v1alpha1.CIDRPoolSpec{CIDR: "11.0.0.0/8", PerNodeNetworkPrefix: 32, StaticAllocations: static[:1000]})
}

// Its own pool's gateway on an address that a pod has: the pod keeps it, and the pool
// says so.
func (s *pools) gatewayOnHeld(t *testing.T) {
	s.create(t, "mine", v1alpha1.IPPoolSpec{Subnet: "10.1.0.0/24", PerNodeBlockSize: 10})
	s.wantReady(t, "mine", "one 10.1.0.1 10.1.0.10", "two 10.1.0.11 10.1.0.20")
	s.Claim(t, s.node(t, "one"), allocation("mine", "10.1.0.5", "one", v1alpha1.PodReference{Namespace: s.tenant, Name: "pod"}))
	s.patch(t, "mine", `{"spec":{"gateway":"10.1.0.5"}}`)
	s.wantCondition(t, "mine", v1alpha1.ConditionEarlierSpecInUse, "10.1.0.5 (held on node one)")
	s.wantReady(t, "mine", "one 10.1.0.1 10.1.0.10", "two 10.1.0.11 10.1.0.20")
	s.wantHeld(t, "mine.10.1.0.5")
}

func (s *pools) patch(t *testing.T, name, body string) {
	t.Helper()
	if _, err := s.mallory.IPPools(s.NS).Patch(t.Context(), name, types.MergePatchType, []byte(body), metav1.PatchOptions{}); err != nil {
		stored(t, name+" with "+body, err)
	}
}

// Pools over the others' subnet: both are told of it, and the others' stays as it is.
func (s *pools) othersSubnets(t *testing.T) {
	for i, subnet := range []string{"10.0.0.0/24", "10.0.0.0/8", "10.0.0.8/29", "10.0.0.2/32"} {
		s.create(t, fmt.Sprint("over-", i), v1alpha1.IPPoolSpec{Subnet: subnet, PerNodeBlockSize: 1})
	}
	for i := range 25 {
		s.create(t, fmt.Sprintf("over-all-with-a-long-name-%s-%d", strings.Repeat("x", 150), i), v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/8", PerNodeBlockSize: 10, NodeSelector: nobody()})
	}
	s.wantCondition(t, "theirs", v1alpha1.ConditionOverlapping, "over-0")
	s.wantCondition(t, "over-0", v1alpha1.ConditionOverlapping, "10.0.0.0/24 overlaps with")
}

func nobody() *corev1.NodeSelector {
	return &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "none", Operator: corev1.NodeSelectorOpExists}}}}}
}

// Its own pool edited to and fro under an address that is held: what is kept of
// earlier specifications does not grow, and in the end all is as in the beginning.
func (s *pools) flapping(t *testing.T) {
	s.create(t, "mine", v1alpha1.IPPoolSpec{Subnet: "10.1.0.0/16", PerNodeBlockSize: 10})
	s.wantReady(t, "mine", "one 10.1.0.1 10.1.0.10", "two 10.1.0.11 10.1.0.20")
	s.Claim(t, s.node(t, "one"), allocation("mine", "10.1.0.6", "one", v1alpha1.PodReference{Namespace: s.tenant, Name: "pod"}))
	for i := range 25 {
		s.patch(t, "mine", fmt.Sprintf(`{"spec":{"subnet":"10.%d.0.0/16","perNodeBlockSize":%d,"gateway":"10.%d.0.1"}}`, 2+i%20, 1+i%7*i, 2+i%20))
		s.patch(t, "mine", `{"spec":{"nodeSelector":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"none","operator":"Exists"}]}]}}}`)
		s.patch(t, "mine", `{"spec":{"nodeSelector":null}}`)
		if n := len(s.GetPool(t, "mine").Status.Allocations); n > 5 {
			t.Fatalf("after %d edits the pool has %d blocks", i, n)
		}
	}
	s.patch(t, "mine", `{"spec":{"subnet":"10.1.0.0/16","perNodeBlockSize":10,"gateway":null}}`)
	s.wantReady(t, "mine", "one 10.1.0.1 10.1.0.10", "two 10.1.0.11 10.1.0.20")
	s.wantHeld(t, "mine.10.1.0.6")
}

// It may not write a status, and what it may write to metadata does no harm.
func (s *pools) statusAndMetadata(t *testing.T) {
	spec := v1alpha1.IPPoolSpec{Subnet: "10.1.0.0/24", PerNodeBlockSize: 10}
	mine := &v1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{Name: "mine"}, Spec: spec}
	mine.Annotations = map[string]string{v1alpha1.AnnotationReclaim: strings.Repeat("x", 200<<10)}
	mine.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "gone", UID: gone}}
	mine.Status.Allocations = []v1alpha1.Allocation{{NodeName: "one", StartIP: "10.0.0.1", EndIP: "10.0.0.200"}}
	if _, err := s.mallory.IPPools(s.NS).Create(t.Context(), mine, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"mine", "theirs"} {
		_, err := s.mallory.IPPools(s.NS).Patch(t.Context(), name, types.MergePatchType, []byte(`{"status":{"allocations":[]}}`), metav1.PatchOptions{}, "status")
		if !apierrors.IsForbidden(err) {
			t.Errorf("status of %s: got %v, want Forbidden", name, err)
		}
	}
	s.wantReady(t, "mine", "one 10.1.0.1 10.1.0.10", "two 10.1.0.11 10.1.0.20")
	s.WantEvent(t, "UnknownReclaimAnnotation", "no address is reclaimed")
}
