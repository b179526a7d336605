// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// pluginRules is what the plugin needs.
var pluginRules = []rbacv1.PolicyRule{
	{APIGroups: []string{v1alpha1.GroupName}, Resources: []string{"ippools", "cidrpools"}, Verbs: []string{"get"}},
	{APIGroups: []string{v1alpha1.GroupName}, Resources: []string{"ipallocations"}, Verbs: []string{"get", "list", "create", "delete"}},
}

// account is the only one whose token the installer keeps.
const account = "crd-ipam-plugin"

// tokenHost is a host whose plugin uses a token of that service account.
func tokenHost(t *testing.T) (*host, []string) {
	t.Helper()
	c := newCluster(t)
	h := c.host(t, "node-"+c.NS, "")
	if _, err := c.Kube.CoreV1().ServiceAccounts(c.NS).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.allow(t, "plugin", rbacv1.Subject{Kind: "ServiceAccount", Namespace: c.NS, Name: account}, pluginRules)
	installer := rbacv1.Subject{Kind: "User", APIGroup: rbacv1.GroupName, Name: "installer-" + c.NS}
	c.allow(t, "token", installer, tokenRules(account))
	_, err := c.Kube.RbacV1().ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: c.NS},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"get"}}},
	}, metav1.CreateOptions{})
	if err == nil {
		_, err = c.Kube.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: c.NS}, Subjects: []rbacv1.Subject{installer},
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: c.NS},
		}, metav1.CreateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	h.makeNode(t)
	rig.IPPool(t, c.IPAM, c.NS, "mine", v1alpha1.IPPoolSpec{Subnet: "10.7.0.0/24", PerNodeBlockSize: 10}, h.name)
	return h, []string{"--cni-kubeconfig=", "--token-service-account=" + account, "--token-server=" + env.Config.Host, "--token-lifetime=1h"}
}

func (h *host) makeNode(t *testing.T) *corev1.Node {
	t.Helper()
	node, err := h.Kube.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: h.name}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return node
}

func needNodeTokens(t *testing.T) {
	t.Helper()
	if env.Minor < 31 {
		t.Skipf("1.%d does not bind tokens to nodes: see TestTokenOfAnOldServer", env.Minor)
	}
}

// whoami asks the API server whom the kubeconfig on the host is.
func (h *host) whoami(t *testing.T) (*authenticationv1.UserInfo, error) {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", h.path("conf/nv-ipam.kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	review, err := kube.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	return &review.Status.UserInfo, nil
}

