// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package attack

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/controller"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// siege is node mallory, which is somebody else's by now, and node victim, on one
// pool of which each has a block.
type siege struct {
	*cluster
	mallory clientv1alpha1.NvIpamV1alpha1Interface
	own     v1alpha1.PodReference // a pod on mallory
	metrics *prometheus.Registry
}

var siegeBlocks = []string{"mallory 10.0.0.1 10.0.0.10", "victim 10.0.0.11 10.0.0.20"}

// victims are the addresses of the victim's block.
var victims = strings.Fields("10.0.0.11 10.0.0.12 10.0.0.13 10.0.0.14 10.0.0.15 10.0.0.16 10.0.0.17 10.0.0.18 10.0.0.19 10.0.0.20")

// TestHostileNode has the certificate of a node. What a policy says to it request by
// request is in tests/identity (TestOwnAllocationsOnly, TestLargeAllocations); what
// the installer's token may do in tests/manifests (TestOverlays).
func TestHostileNode(t *testing.T) {
	c := newCluster(t, "mallory", "victim")
	s := &siege{cluster: c, mallory: c.node(t, "mallory"), own: rig.Pod(t, c.Kube, c.tenant, "own", "mallory")}
	c.Pool(t, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 10})
	s.metrics = c.run(t, controller.Options{ReclaimGrace: time.Second, ReclaimGraceReadyNode: time.Second, Resync: 2 * time.Second})
	c.wantReady(t, "p", siegeBlocks...)
	t.Run("claims the victim's next addresses", s.claimsNextAddresses)
	t.Run("names that are not the address's", s.misnames)
	t.Run("foreign addresses", s.foreignAddresses)
	t.Run("large objects", s.largeObjects)
	t.Run("untrue labels", s.untrueLabels)
	t.Run("others' allocations", s.othersAllocations)
	t.Run("many addresses outside of its block", s.takesMany)
	t.Run("a pool of the other kind", s.otherKind)
	t.Run("others' pods", s.othersPods)
	t.Run("impossible pods", s.impossiblePods)
	t.Run("others' nodes and pods", s.othersObjects)
	c.wantReady(t, "p", siegeBlocks...)
	t.Run("a pool that is not for its pods", s.notForItsPods)
	t.Run("a pool that is made again", s.poolMadeAgain)
	t.Run("static pods until the node is gone", s.staticPods)
}