func TestToken(t *testing.T) {
	needNodeTokens(t)
	h, args := tokenHost(t)
	h.mustRun(t, append(args, "--once")...)
	user, err := h.whoami(t)
	if err != nil {
		t.Fatal(err)
	}
	if user.Username != "system:serviceaccount:"+h.NS+":"+account || strings.Join(user.Extra["authentication.kubernetes.io/node-name"], ",") != h.name {
		t.Errorf("the API server takes the plugin for %+v", user)
	}
	for _, name := range []string{"conf/nv-ipam.kubeconfig", "conf/nv-ipam.token"} {
		if info, err := os.Stat(h.path(name)); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	var conf struct{ Kubeconfig string }
	if err := json.Unmarshal([]byte(h.read(t, "conf/nv-ipam.conf")), &conf); err != nil || conf.Kubeconfig != h.path("conf/nv-ipam.kubeconfig") {
		t.Errorf("nv-ipam.conf names kubeconfig %q, %v", conf.Kubeconfig, err)
	}
	got, err := h.call(t.Context(), "ADD", "c1", "", "mine", "ippool")
	if err != nil || got != "10.7.0.1" {
		t.Errorf("ADD with the token: %s, %v", got, err)
	}

	// A restart keeps a good token.
	before := h.read(t, "conf/nv-ipam.token")
	h.mustRun(t, append(args, "--once")...)
	if h.read(t, "conf/nv-ipam.token") != before {
		t.Error("a good token was not kept")
	}
	// A Node that is made anew takes the token with it.
	if err := h.Kube.CoreV1().Nodes().Delete(t.Context(), h.name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	node := h.makeNode(t)
	h.mustRun(t, append(args, "--once")...)
	user, err = h.whoami(t)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(user.Extra["authentication.kubernetes.io/node-uid"], ","); got != string(node.UID) {
		t.Errorf("the token is of node %s, not of %s", got, node.UID)
	}
	h.mustRun(t, "--uninstall")
	for _, name := range []string{"conf/nv-ipam.kubeconfig", "conf/nv-ipam.token"} {
		if _, err := os.Stat(h.path(name)); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
}

// Who installs may ask for that one account's token: without it there is no
// plugin that could not work.
func TestTokenRefused(t *testing.T) {
	needNodeTokens(t)
	h, args := tokenHost(t)
	_, log, err := h.run(t, append(args, "--once", "--token-service-account=default/"+account)...)
	if err == nil || !strings.Contains(log, "forbidden") || h.isInstalled(t) {
		t.Errorf("%v, installed %t\n%s", err, h.isInstalled(t), log)
	}
}

// What the admission policies do not know is not even asked for.
func TestTokenOfAnotherAccountIsRefused(t *testing.T) {
	h, args := tokenHost(t)
	for _, tc := range []struct{ flag, words string }{
		{"--token-service-account=default", `--token-service-account must be crd-ipam-plugin or NAMESPACE/crd-ipam-plugin, not "default"`},
		{"--token-lifetime=876000h", "--token-lifetime must be between 10m0s and 24h0m0s, not 876000h0m0s"},
	} {
		_, log, err := h.run(t, append(args, "--once", tc.flag)...)
		if err == nil || !strings.Contains(log, tc.words) || h.isInstalled(t) {
			t.Errorf("%s: %v, installed %t\n%s", tc.flag, err, h.isInstalled(t), log)
		}
	}
}

func TestTokenOfAnOldServer(t *testing.T) {
	if env.Minor >= 31 {
		t.Skipf("1.%d binds tokens to nodes: see TestToken", env.Minor)
	}
	h, args := tokenHost(t)
	_, log, err := h.run(t, append(args, "--once")...)
	if err == nil || !strings.Contains(log, "does not bind tokens to nodes") || h.isInstalled(t) {
		t.Errorf("%v, installed %t\n%s", err, h.isInstalled(t), log)
	}
}

func TestStayRepairsTheToken(t *testing.T) {
	needNodeTokens(t)
	h, args := tokenHost(t)
	probes := rig.FreePort(t)
	cmd := h.ipamNode(t, append(args, "--check-interval=50ms", "--health-probe-bind-address="+probes)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	rig.Eventually(t, "ready", func() bool { return status(probes, "readyz") == http.StatusOK })
	if err := os.WriteFile(h.path("conf/nv-ipam.token"), []byte("spoilt"), 0o600); err != nil {
		t.Fatal(err)
	}
	rig.Eventually(t, "a new token", func() bool { return h.read(t, "conf/nv-ipam.token") != "spoilt" })
	if err := os.Remove(h.path("conf/nv-ipam.kubeconfig")); err != nil {
		t.Fatal(err)
	}
	rig.Eventually(t, "a new kubeconfig", func() bool { _, err := os.Stat(h.path("conf/nv-ipam.kubeconfig")); return err == nil })
	rig.Eventually(t, "ready again", func() bool { return status(probes, "readyz") == http.StatusOK })
	if _, err := h.whoami(t); err != nil {
		t.Error(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
}

// From the mode with a token to the one with the kubelet's credentials: what the plugin
// would go on using is removed, and the other way round it is there again.
func TestSwitchOfCredentials(t *testing.T) {
	needNodeTokens(t)
	h, args := tokenHost(t)
	own := []string{"conf/nv-ipam.kubeconfig", "conf/nv-ipam.token"}
	check := func(mode string, there bool) {
		t.Helper()
		for _, name := range own {
			if _, err := os.Stat(h.path(name)); (err == nil) != there {
				t.Errorf("%s: %s there: %t", mode, name, err == nil)
			}
		}
		if got, err := h.call(t.Context(), "ADD", mode, "", "mine", "ippool"); err != nil {
			t.Errorf("%s: ADD: %s, %v", mode, got, err)
		}
	}
	h.mustRun(t, append(args, "--once")...)
	check("token", true)
	h.mustRun(t, "--once") // with --cni-kubeconfig
	check("kubelet", false)
	h.mustRun(t, append(args, "--once")...)
	check("token-again", true)
	h.mustRun(t, "--uninstall")
	h.mustRun(t, "--once")
	check("installed-again", false)
}

// With the mode the data directory changes, so that the record of the mode before is elsewhere.
func TestSwitchOfCredentialsAndDataDir(t *testing.T) {
	needNodeTokens(t)
	h, args := tokenHost(t)
	h.mustRun(t, append(args, "--once")...)
	h.mustRun(t, "--once", "--cni-data-dir="+h.path("other"))
	for _, name := range []string{"conf/nv-ipam.kubeconfig", "conf/nv-ipam.token", "data/nv-ipam.conf", "data/installed.json"} {
		if _, err := os.Stat(h.path(name)); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
	if got, err := h.call(t.Context(), "ADD", "c1", "", "mine", "ippool"); err != nil {
		t.Errorf("ADD: %s, %v", got, err)
	}
	h.mustRun(t, "--uninstall", "--cni-data-dir="+h.path("third"))
	for _, name := range []string{"bin/nv-ipam", "conf/nv-ipam.conf", "other/nv-ipam.conf", "other/installed.json", "third"} {
		if _, err := os.Stat(h.path(name)); err == nil {
			t.Errorf("after uninstall %s is still there", name)
		}
	}
}