// plugin runs the plugin on the victim for a container's net2, and returns its first
// address.
func (s *siege) plugin(t *testing.T, verb, container string) string {
	t.Helper()
	binary, err := testenv.Binary("nv-ipam")
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig, err := env.NodeKubeconfig("victim")
	if err != nil {
		t.Fatal(err)
	}
	stdin := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"net","type":"macvlan","ipam":{"type":"nv-ipam","poolName":"p","poolsNamespace":%q,"confDir":%q,"dataDir":%q,"kubeconfig":%q}}`,
		s.NS, t.TempDir(), filepath.Join(env.Dir, "victim"), kubeconfig)
	cmd := exec.CommandContext(t.Context(), binary)
	cmd.Env = []string{
		"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + container, "CNI_IFNAME=net2", "CNI_PATH=" + filepath.Dir(binary),
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=" + s.tenant + ";K8S_POD_NAME=" + container,
		"CNI_NETNS=/proc/self/ns/net", "CNI_NETNS_OVERRIDE=1",
	}
	cmd.Stdin, cmd.Stderr = strings.NewReader(stdin), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", verb, err, out)
	}
	var result struct {
		IPs []struct{ Address string }
	}
	if verb == "ADD" {
		if err := json.Unmarshal(out, &result); err != nil || len(result.IPs) != 1 {
			t.Fatalf("%s: %v", out, err)
		}
		return strings.TrimSuffix(result.IPs[0].Address, "/24")
	}
	return ""
}

// allowedNamespaces, assignment and disabled are the plugin's to enforce: the API server
// takes what a node writes that does not run it.
func (s *siege) notForItsPods(t *testing.T) {
	s.Pool(t, "closed", v1alpha1.IPPoolSpec{Subnet: "10.9.0.0/24", PerNodeBlockSize: 10, Assignment: v1alpha1.AssignmentManual,
		PoolAccess: v1alpha1.PoolAccess{AllowedNamespaces: []string{"nobody-s"}, Disabled: true}})
	s.Claim(t, s.mallory, allocation("closed", "10.9.0.1", "mallory", s.own))
	if err := s.mallory.IPAllocations(s.NS).Delete(t.Context(), "closed.10.9.0.1", metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
	s.deletePool(t, "closed")
}

// The next addresses of the victim's block, under the ID and interface of one of its
// containers: the container gets another address, and its DEL frees that alone.
func (s *siege) claimsNextAddresses(t *testing.T) {
	rig.Pod(t, s.Kube, s.tenant, "victim", "victim")
	for _, addr := range victims[:5] {
		a := allocation("p", addr, "mallory", s.own)
		a.Spec.ContainerID, a.Spec.InterfaceName = "victim", "net2"
		a.Labels[v1alpha1.LabelContainer] = v1alpha1.ContainerLabel("victim")
		s.Claim(t, s.mallory, a)
	}
	got := s.plugin(t, "ADD", "victim")
	if !slices.Contains(victims[5:], got) {
		t.Errorf("the victim's container has %s", got)
	}
	s.WantEvent(t, "AddressesOutsideBlock", "node mallory holds")
	s.plugin(t, "DEL", "victim")
	s.wantHeld(t, "p.10.0.0.11", "p.10.0.0.12", "p.10.0.0.13", "p.10.0.0.14", "p.10.0.0.15")
	s.wantGone(t, "p."+got)
	s.wantReady(t, "p", siegeBlocks...)
	s.drop(t)
}

// drop releases what mallory holds.
func (s *siege) drop(t *testing.T) {
	t.Helper()
	list, err := s.mallory.IPAllocations(s.NS).List(t.Context(), metav1.ListOptions{LabelSelector: v1alpha1.LabelNode + "=mallory"})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list.Items {
		if err := s.mallory.IPAllocations(s.NS).Delete(t.Context(), a.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
	}
}

// wantRefused checks that an attempt was refused and that nothing of it is there.
func (s *siege) wantRefused(t *testing.T, what, name string, err error) {
	t.Helper()
	if !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) {
		t.Errorf("%s: got %v, want a refusal", what, err)
	}
	if _, err := s.IPAM.IPAllocations(s.NS).Get(t.Context(), name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("%s: is stored, or %v", what, err)
	}
}

// An object with a name that is not its address's would block one address and
// protect another, or none.
func (s *siege) misnames(t *testing.T) {
	for _, tc := range []struct{ pool, name, address string }{
		{"p", "p.10.0.0.21", "10.0.0.22"}, {"p", "p.10.0.0.021", "10.0.0.21"}, {"p", "p.10.0.0.21", "010.0.0.21"},
		{"p", "p.0000-0000-0000-0000-0000-ffff-0a00-0015", "::ffff:10.0.0.21"}, {"p", "p.0000-0000-0000-0000-0000-ffff-0a00-0015", "::ffff:a00:15"},
		{"p", "p.fd00--5", "fd00::5"}, {"p", "p.10.0.0.21", "fd00::5"}, {"p", "p.fd00-0000-0000-0000-0000-0000-0000-0005", "FD00::5"},
		{"p", "p.fd00-0000-0000-0000-0000-0000-0000-0005", "fd00:0::5"}, {"p", "p.fd00-0000-0000-0000-0000-0000-0000-0005", "fd00::5%eth0"},
		{"p.10", "p.10.0.0.21", "0.0.21"}, {"p", "p.10.0.0.21.", "10.0.0.21."}, {"p", "p.aaaa.bbbb", "aaaa.bbbb"}, {"p", "p.", ""},
		{"p", "q.10.0.0.21", "10.0.0.21"}, {"", ".10.0.0.21", "10.0.0.21"}, {"p", "p.10.0.0.21", "10.0.0.21/24"}, {"p", "p.167772181", "167772181"},
	} {
		a := allocation(tc.pool, tc.address, "mallory", s.own)
		a.Name = tc.name
		_, err := s.mallory.IPAllocations(s.NS).Create(t.Context(), a, metav1.CreateOptions{})
		s.wantRefused(t, tc.name+" for "+tc.address, tc.name, err)
	}
}

// Addresses that are none of the pool's, in its name.
func (s *siege) foreignAddresses(t *testing.T) {
	for i := range 30 {
		s.Claim(t, s.mallory, allocation("p", fmt.Sprint("1.2.3.", i), "mallory", s.own))
	}
	six := allocation("p", "fd00::5", "mallory", s.own)
	six.Name = "p.fd00-0000-0000-0000-0000-0000-0000-0005"
	s.Claim(t, s.mallory, six)
	s.wantCondition(t, "p", v1alpha1.ConditionForeignAddresses, "31 addresses of nodes mallory (31, as 1.2.3.0)")
	s.WantEvent(t, "ForeignAddresses", "node mallory holds")
	s.wantReady(t, "p", siegeBlocks...)
	s.drop(t)
}

// Two hundred megabytes, in whichever fields there are: nothing is stored that
// could fill the memory of the controller, which caches all allocations.
func (s *siege) largeObjects(t *testing.T) {
	large := strings.Repeat("x", 1<<20)
	fields := map[string]func(*v1alpha1.IPAllocation){
		"annotations": func(a *v1alpha1.IPAllocation) { a.Annotations = map[string]string{"x": large[:200<<10]} },
		"labels":      func(a *v1alpha1.IPAllocation) { a.Labels["x"] = "y" },
		"owners": func(a *v1alpha1.IPAllocation) {
			a.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: large, UID: "u"}}
		},
		"finalizers":   func(a *v1alpha1.IPAllocation) { a.Finalizers = []string{"example.com/" + large[:60]} },
		"pod's UID":    func(a *v1alpha1.IPAllocation) { a.Spec.PodRef.UID = types.UID(large) },
		"pod's name":   func(a *v1alpha1.IPAllocation) { a.Spec.PodRef.Name = large },
		"namespace":    func(a *v1alpha1.IPAllocation) { a.Spec.PodRef.Namespace = large },
		"container":    func(a *v1alpha1.IPAllocation) { a.Spec.ContainerID = large },
		"interface":    func(a *v1alpha1.IPAllocation) { a.Spec.InterfaceName = large },
		"network":      func(a *v1alpha1.IPAllocation) { a.Spec.NetworkName = large },
		"device":       func(a *v1alpha1.IPAllocation) { a.Spec.DeviceID = large },
		"pool":         func(a *v1alpha1.IPAllocation) { a.Spec.PoolRef.Name = large },
		"pool's kind":  func(a *v1alpha1.IPAllocation) { a.Spec.PoolRef.Kind = v1alpha1.PoolKind(large) },
		"address":      func(a *v1alpha1.IPAllocation) { a.Spec.Address = large },
		"generateName": func(a *v1alpha1.IPAllocation) { a.Name, a.GenerateName = "", "p.10.0.0." },
	}
	for name, edit := range fields {
		for i := range 12 {
			a := allocation("p", fmt.Sprint("10.0.0.", 100+i), "mallory", s.own)
			wanted := a.Name
			edit(a)
			_, err := s.mallory.IPAllocations(s.NS).Create(t.Context(), a, metav1.CreateOptions{})
			s.wantRefused(t, name, wanted, err)
		}
	}
}

// With labels that are not true, it would hide from those who list by them, or
// show up in others' lists.
func (s *siege) untrueLabels(t *testing.T) {
	for name, labels := range map[string]map[string]string{
		"none": nil,
		"another pool's": {
			v1alpha1.LabelPool: "q", v1alpha1.LabelNode: "mallory", v1alpha1.LabelContainer: v1alpha1.ContainerLabel("x")},
		"another node's": {
			v1alpha1.LabelPool: "p", v1alpha1.LabelNode: "victim", v1alpha1.LabelContainer: v1alpha1.ContainerLabel("x")},
	} {
		a := allocation("p", "10.0.0.21", "mallory", s.own)
		a.Labels = labels
		_, err := s.mallory.IPAllocations(s.NS).Create(t.Context(), a, metav1.CreateOptions{})
		s.wantRefused(t, name, a.Name, err)
	}
}

// A reservation, and what the victim holds: neither is changed, taken up or deleted.
func (s *siege) othersAllocations(t *testing.T) {
	reserved := allocation("p", "10.0.0.31", "", v1alpha1.PodReference{Namespace: s.tenant, Name: "db-0"})
	reserved.Labels, reserved.Spec.ContainerID, reserved.Spec.InterfaceName, reserved.Spec.AddStartedAt = nil, "", "", nil
	held := allocation("p", "10.0.0.19", "victim", rig.Pod(t, s.Kube, s.tenant, "holder", "victim"))
	ctx := t.Context()
	for _, a := range []*v1alpha1.IPAllocation{s.Claim(t, s.IPAM, reserved), s.Claim(t, s.node(t, "victim"), held)} {
		taken := a.DeepCopy()
		taken.Spec.NodeName, taken.Spec.ContainerID, taken.Spec.InterfaceName = "mallory", "c", "net1"
		_, err := s.mallory.IPAllocations(s.NS).Update(ctx, taken, metav1.UpdateOptions{})
		errs := map[string]error{
			"update": err,
			"delete": s.mallory.IPAllocations(s.NS).Delete(ctx, a.Name, metav1.DeleteOptions{}),
			"delete in the background": s.mallory.IPAllocations(s.NS).Delete(ctx, a.Name, metav1.DeleteOptions{
				PropagationPolicy: new(metav1.DeletePropagationBackground), Preconditions: &metav1.Preconditions{UID: &a.UID}}),
			"deletecollection": s.mallory.IPAllocations(s.NS).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}),
		}
		for as, body := range map[types.PatchType]string{
			types.MergePatchType: `{"spec":{"nodeName":"mallory"}}`, types.JSONPatchType: `[{"op":"replace","path":"/spec/nodeName","value":"mallory"}]`,
			types.ApplyPatchType: `{"apiVersion":"nv-ipam.nvidia.com/v1alpha1","kind":"IPAllocation","metadata":{"name":"` + a.Name + `","finalizers":["example.com/x"]}}`,
		} {
			_, errs[string(as)] = s.mallory.IPAllocations(s.NS).Patch(ctx, a.Name, as, []byte(body), metav1.PatchOptions{FieldManager: "x"})
		}
		for what, err := range errs {
			if !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) { // the CRD refuses it before the policy does
				t.Errorf("%s of %s: got %v, want it refused", what, a.Name, err)
			}
		}
		now, err := s.IPAM.IPAllocations(s.NS).Get(ctx, a.Name, metav1.GetOptions{})
		if err != nil || now.ResourceVersion != a.ResourceVersion {
			t.Errorf("%s has changed: %+v, %v", a.Name, now, err)
		}
		if _, err := s.mallory.IPAllocations(s.NS).Create(ctx, allocation("p", a.Spec.Address, "mallory", s.own), metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
			t.Errorf("%s was claimed: %v", a.Name, err)
		}
	}
}

// All that is free outside of its block: the pool stays Ready, blocks stay, and
// event and metric say who.
func (s *siege) takesMany(t *testing.T) {
	for i := 41; i <= 240; i++ {
		s.Claim(t, s.mallory, allocation("p", fmt.Sprint("10.0.0.", i), "mallory", s.own))
	}
	s.wantMetric(t, "crd_ipam_pool_addresses_outside_block", 200)
	s.WantEvent(t, "AddressesOutsideBlock", "node mallory holds")
	if got := s.plugin(t, "ADD", "during"); !slices.Contains(victims, got) {
		t.Errorf("the victim's pod has %s", got)
	}
	s.plugin(t, "DEL", "during")
	s.wantReady(t, "p", siegeBlocks...)
	s.drop(t)
}

// wantMetric waits until a metric, whatever its labels, counts that many.
func (s *siege) wantMetric(t *testing.T, name string, want float64) {
	t.Helper()
	rig.Until(t, func() string {
		families, err := s.metrics.Gather()
		if err != nil {
			return err.Error()
		}
		for _, f := range families {
			if got := f.GetMetric()[0].GetGauge().GetValue(); f.GetName() == name && got != want {
				return fmt.Sprintf("%s is %v, want %v", name, got, want)
			} else if f.GetName() == name {
				return ""
			}
		}
		return "there is no metric " + name
	})
}

// In the name of a CIDRPool that has the IPPool's name, and does not exist: it is the same
// domain, so the victim's addresses are taken. What it gets is another one, and the pool
// counts what is held.
func (s *siege) otherKind(t *testing.T) {
	for _, addr := range victims[:5] {
		a := allocation("p", addr, "mallory", s.own)
		a.Spec.PoolRef.Kind = v1alpha1.PoolKindCIDRPool
		s.Claim(t, s.mallory, a)
	}
	if got := s.plugin(t, "ADD", "other-kind"); !slices.Contains(victims[5:], got) {
		t.Errorf("the victim's pod has %s", got)
	}
	s.plugin(t, "DEL", "other-kind")
	s.wantMetric(t, "crd_ipam_pool_used", float64(len(s.Allocations(t))))
	s.wantReady(t, "p", siegeBlocks...)
	s.drop(t)
}

// In the name of the victim's pod, with a later sandbox: the pod's own address stays,
// and what was made up is reclaimed.
func (s *siege) othersPods(t *testing.T) {
	pod := rig.Pod(t, s.Kube, s.tenant, "live", "victim")
	s.Claim(t, s.node(t, "victim"), allocation("p", "10.0.0.18", "victim", pod))
	later := metav1.NewMicroTime(time.Now().Add(time.Hour))
	for i, ref := range []v1alpha1.PodReference{pod, {Namespace: pod.Namespace, Name: pod.Name}, {Namespace: pod.Namespace, Name: pod.Name, UID: gone}} {
		a := allocation("p", fmt.Sprint("10.0.0.", 21+i), "mallory", ref)
		a.Spec.ContainerID, a.Spec.AddStartedAt = fmt.Sprint("later-", i), &later
		s.Claim(t, s.mallory, a)
	}
	for i := range 3 {
		s.wantGone(t, fmt.Sprint("p.10.0.0.", 21+i))
	}
	s.wantHeld(t, "p.10.0.0.18")
}

// Pods that cannot be, or never were: everything is reclaimed.
func (s *siege) impossiblePods(t *testing.T) {
	for i, ref := range []v1alpha1.PodReference{
		{Namespace: s.tenant, Name: "never"}, {Namespace: s.tenant, Name: "never", UID: "x"}, {Namespace: s.tenant, Name: "never", UID: gone},
		{Namespace: "no-such-namespace", Name: "never", UID: gone}, {Namespace: s.tenant, Name: "own", UID: gone}, {Namespace: s.tenant, Name: "own", UID: "X"},
	} {
		s.Claim(t, s.mallory, allocation("p", fmt.Sprint("10.0.0.", 21+i), "mallory", ref))
	}
	for i := range 6 {
		s.wantGone(t, fmt.Sprint("p.10.0.0.", 21+i))
	}
	for _, ref := range []v1alpha1.PodReference{
		{Namespace: s.tenant, Name: "%zz"}, {Namespace: "a.b", Name: "x"}, {Namespace: s.tenant, Name: ".."}, {Namespace: s.tenant, Name: "x", UID: "a/b"}, {Name: "x"}, {Namespace: s.tenant}, {},
	} {
		a := allocation("p", "10.0.0.29", "mallory", ref)
		_, err := s.mallory.IPAllocations(s.NS).Create(t.Context(), a, metav1.CreateOptions{})
		s.wantRefused(t, fmt.Sprint(ref), a.Name, err)
	}
}

// What the controller's verdicts rest on is not its to write: another's Node object,
// its own taints, another's pods.
func (s *siege) othersObjects(t *testing.T) {
	kube, err := kubernetes.NewForConfig(nodeUser(t, "mallory"))
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	const outOfService = `{"spec":{"taints":[{"key":"node.kubernetes.io/out-of-service","effect":"NoExecute"}]}}`
	const ready = `{"status":{"conditions":[{"type":"Ready","status":"Unknown"}]}}`
	pod := rig.Pod(t, s.Kube, s.tenant, "bystander", "victim")
	patch := func(name, body string, sub ...string) error {
		_, err := kube.CoreV1().Nodes().Patch(ctx, name, types.StrategicMergePatchType, []byte(body), metav1.PatchOptions{}, sub...)
		return err
	}
	_, pods := kube.CoreV1().Pods(s.tenant).Patch(ctx, pod.Name, types.MergePatchType, []byte(`{"status":{"phase":"Failed"}}`), metav1.PatchOptions{}, "status")
	_, made := kube.CoreV1().Pods(s.tenant).Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "made"}, Spec: corev1.PodSpec{NodeName: "victim", Containers: []corev1.Container{{Name: "c", Image: "i"}}}}, metav1.CreateOptions{})
	for what, err := range map[string]error{
		"taint the victim": patch("victim", outOfService), "taint itself": patch("mallory", outOfService), "write the victim's status": patch("victim", ready, "status"),
		"delete the victim": kube.CoreV1().Nodes().Delete(ctx, "victim", metav1.DeleteOptions{}), "end a pod": pods, "make a pod on the victim": made,
		"delete a pod": kube.CoreV1().Pods(s.tenant).Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)}),
	} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("%s: got %v, want Forbidden", what, err)
		}
	}
	for what, err := range map[string]error{
		"delete a pool": s.mallory.IPPools(s.NS).Delete(ctx, "p", metav1.DeleteOptions{}),
		"write blocks":  s.writeBlocks(t),
	} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("%s: got %v, want Forbidden", what, err)
		}
	}
}

func (s *siege) writeBlocks(t *testing.T) error {
	t.Helper()
	body := []byte(`{"status":{"allocations":[{"nodeName":"mallory","startIP":"10.0.0.1","endIP":"10.0.0.200"}]}}`)
	_, err := s.mallory.IPPools(s.NS).Patch(t.Context(), "p", types.MergePatchType, body, metav1.PatchOptions{}, "status")
	return err
}

// A pool that is deleted and made again has the blocks that the controller remembers,
// whoever claims addresses in them: a node that holds some of its own there keeps its
// block. What is held stays held, and no address is given twice.
func (s *siege) poolMadeAgain(t *testing.T) {
	for i := 11; i <= 17; i++ {
		a := allocation("p", fmt.Sprint("10.0.0.", i), "mallory", s.own)
		s.Claim(t, s.mallory, a)
	}
	before := s.names(t)
	s.deletePool(t, "p")
	s.Pool(t, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 10})
	s.wantReady(t, "p", siegeBlocks...)
	if got := s.plugin(t, "ADD", "after"); slices.Contains(before, "p."+got) || !slices.Contains(victims, got) {
		t.Errorf("the victim's pod has %s, held were %q", got, before)
	}
	s.wantHeld(t, before...)
	s.drop(t)
}

// Static pods, which need no object in the API: believed as long as the Node object is
// there, and no longer.
func (s *siege) staticPods(t *testing.T) {
	names := []string{}
	for i := range 3 {
		ref := v1alpha1.PodReference{Namespace: s.tenant, Name: fmt.Sprint("static-", i), UID: static}
		names = append(names, s.Claim(t, s.mallory, allocation("p", fmt.Sprint("10.0.0.", 31+1+i), "mallory", ref)).Name)
	}
	if err := s.Kube.CoreV1().Nodes().Delete(t.Context(), "mallory", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		s.wantGone(t, name)
	}
}
